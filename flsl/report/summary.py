"""``summary.md`` and ``summary.csv``: what ran, on what data, what came out, what is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flsl.report.ablations import HTML, MARKDOWN
from flsl.report.gains import gains
from flsl.report.markdown import SHOWN, cells, code, duration, name_of, table
from flsl.report.page import page
from flsl.report.published import COCO
from flsl.report.stale import stale_stages
from flsl.report.state import missing, missing_section, newest_config, stale_section, state, unplanned_section
from flsl.report.tables import check_some, wide
from flsl.runtime.ablations import FOLDER, read_ablations
from flsl.runtime.compared import Headline, changed_settings, headlines, ordered
from flsl.runtime.outputs import atomic, write_text
from flsl.runtime.progress import counted
from flsl.runtime.results import HISTORY, PRETRAIN, Project, Run, flat, mapping

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
_TABLE = re.compile(rf"\[([^]]+)\]\(({FOLDER}/[^)]+)/{re.escape(MARKDOWN)}\)")
_WIDEST = 12
_MOST_ROWS = 30


def write_summary(project: Project, markdown: Path | None, csv: Path | None, html: Path | None = None) -> None:
    """Write the summary of a project, as a page (Markdown, HTML) and as a table of all runs × all figures.

    Raises:
        UserError: when the project holds no runs, or a file cannot be written.
    """
    check_some(project)
    if csv is not None:
        with atomic(csv) as temporary:
            wide(project).to_csv(temporary, index=False)
    text = summary(project) if markdown is not None or html is not None else ""
    if markdown is not None:
        write_text(markdown, text)
    if html is not None:
        # snakemake's report shows it in a frame without a folder: what would be links to other files are their names
        alone = _TABLE.sub(rf"\1 (`\2/{HTML}`)", text)
        write_text(html, page(alone, f"Results of {project.name}"))


def summary(project: Project) -> str:
    """Return the summary of a project as Markdown."""
    runs = [run for run in project.runs if not run.baseline]
    figures = ordered({metric: None for run in project.runs for metric in run.figures})
    heads = headlines(run.figures for run in project.runs)
    shown = _shown(project, heads)
    gaps, stale = missing(project), stale_stages(project)
    parts = [
        f"# Results of {project.name}",
        state(gaps, stale),
        f"{counted(len(runs), 'pretraining run')} and {counted(len(project.runs) - len(runs), 'baseline')}. "
        "Accuracies and precisions are percentages; the best of a column is bold. FLSL: arXiv 2306.06203.",
        "## Headline figures",
        _headline_table(project, heads, shown),
        _left_out(project, shown),
        *_published(figures),
        *gains(project, heads, shown),
        *_ablations(project),
        "## Data",
        _data(project.manifests),
        "## What ran",
        *_what_ran(project, shown),
        "## What is missing",
        missing_section(gaps),
        "## What is stale",
        stale_section(project, stale),
        *unplanned_section(project),
        "## All figures",
        *_all_figures(project, figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(project: Project, heads: Sequence[Headline]) -> list[Run]:
    """Return the runs that have a row: all, or of many the baselines and the best by the first headline figure."""
    if len(project.runs) <= _MOST_ROWS or not heads:
        return project.runs[:_MOST_ROWS]
    first = heads[0].metric
    ranked = sorted(project.runs, key=lambda run: (not run.baseline, -run.figures.get(first, -math.inf)))
    chosen = {run.name for run in ranked[:_MOST_ROWS]}
    return [run for run in project.runs if run.name in chosen]


def _left_out(project: Project, shown: Sequence[Run]) -> str:
    if len(shown) == len(project.runs):
        return ""
    return f"The baselines and the best runs by the first figure; all {len(project.runs)} are in `summary.csv`."


def _headline_table(project: Project, heads: Sequence[Headline], shown: Sequence[Run]) -> str:
    if not heads:
        return "No evaluation has run yet."
    columns = [cells([run.figures.get(head.metric) for run in project.runs], head.metric) for head in heads]
    names = {run.name for run in shown}
    rows = [
        [name_of(run), *(column[place] for column in columns)]
        for place, run in enumerate(project.runs)
        if run.name in names
    ]
    return table(["run", *(head.label for head in heads)], rows)


def _published(figures: Iterable[str]) -> list[str]:
    """Return the papers' figures where there are COCO figures to read beside them."""
    if not set(figures) & {"coco/bbox/AP", "coco/segm/AP"}:
        return []
    rows = [[one.name, f"{one.box:.1f}", f"{one.mask:.1f}", one.source] for one in COCO]
    return [
        "### From the papers, not measured here",
        "Mask R-CNN on COCO val2017 with the 1x schedule, encoders pretrained on ImageNet-1K. Only a run with these "
        "data, this schedule and a ViT of that size can be compared with them.",
        table(["method", "COCO box AP", "COCO mask AP", "source"], rows),
    ]


