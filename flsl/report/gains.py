"""Whether pretraining was worth it: differences to the untrained encoder, and how much of them is chance."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from flsl.report.markdown import code, listed, points, table
from flsl.report.tables import reference
from flsl.runtime.compared import Headline
from flsl.runtime.progress import counted
from flsl.runtime.results import Project, Run, flat


def gains(project: Project, heads: Sequence[Headline], shown: Sequence[Run]) -> list[str]:
    """Return the section that says whether pretraining was worth it, as Markdown paragraphs.

    Args:
        project: the results.
        heads: the figures to judge by.
        shown: the runs that have a row in the table; the sentences count all.
    """
    base = reference(project)
    runs = [run for run in project.runs if not run.baseline]
    if not runs:
        return []
    title = "## What pretraining gains"
    if base is None:
        return [title, "There is no untrained baseline to compare with: add one of kind `random` to `baselines`."]
    heads = [head for head in heads if head.metric in base.figures]
    if not heads:
        return [title, f"Nothing has been evaluated on `{base.name}` yet, so that no gain can be told."]
    rows = [[code(run.name), *(points(_gain(run, base, head)) for head in heads)] for run in shown if not run.baseline]
    sentences = [sentence for head in heads if (sentence := _sentence(runs, base, head))]
    return [
        title,
        f"Differences to the untrained encoder `{base.name}`, in percentage points.",
        table(["run", *(head.label for head in heads)], rows),
        "\n".join(sentences),
        _chance(project, heads),
    ]


def _sentence(runs: Sequence[Run], base: Run, head: Headline) -> str:
    gains = {run.name: gain for run in runs if (gain := _gain(run, base, head)) is not None}
    if not gains:
        return ""
    behind = [name for name, gain in gains.items() if gain <= 0]
    leader = max(gains, key=lambda name: gains[name])
    text = (
        f"- {head.label}: {len(gains) - len(behind)} of {counted(len(gains), 'run')} better than `{base.name}` "
        f"({base.figures[head.metric]:.2f}); the largest difference is {points(gains[leader])} points (`{leader}`)."
    )
    seeds = _seed_deviation(runs, head)
    if seeds is not None:
        deviation, count = seeds
        text += f" Seeds alone make a standard deviation of {deviation:.2f} (from {count} runs)."
        unclear = [name for name, gain in gains.items() if 0 < gain <= 2 * deviation]
        if unclear:
            text += f" Within twice that, and so no clear gain: {listed(unclear)}."
    if behind:
        text += f" **Pretraining does not beat the untrained encoder in {listed(behind)}.**"
    return text


def _seed_deviation(runs: Sequence[Run], head: Headline) -> tuple[float, int] | None:
    """Return the standard deviation between runs that differ in their seeds only, pooled, and the number of such runs.

    ``None`` where there are none.
    """
    groups: dict[str, dict[int | None, float]] = defaultdict(dict)
    for run in runs:
        if head.metric in run.figures:
            settings = {name: value for name, value in flat(run.settings).items() if name != "seed"}
            groups[json.dumps(settings, sort_keys=True, default=str)][run.seed] = run.figures[head.metric]
    squares, freedom, count = 0.0, 0, 0
    for seeds in groups.values():
        values = list(seeds.values())
        mean = sum(values) / len(values)
        squares += sum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
        count += len(values) if len(values) > 1 else 0
    return (math.sqrt(squares / freedom), count) if freedom else None


def _chance(project: Project, heads: Sequence[Headline]) -> str:
    """Say on how many images the figures rest, and how many seeds there are."""
    sentences = []
    images = _counts(project, ("knn", "linear"), "images", "val")
    if len(images) == 1:
        (count,) = images
        sentences.append(
            f"The classification figures rest on {count} validation images (standard error of a percentage: up to "
            f"{50 / math.sqrt(count):.1f} points)."
        )
    for stage, name, what in (("coco", "COCO", "validation images"), ("uavdt", "UAVDT", "test frames")):
        found = _counts(project, (stage,), "data", "val")
        if len(found) == 1 and any(head.metric.startswith(f"{stage}/") for head in heads):
            sentences.append(
                f"{name} figures rest on {found.pop()} {what} and one fine-tuning per run, whose own randomness can be "
                "points; only several seeds tell what a difference is worth."
            )
    seeds = len({run.seed for run in project.runs if not run.baseline})
    sentences.append(f"The runs have {'one seed' if seeds == 1 else f'{seeds} seeds'}.")
    return " ".join(sentences)


def _counts(project: Project, stages: Sequence[str], table: str, split: str) -> set[int]:
    """Return the numbers of images that stages' records tell, without 0."""
    found: set[int] = set()
    for run in project.runs:
        for name in stages:
            record = run.stages[name].record if name in run.stages else None
            counts = (record or {}).get(table)
            value = counts.get(split) if isinstance(counts, Mapping) else None
            value = value.get("images") if isinstance(value, Mapping) else value
            if isinstance(value, int):
                found.add(value)
    return found - {0}


def _gain(run: Run, base: Run, head: Headline) -> float | None:
    value = run.figures.get(head.metric)
    return None if value is None else value - base.figures[head.metric]
