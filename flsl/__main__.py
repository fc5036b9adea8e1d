"""``python -m flsl``."""

import signal
import sys

from flsl.cli import main


def run() -> None:
    """Run the command line and end the process."""
    code = main()
    # what a signal asked for is done: further ones must not change the exit code
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
