"""``python -m flsl``."""

import sys

from flsl.cli import main

sys.exit(main())
