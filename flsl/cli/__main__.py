"""``python -m flsl.cli``."""

import sys

from flsl.cli import main

sys.exit(main())
