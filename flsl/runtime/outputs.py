"""Files that are whole when they exist, and the ``metrics.json`` that every stage writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from flsl.runtime.code import used_code
from flsl.runtime.errors import UserError

_PACKAGES = ("flsl", "torch", "torchvision", "timm", "numpy", "pandas", "detectron2", "faster-coco-eval")
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and start the stage again",
    errno.EDQUOT: "the disk quota is used up; free some space and start the stage again",
    errno.EACCES: "no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "no permission to write there; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; remove it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; remove it or choose another folder",
    errno.EISDIR: "a folder stands where a file is to be written; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` (full disk, permissions, …) into a one-line ``UserError``."""
    try:
        yield
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written: {reason}") from error


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it to ``path``.

    A file that exists under its final name is therefore whole: a killed process or a full disk leaves the previous
    file as it was. The temporary file is removed on failure.

    Raises:
        UserError: when the folder or the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        _make_folder_of(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # temporary files are private, and some libraries make theirs so; results are shared as any other file is
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def require_place(path: Path, read: Iterable[Path]) -> None:
    """Refuse a place for a file before time is spent on what goes there.

    Raises:
        UserError: when the place is that of a file that is ``read``, or cannot be written.
    """
    _spare(path, read)
    with writing(path):
        _make_folder_of(path)
        tempfile.TemporaryFile(dir=path.parent).close()


def _spare(path: Path, read: Iterable[Path]) -> None:
    if path.resolve() in {file.resolve() for file in read}:
        raise UserError(f"--out: {path} is one of the files that are read; name another place")


def _make_folder_of(path: Path) -> None:
    if path.is_dir():  # `.` and `..` would be refused with other words
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    path.parent.mkdir(parents=True, exist_ok=True)


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str, what: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: naming the file and ``what`` it should be, when it is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {what} is expected there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {what} is expected there") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits, too deep
        raise UserError(f"{path}: not valid JSON ({error}); {what} is expected there") from None


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp(path: Path | str) -> str:
    """Return a file's size and time, by which it is known to be the same without reading it."""
    found = Path(path).stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def sha256_of_input(path: Path | str, record: Path | str) -> str | None:
    """Return the SHA-256 of a file that a stage reads; where it is gone, the one in the stage's ``metrics.json``.

    A file of the recorded size and time is not read again. ``None`` where there is neither file nor record.
    """
    digest = time = None
    with contextlib.suppress(UserError, KeyError, TypeError):
        facts = read_json(record, "a stage's figures")["provenance"]
        digest = facts["inputs"][str(path)]
        time = facts["input_stamps"][str(path)]
    return sha256_file(path) if Path(path).is_file() and stamp(path) != time else digest


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of ``value``'s canonical JSON (sorted keys, no spaces): equal settings, equal digest."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # names of files may hold bytes that are no text
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def without_secrets(text: str, instead: str = "") -> str:
    """Return a text whose addresses lack the name, password or token before the host, which are nobody else's."""
    return re.sub(r"(?<=://)[^/\s]*@", instead, text)


def _git(*arguments: str) -> str:
    """Return what git says in the package's folder.

    Raises:
        OSError, subprocess.SubprocessError: when there is no git, or it has nothing to say.
    """
    here = Path(__file__)
    # a package that is installed, or unpacked, may lie in a checkout of something else
    for command in (["ls-files", "--error-unmatch", here.name], list(arguments)):
        answer = subprocess.run(
            ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
        )
    return answer.stdout.strip()


def git_origin() -> str | None:
    """Return where the checkout that the package runs from was cloned from, or its folder; None without git."""
    for arguments in (["remote", "get-url", "origin"], ["rev-parse", "--show-toplevel"]):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if answer := _git(*arguments):
                return without_secrets(answer)
    return None


@cache
def git_revision() -> str | None:
    """Return the commit of the checkout that the package runs from, ``-dirty`` appended if it was changed."""
    try:
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures may depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@dataclass
class StageRecord:
    """What a stage knows about itself from its start, to be written beside its figures.

    Attributes:
        stage: the stage's name, e.g. ``"knn"``.
        run: the run's name, e.g. ``"base"``.
        params: the stage's settings, and no others.
        inputs: the files it reads; each is hashed into the provenance.
        device: e.g. ``"cpu"`` or ``"cuda: NVIDIA H100"``.
        made_with: further facts for the provenance, e.g. the lock of all packages; files and code
            are added to the record's own.
        seconds: that earlier parts of the stage took.
    """

    stage: str
    run: str
    params: Mapping[str, Any]
    inputs: list[Path] = field(default_factory=list)
    device: str = "cpu"
    made_with: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.perf_counter)

    def go_on(self, made: Mapping[str, Any]) -> None:
        """Count what an earlier attempt took, of which :meth:`made` said ``made``."""
        self.seconds += made["seconds"]
        self.started = datetime.fromisoformat(made["started"])

    def made(self) -> dict[str, Any]:
        """Return how the stage is made as far as it is: for its record, and for a checkpoint that is gone on from."""
        facts: dict[str, Any] = {
            "git": git_revision(),
            "packages": package_versions(),
            "host": socket.gethostname(),
            "device": self.device,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds + time.perf_counter() - self._clock, 3),
            "code": used_code(),
        }
        for name, value in self.made_with.items():
            facts[name] = {**facts[name], **value} if isinstance(facts.get(name), dict) else value
        return facts

    def write(self, path: Path | str, metrics: Mapping[str, float], **extra: Any) -> dict[str, Any]:
        """Write ``metrics.json`` to ``path`` and return what was written.

        Args:
            path: where to; written last, so that its existence says that the stage is complete.
            metrics: figures by name (percentages where they are accuracies or precisions), finite numbers.
            extra: further tables, each under its own key (per class, per sequence, …).

        Raises:
            UserError: when ``path`` is one of the inputs, which it would take the place of.
            ValueError: when a figure is not a finite number (a stage must leave out what it could not measure).
        """
        _spare(Path(path), self.inputs)
        for name, value in metrics.items():
            if not isinstance(value, int | float) or value != value or value in (float("inf"), float("-inf")):
                raise ValueError(f"metric {name} is {value!r}; only finite numbers are written")
        facts = self.made()
        read: dict[str, Any] = {
            "config_sha256": sha256_json(dict(self.params)),
            "inputs": {str(path): sha256_file(path) for path in self.inputs},
            "input_stamps": {str(path): stamp(path) for path in self.inputs},
        }
        for name, value in read.items():
            facts[name] = {**value, **facts[name]} if name in facts else value
        record = {
            "stage": self.stage,
            "run": self.run,
            "metrics": dict(metrics),
            "params": dict(self.params),
            "provenance": facts,
            **extra,
        }
        write_json(path, record)
        return record
