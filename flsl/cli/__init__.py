"""The ``flsl`` command: one subcommand per stage; it parses, calls one function and prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flsl import __version__


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command; torch is imported only by the subcommand that runs."""
    from flsl.cli import (
        ablation,
        data,
        detect,
        doctor,
        pretrain,
        probe,
        report,
        reproduce,
        settings,
        submit,
        track,
        video,
        visualize,
    )

    parser = argparse.ArgumentParser(
        prog="flsl",
        description="Pretrain and evaluate FLSL (feature-level self-supervised learning). Each stage reads files and "
        "writes a folder; `snakemake` chains them.",
    )
    parser.add_argument("--version", action="version", version=f"flsl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    stages = (settings, data, pretrain, submit, probe, detect, video, visualize)
    for group in (*stages, track, report, ablation, reproduce, doctor):
        group.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 for the user's mistakes, or 128 + a signal that a stage stopped at.

    A traceback is for a fault of ours.
    """
    from flsl.cli.output import write_out

    return write_out(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    from flsl.runtime.errors import Stopped, UserError
    from flsl.runtime.signals import Terminated, loader_died

    # before torch is imported: threads that spin for long slow down whatever else shares the cores several times over,
    # and threads that never spin are late for the next small operation; a short spin costs neither
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = _parse(argv)
    try:
        args.run(args)
    except UserError as error:
        return _tell(f"error: {error}", 2)
    except Stopped as stop:
        return _tell(f"{stop}", 128 + stop.signum)
    except Terminated:
        return _tell("stopped by signal 15", 128 + 15)
    except KeyboardInterrupt:
        return _tell("interrupted", 130)
    except RuntimeError as error:
        if not loader_died(error):
            raise
        why = "a loading process was killed (out of memory?); try a smaller compute.workers"
        return _tell(f"error: {why}; the same command goes on from what was saved", 2)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; settings may stand on both sides of an option, which argparse takes amiss."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and hasattr(args, "overrides") and not any(word.startswith("-") or "=" not in word for word in rest):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _tell(line: str, code: int) -> int:
    print(f"flsl: {line}", file=sys.stderr)
    return code
