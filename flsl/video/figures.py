"""The evaluation stage: DAVIS' figures as ``metrics.json``, and the contact sheets of what was evaluated."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsl.config.data import DavisDataSettings
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import StageRecord, atomic
from flsl.runtime.progress import warn
from flsl.video.davis_eval import evaluate
from flsl.video.records import Propagation, made_how
from flsl.video.sequences import is_annotated, sequence_names, split_list


@dataclass(frozen=True)
class Made:
    """What propagation has made.

    Attributes:
        masks: folder of the predicted masks, ``<sequence>/%05d.png``.
        previews: folder of the sequences' records and contact sheets; it may be missing for masks from elsewhere.
    """

    masks: Path
    previews: Path


def write_figures(
    data: DavisDataSettings,
    split: str,
    made: Made,
    out: Path,
    run: str,
    only: Iterable[str] = (),
    processes: int = 0,
    sheets: Path | None = None,
    where_annotated: bool = False,
    manifests: Sequence[Path] = (),
) -> dict[str, Any]:
    """Evaluate masks and write ``metrics.json``, with the tables ``sequences`` and ``objects`` beside the figures.

    Args:
        data: DAVIS' folders.
        split: name of the list of sequences.
        made: the masks and the records that tell with which settings they were made.
        out: the file.
        run: the run's name.
        only: sequences to evaluate; empty takes the split's.
        processes: number of processes at most; 0 takes one a processor.
        sheets: folder to copy the sequences' contact sheets to.
        where_annotated: of a split with no annotations but the first frames', write a record without figures.
        manifests: files that tell of the data set, for the record.

    Returns:
        what was written.

    Raises:
        UserError: as :func:`flsl.video.davis_eval.evaluate`, when sequences were made with different settings, and when
            contact sheets are wanted and the records are not about these masks, so that neither are the sheets.
    """
    names = sequence_names(data, split, only)
    where = {"split": split, "year": data.year, "resolution": data.resolution}
    known = made_how(made.previews, names, made.masks)
    if sheets is not None and known is None:
        raise UserError(f"--sheets: {made.previews} holds no contact sheets of {made.masks}; propagate it, or drop it")
    how = known or Propagation()
    params, read = {**how.params, **where}, [split_list(data, split), *manifests]
    record = StageRecord("davis", run, params, read, made_with=how.facts, seconds=how.seconds)
    if sheets is not None:
        for name in names:
            with atomic(sheets / f"{name}.jpg") as path:
                shutil.copyfile(require_file(made.previews / f"{name}.jpg", f"the contact sheet of {name}"), path)
    if where_annotated and not any(is_annotated(data, name) for name in names):
        warn(f"{split_list(data, split)}: only first frames are annotated; there are no figures, only masks")
        return record.write(out, {})
    found = evaluate(data, split, made.masks, names, processes)
    return record.write(out, found.metrics, sequences=found.sequences, objects=found.objects)
