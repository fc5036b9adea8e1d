"""The one kind of error that is the user's to mend, and how it reaches the terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake outside the program: a setting, a file, a folder, a full disk.

    The message is one line that names the setting or the file, says what is wrong and what would be right.
    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # a data loader's worker hands its error over with the worker's traceback around it
        if message.startswith("Caught UserError in"):
            message = message.rpartition("UserError: ")[2]
        super().__init__(" ".join(message.split()))


class Stopped(Exception):  # noqa: N818 - it is no error: the work was saved and goes on when started again
    """A stage has saved and ended because a signal asked it to; the exit code is 128 + the signal, as a shell's.

    Attributes:
        signum: the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the valid name nearest to ``name``, or ``""`` when none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def require_file(path: Path | str, what: str) -> Path:
    """Return ``path`` if it is a readable file.

    Raises:
        UserError: naming ``what`` the file is for, when it is missing or is not a file.
    """
    path = Path(path)
    if not _exists(path, what):
        raise UserError(f"{path}: no such file; {what} is expected there")
    if not path.is_file():
        raise UserError(f"{path}: not a file; {what} is expected there")
    return path


def require_folder(path: Path | str, what: str) -> Path:
    """Return ``path`` if it is a folder.

    Raises:
        UserError: naming ``what`` the folder should hold, when it is missing or is not a folder.
    """
    path = Path(path)
    if not _exists(path, what):
        raise UserError(f"{path}: no such folder; {what} is expected there")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder; {what} is expected there")
    return path


def _exists(path: Path, what: str) -> bool:
    try:
        return path.exists()
    except OSError as error:  # above all a folder on the way that may not be entered
        raise UserError(f"{path}: cannot be read ({error.strerror}); {what} is expected there") from None


def right_in(folder: Path, name: object, source: Path | str) -> Path:
    """Return ``folder / name``, refusing a name (read from a data file) that is not one of something right in there.

    Raises:
        UserError: naming ``source``, the file in which the name stands, when it is no plain name.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{source}: '{name}' is no plain name of something right in {folder}")
    return folder / name


def inside(root: Path, relative: str, source: Path | str) -> Path:
    """Return ``root / relative``, refusing a path (read from a data file) that leaves ``root``.

    Raises:
        UserError: naming ``source``, the file in which the path stands, when the path is absolute or climbs out.
    """
    path = root / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise UserError(f"{source}: the path '{relative}' leaves {root}; paths must stay below that folder")
    return path