def _ablations(project: Project) -> list[str]:
    """Return the section that says where the ablations' tables are."""
    found = read_ablations(project.folder, [])
    lines = [
        f"- [{name}]({FOLDER}/{name}/{MARKDOWN}): {one.caption or ', '.join(one.axes) or 'seeds'} "
        f"({counted(len({point.run for point in one.points}), 'run')})"
        for name, one in found.items()
    ]
    return ["## Ablations", "\n".join(lines)] if lines else []


def _data(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    if not manifests:
        return "No manifest was written (`flsl data check` does), so that nothing is known about the data."
    rows = []
    for name, manifest in sorted(manifests.items()):
        splits, classes, left_out = (mapping(manifest.get(key)) for key in ("splits", "classes", "quarantined"))
        sizes = mapping(manifest.get("image_sizes"))
        shown = [
            f"{split}: {mapping(facts).get('ok', mapping(facts).get('files', '?'))}"
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


def _what_ran(project: Project, shown: Sequence[Run]) -> list[str]:
    stages = _stage_names(project)
    changed = changed_settings(project.runs)
    base = next((run.name for run in project.runs if run.name == "base"), project.runs[0].name)
    usual = list(changed[base].items())
    rows = []
    for run in shown:
        own = {name: value for name, value in changed[run.name].items() if (name, value) not in usual}
        states = [_state(run, stage) for stage in stages]
        rows.append([name_of(run), "" if run.seed is None else run.seed, _settings(own), *states])
    records = [stage.provenance for run in project.runs for stage in run.stages.values() if stage.record is not None]
    origins = [
        f"- {label}: {', '.join(f'`{value}`' for value in values[:SHOWN])}"
        + (" and more" if len(values) > SHOWN else "")
        for label, key in (("commits", "git"), ("devices", "device"), ("hosts", "host"))
        if (values := sorted({str(origin[key]) for origin in records if origin.get(key)}))
    ]
    theirs = [f"- in {code(base)}: {_settings(changed[base])}"] if changed[base] else []
    header = ["run", "seed", f"differs from {code(base)} in", *stages]
    return [table(header, rows), "\n".join([*_common(project), *theirs, *origins])]


def _settings(values: Mapping[str, Any]) -> str:
    """Return settings with their values, of many the first."""
    shown = ", ".join(f"`{name}` = {value}" for name, value in list(values.items())[:SHOWN])
    return shown if len(values) <= SHOWN else f"{shown} and {len(values) - SHOWN} more"


def _common(project: Project) -> list[str]:
    """Return a line with the main settings that all pretraining runs share."""
    runs = [flat(run.settings) for run in project.runs if not run.baseline]
    shared = [
        f"`{name}` = {runs[0][name]}"
        for name in (f"{PRETRAIN}.{each}" for each in _MAIN)
        if runs and all(run.get(name) == runs[0].get(name) is not None for run in runs)
    ]
    return [f"- in all runs: {', '.join(shared)}"] if shared else []


def _all_figures(project: Project, figures: Sequence[str]) -> list[str]:
    """Return a table per stage, with the runs as rows or, where that is narrower, as columns."""
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


def _stage_names(project: Project) -> list[str]:
    """Return the stages that are planned, and those that any run has."""
    planned = newest_config(project).get("stages")
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
