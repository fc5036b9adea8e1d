"""How far a project is: what is planned and missing, and which results are stale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flsl.report.markdown import code, name_of
from flsl.report.stale import Stale
from flsl.runtime.ablations import ablation_names
from flsl.runtime.compared import ordered
from flsl.runtime.planned import read_planned
from flsl.runtime.progress import counted
from flsl.runtime.results import CONFIG, PRETRAIN, Project, Run, mapping

_LONGEST = 30  # lines of what is missing or stale


def state(missing: Sequence[str], stale: Sequence[Stale]) -> str:
    """Return one line: whether the figures are complete and current."""
    if not missing and not stale:
        return "**Complete and current**: every run has every planned stage, and nothing that they rest on has changed."
    gaps = f"[{counted(len(missing), 'gap')}](#what-is-missing)"
    old = f"[{counted(len(stale), 'stale result')}](#what-is-stale)"
    if not stale:
        return f"**Not complete**: {gaps}."
    return f"**Not current**: {old}." if not missing else f"**Neither complete nor current**: {gaps} and {old}."


def missing(project: Project) -> list[str]:
    """Return a line for each run that has not begun, each that lacks stages, and each file that cannot be read.

    Runs that are not planned any more lack nothing.
    """
    config, planned = newest_config(project), read_planned(project.folder)
    names = [*mapping(config.get("runs")), *mapping(config.get("baselines"))]
    if planned is not None:
        names = [*planned.runs, *planned.baselines]
    present = {run.name for run in project.runs}
    lines = [f"- {code(name)} has not begun" for name in names if name not in present]
    for run in project.runs:
        if (planned is None or run.name in names) and (absent := _absent(run, config)):
            lines.append(f"- {name_of(run)}: {', '.join(absent)}")
    return lines + [f"- {problem}" for problem in project.problems]


def _absent(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Return the stages that a run lacks."""
    complete = {name for name, stage in run.stages.items() if stage.record is not None}
    # a point of an ablation has stages of its own
    stages = run.config.get("stages", config.get("stages"))
    planned = {PRETRAIN, *(stages if isinstance(stages, list) else ())}
    return ordered((planned | set(run.stages) | set(run.broken)) - complete)


def unplanned_section(project: Project) -> list[str]:
    """Return the section about runs and ablations that the config no longer has, where there are any, as Markdown.

    They are neither gaps nor hidden: they may be those of another config of the same project.
    """
    planned = read_planned(project.folder)
    if planned is None:
        return []
    lines = []
    for run in project.runs:
        if run.name not in (*planned.runs, *planned.baselines):
            absent = _absent(run, newest_config(project))
            lines.append(f"- {name_of(run)}" + (f", without {', '.join(absent)}" if absent else ""))
    names = [name for name in ablation_names(project.folder) if name not in planned.ablations]
    lines += [f"- the ablation {code(name)}" for name in names]
    if not lines:
        return []
    folder = project.folder
    return [
        "## What is not planned",
        "The config that the workflow was started with last does not have them. They keep their figures until "
        f"`{folder}/runs/<run>` or `{folder}/ablations/<name>` is removed.",
        _bounded(lines),
    ]


def missing_section(lines: Sequence[str]) -> str:
    """Return what is missing as Markdown."""
    return _bounded(lines) or "Nothing: every run has every planned stage."


def stale_section(project: Project, stale: Sequence[Stale]) -> str:
    """Return what is stale as Markdown: equal reasons once, with all stages and runs that they concern."""
    if not stale:
        return "Nothing: settings, inputs and package code are those that the results were made with."
    groups: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in stale:
        groups[one.reasons][one.stage].append(one.run)
    lines = []
    for reasons, stages in groups.items():
        places = "; ".join(f"{stage} of {', '.join(code(run) for run in runs)}" for stage, runs in stages.items())
        lines.append(f"- {places}: {'; '.join(reasons)}")
    notes = ["These results were made before what is named here changed."]
    if any(one.stage == PRETRAIN for one in stale):
        notes.append("All figures of a run rest on its pretraining.")
    notes.append("`snakemake -n` says what it would run again; code alone makes it rerun nothing (`--forcerun` does).")
    return f"{' '.join(notes)}\n\n{_bounded(lines)}"


def newest_config(project: Project) -> Mapping[str, Any]:
    """Return the config that was resolved last: what is planned now."""
    known = [run for run in project.runs if run.config]
    return max(known, key=lambda run: (run.folder / CONFIG).stat().st_mtime_ns).config if known else {}


def _bounded(lines: Sequence[str]) -> str:
    rest = [f"- and {len(lines) - _LONGEST} more"] if len(lines) > _LONGEST else []
    return "\n".join([*lines[:_LONGEST], *rest])
