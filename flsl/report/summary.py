"""``summary.md`` and ``summary.csv``: what ran, on what data, what came out, what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flsl.report.markdown import SHOWN, cells, code, counted, duration, listed, name_of, points, table
from flsl.report.tables import (
    Headline,
    changed_settings,
    check_some,
    headlines,
    ordered,
    reference,
    wide,
)
from flsl.runtime.outputs import atomic, write_text
from flsl.runtime.results import CONFIG, HISTORY, PRETRAIN, Project, Run, flat

_MAIN = (
    "encoder.name",
    "encoder.patch_size",
    "epochs",
    "batch_size",
    "prototypes",
    "learning_rate",
    "tau_sa",
    "tau_ca",
)
_WIDEST = 12


def write_summary(project: Project, markdown: Path | None, csv: Path | None) -> None:
    """Write the summary of a project, as a page to read and as a table of all runs × all figures.

    Raises:
        UserError: when the project holds no runs, or a file cannot be written.
    """
    check_some(project)
    if csv is not None:
        with atomic(csv) as temporary:
            wide(project).to_csv(temporary, index=False)
    if markdown is not None:
        write_text(markdown, summary(project))


def summary(project: Project) -> str:
    """Return the summary of a project as Markdown."""
    runs = [run for run in project.runs if not run.baseline]
    figures = ordered({metric: None for run in project.runs for metric in run.figures})
    heads = headlines(figures)
    parts = [
        f"# Results of {project.name}",
        f"{counted(len(runs), 'pretraining run')} and {counted(len(project.runs) - len(runs), 'baseline')}. "
        "Accuracies and precisions are percentages; the best of a column is bold. FLSL: arXiv 2306.06203.",
        "## Headline figures",
        _headline_table(project, heads),
        *_gains(project, heads),
        "## Data",
        _data(project.manifests),
        "## What ran",
        *_what_ran(project),
        "## What is missing",
        _missing(project),
        "## All figures",
        *_all_figures(project, figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline_table(project: Project, heads: Sequence[Headline]) -> str:
    if not heads:
        return "No evaluation has run yet."
    columns = [cells([run.figures.get(head.metric) for run in project.runs], head.metric) for head in heads]
    rows = [[name_of(run), *(column[place] for column in columns)] for place, run in enumerate(project.runs)]
    return table(["run", *(head.label for head in heads)], rows)


def _gains(project: Project, heads: Sequence[Headline]) -> list[str]:
    """Return the section that says whether pretraining was worth it."""
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
    rows = [[code(run.name), *(points(_gain(run, base, head)) for head in heads)] for run in runs]
    sentences = []
    for head in heads:
        gains = {run.name: gain for run in runs if (gain := _gain(run, base, head)) is not None}
        if not gains:
            continue
        behind = [name for name, gain in gains.items() if gain <= 0]
        leader = max(gains, key=lambda name: gains[name])
        sentences.append(
            f"- {head.label}: {len(gains) - len(behind)} of {counted(len(gains), 'run')} better than `{base.name}` "
            f"({base.figures[head.metric]:.2f}); the largest difference is {points(gains[leader])} points"
            f" (`{leader}`)."
            + (f" **Pretraining does not beat the untrained encoder in {listed(behind)}.**" if behind else "")
        )
    return [
        title,
        f"Differences to the untrained encoder `{base.name}`, in percentage points.",
        table(["run", *(head.label for head in heads)], rows),
        "\n".join(sentences),
        _sampling_error(project),
    ]


def _sampling_error(project: Project) -> str:
    """Say how much of a difference chance explains, where the number of validation images is known."""
    counts = {
        images["val"]
        for run in project.runs
        for stage in run.stages.values()
        if isinstance(images := (stage.record or {}).get("images"), Mapping) and isinstance(images.get("val"), int)
    } - {0}
    seeds = len({run.seed for run in project.runs if not run.baseline})
    repeated = "one seed" if seeds == 1 else f"{seeds} seeds"
    if len(counts) != 1:
        return f"The runs have {repeated}."
    (count,) = counts
    return (
        f"The classification figures rest on {count} validation images (standard error of a percentage: up to "
        f"{50 / math.sqrt(count):.1f} points), and the runs have {repeated}."
    )


def _data(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    if not manifests:
        return "No manifest was written (`flsl data check` does), so that nothing is known about the data."
    rows = []
    for name, manifest in sorted(manifests.items()):
        splits, classes, left_out = (_mapping(manifest.get(key)) for key in ("splits", "classes", "quarantined"))
        sizes = _mapping(manifest.get("image_sizes"))
        shown = [
            f"{split}: {_mapping(facts).get('ok', _mapping(facts).get('files', '?'))}"
            for split, facts in splits.items()
            if split
        ]
        number = classes.get("count", len(classes)) if classes else manifest.get("classes", "")
        smallest, largest = ("×".join(map(str, sizes.get(key) or [])) for key in ("min", "max"))
        rows.append(
            [
                name,
                f"`{manifest.get('root', '')}`",
                ", ".join(shown) or manifest.get("files", ""),
                len(number) if isinstance(number, list) else number,
                smallest if smallest == largest else f"{smallest} to {largest}",
                left_out.get("count", 0),
                f"`{str(manifest.get('content_sha256', ''))[:12]}`",
            ]
        )
    return table(["set", "folder", "usable files", "classes", "image sizes", "left out", "content"], rows)


def _what_ran(project: Project) -> list[str]:
    stages = _stage_names(project)
    changed = changed_settings(project.runs)
    usual = {name: _most_common(changed.values(), name) for own in changed.values() for name in own}
    rows = []
    for run in project.runs:
        own = ", ".join(
            f"`{name}` = {value}" for name, value in list(changed[run.name].items())[:SHOWN] if value != usual[name]
        )
        states = [_state(run, stage) for stage in stages]
        rows.append([name_of(run), "" if run.seed is None else run.seed, own, *states])
    records = [stage.provenance for run in project.runs for stage in run.stages.values() if stage.record is not None]
    origins = [
        f"- {label}: {', '.join(f'`{value}`' for value in values[:SHOWN])}"
        + (" and more" if len(values) > SHOWN else "")
        for label, key in (("commits", "git"), ("devices", "device"), ("hosts", "host"))
        if (values := sorted({str(origin[key]) for origin in records if origin.get(key)}))
    ]
    return [table(["run", "seed", "differs in", *stages], rows), "\n".join([*_common(project), *origins])]


def _most_common(settings: Iterable[Mapping[str, Any]], name: str) -> Any:
    values = [own[name] for own in settings if name in own]
    return max(values, key=values.count)


def _common(project: Project) -> list[str]:
    """Return a line with the main settings that all pretraining runs share."""
    runs = [flat(run.settings) for run in project.runs if not run.baseline]
    shared = [
        f"`{name}` = {runs[0][name]}"
        for name in (f"{PRETRAIN}.{each}" for each in _MAIN)
        if runs and all(run.get(name) == runs[0].get(name) is not None for run in runs)
    ]
    return [f"- in all runs: {', '.join(shared)}"] if shared else []


def _missing(project: Project) -> str:
    """Name the runs and stages that are planned, or have begun, and are not complete."""
    config = _newest_config(project)
    stages = config.get("stages")
    planned = {PRETRAIN, *(stages if isinstance(stages, list) else ())}
    present = {run.name for run in project.runs}
    names = [*_mapping(config.get("runs")), *_mapping(config.get("baselines"))]
    lines = [f"- {code(name)} has not begun" for name in names if name not in present]
    for run in project.runs:
        complete = {name for name, stage in run.stages.items() if stage.record is not None}
        absent = ordered((planned | set(run.stages) | set(run.broken)) - complete)
        if absent:
            lines.append(f"- {name_of(run)}: {', '.join(absent)}")
    lines += [f"- {problem}" for problem in project.problems]
    return "\n".join(lines) or "Nothing: every run has every planned stage."


def _all_figures(project: Project, figures: Sequence[str]) -> list[str]:
    """Return a table a stage, with the runs as rows or, where that is narrower, as columns."""
    parts = []
    for stage in dict.fromkeys(metric.split("/")[0] for metric in figures):
        metrics = [metric for metric in figures if metric.split("/")[0] == stage]
        runs = [run for run in project.runs if any(metric in run.figures for metric in metrics)]
        parts.append(f"### {stage}")
        if min(len(metrics), len(runs)) > _WIDEST:
            parts.append(f"{len(metrics)} figures of {len(runs)} runs: see `summary.csv`.")
            continue
        columns = [cells([run.figures.get(metric) for run in runs], metric) for metric in metrics]
        if len(metrics) <= _WIDEST:
            header = ["run", *(metric.partition("/")[2] for metric in metrics)]
            rows = [[name_of(run), *(column[place] for column in columns)] for place, run in enumerate(runs)]
        else:
            header = ["figure", *(name_of(run) for run in runs)]
            rows = [[metric.partition("/")[2], *column] for metric, column in zip(metrics, columns, strict=True)]
        parts.append(table(header, rows))
    return parts


def _newest_config(project: Project) -> Mapping[str, Any]:
    """Return the config that was resolved last: what is planned now."""
    known = [run for run in project.runs if run.config]
    return max(known, key=lambda run: (run.folder / CONFIG).stat().st_mtime_ns).config if known else {}


def _stage_names(project: Project) -> list[str]:
    """Return the stages that are planned, and those that any run has."""
    planned = _newest_config(project).get("stages")
    found = {stage for run in project.runs for stage in (*run.stages, *run.broken)}
    names = {PRETRAIN, *found, *(planned if isinstance(planned, list) else ())}
    return ordered(names)


def _state(run: Run, name: str) -> str:
    stage = run.stages.get(name)
    if stage is None:
        return "unreadable" if name in run.broken else "—"
    if stage.record is None:
        return "begun" if (stage.folder / HISTORY).exists() else "—"
    if run.baseline and name == PRETRAIN:
        return "not trained"
    return duration(stage.seconds)


def _gain(run: Run, base: Run, head: Headline) -> float | None:
    value = run.figures.get(head.metric)
    return None if value is None else value - base.figures[head.metric]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
