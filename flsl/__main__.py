"""``python -m flsl``."""

import sys

from flsl.cli import main
from flsl.runtime.signals import tidy_up_on_sigterm


def run() -> None:
    """Run the command line and end the process."""
    tidy_up_on_sigterm()
    sys.exit(main())


if __name__ == "__main__":
    run()
