"""``python -m flsl``."""

import signal
import sys

from flsl.cli import main
from flsl.runtime.signals import Terminated, raise_at_first


def run() -> None:
    """Run the command line and end the process."""
    raise_at_first([signal.SIGTERM], lambda _: Terminated())
    sys.exit(main())


if __name__ == "__main__":
    run()
