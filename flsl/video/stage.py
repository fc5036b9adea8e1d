"""The propagation stage: sequences to folders of masks and previews, each whole or absent, those done before kept."""

from __future__ import annotations

import re
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from PIL import Image

from flsl.config.data import DavisDataSettings
from flsl.config.video import DavisSettings
from flsl.data.palette import palette
from flsl.model.backbone import Backbone
from flsl.runtime.distributed import describe, fitting
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import StageRecord, writing
from flsl.runtime.progress import bar, say, warn
from flsl.video.previews import Previews, preview_paths
from flsl.video.propagate import Segmented, copy_first_mask, segment
from flsl.video.records import is_made, masks_digest, record_path
from flsl.video.sequences import LabelMap, Video, open_video

Segmenter: TypeAlias = Callable[[Video], Iterator[Segmented]]

STAGE = "davis/propagate"
_WRITERS = 2
_WAITING = 16  # masks that may wait to be written


@dataclass(frozen=True)
class Outputs:
    """Where results go.

    Attributes:
        masks: folder of ``<sequence>/%05d.png``, indexed PNGs in DAVIS' layout.
        previews: folder of ``<sequence>.gif``, ``<sequence>.jpg`` (contact sheet) and ``<sequence>.json`` (record).
    """

    masks: Path
    previews: Path


@dataclass(frozen=True)
class Method:
    """How masks are made.

    Attributes:
        segment: the function.
        run: the run's name.
        params: all that its results depend on besides the sequence.
        device: for the record.
        files: that the encoder comes from.
    """

    segment: Segmenter
    run: str
    params: Mapping[str, Any]
    device: str = "cpu"
    files: Sequence[Path] = ()


def by_encoder(
    backbone: Backbone, run: str, settings: DavisSettings, device: torch.device, files: Sequence[Path] = ()
) -> Method:
    """Return the method of propagating labels by the features of an encoder, which is on ``device``."""
    params = {**settings.protocol(), "encoder": backbone.name, "weights_sha256": backbone.digest()}
    function = partial(segment, backbone=backbone, settings=settings, device=device)
    return Method(function, run, params, describe(device), files)


def by_copying(run: str) -> Method:
    """Return the baseline that repeats the first frame's mask."""
    return Method(copy_first_mask, run, {"copy_first_mask": True})


@fitting("davis.batch_size: too many frames for the GPU's memory; lower it")
def propagate_sequences(
    data: DavisDataSettings, names: Iterable[str], method: Method, outputs: Outputs, fresh: bool = False
) -> None:
    """Segment sequences and write their masks and previews; one that fails does not keep the others back.

    Args:
        data: DAVIS' folders.
        names: the sequences.
        method: how masks are made.
        outputs: where they go.
        fresh: make again what an earlier call with equal settings and inputs has made.

    Raises:
        UserError: before the first sequence when the masks would take the place of the data set's frames or masks, and
            after the last one, naming those that failed and why.
    """
    for part in (data.frames, data.masks):
        if outputs.masks.resolve() == (Path(data.root) / part).resolve():
            raise UserError(f"--out: {outputs.masks} holds the data set's own files; name another folder")
    failures: list[str] = []
    for name in names:
        try:
            video = open_video(data, name)
            masks = outputs.masks / name
            made = [*(masks / f"{path.stem}.png" for path in video.frames), *preview_paths(outputs.previews, name)]
            record = record_path(outputs.previews, name)
            if not fresh and is_made(record, method.run, method.params, _inputs(video, method), made, masks):
                say(f"{name}: made before with these settings; kept")
            else:
                _segment(video, method, outputs)
        except UserError as error:
            failures.append(f"{name}: {error}")
            warn(failures[-1])
    if failures:
        raise UserError(f"{len(failures)} sequence(s) failed: {'; '.join(failures)}")


def _segment(video: Video, method: Method, outputs: Outputs) -> None:
    record = StageRecord(STAGE, method.run, method.params, _inputs(video, method), method.device)
    previews = Previews(len(video.frames))
    final, path_of_record = outputs.masks / video.name, record_path(outputs.previews, video.name)
    unfinished = outputs.masks / f".{video.name}.{uuid.uuid4().hex}.tmp"
    with writing(outputs.masks):
        outputs.masks.mkdir(parents=True, exist_ok=True)
        for left in outputs.masks.iterdir():  # by a process that was killed
            if re.fullmatch(rf"\.{re.escape(video.name)}\.[0-9a-f]{{32}}\.tmp", left.name):
                shutil.rmtree(left, ignore_errors=True)
        unfinished.mkdir()
        try:
            with bar(f"davis propagate {video.name}", len(video.frames)) as shown, _Writer() as writer:
                for index, (path, found) in enumerate(zip(video.frames, method.segment(video), strict=True)):
                    writer.write(unfinished / f"{path.stem}.png", found.labels)
                    previews.add(index, found.picture, found.labels)
                    shown.advance()
            with writing(path_of_record):
                path_of_record.unlink(missing_ok=True)
            if final.is_symlink():  # what it names is not ours
                final.unlink()
            elif final.exists():
                shutil.rmtree(final)
            unfinished.rename(final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    previews.write(outputs.previews, video.name)
    # last, so that a record says that all of the sequence is there
    record.write(
        path_of_record,
        {"frames": len(video.frames)},
        encoder=[str(path) for path in method.files],
        masks_sha256=masks_digest(final),
    )


def _inputs(video: Video, method: Method) -> list[Path]:
    return [video.first_mask, *video.frames, *method.files]


class _Writer:
    """Writes masks as indexed PNGs on threads, while the next ones are made."""

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._waiting: deque[Future[None]] = deque()
        return self

    def write(self, path: Path, labels: LabelMap) -> None:
        self._waiting.append(self._pool.submit(write_mask, path, labels))
        if len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


def write_mask(path: Path, labels: LabelMap) -> None:
    """Write a label map (height, width) as an indexed PNG, in the colours that DAVIS gives its first objects."""
    image = Image.fromarray(labels)
    image.putpalette(palette())
    image.save(path, format="PNG")
