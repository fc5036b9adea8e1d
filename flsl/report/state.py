"""How far a project is: what is planned and missing, and which results are stale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flsl.report.markdown import code, name_of
from flsl.report.stale import Stale
from flsl.runtime.compared import ordered
from flsl.runtime.progress import counted
from flsl.runtime.results import CONFIG, PRETRAIN, Project, mapping

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
    """Return a line for each run that has not begun, each that lacks stages, and each file that cannot be read."""
    config = newest_config(project)
    present = {run.name for run in project.runs}
    names = [*mapping(config.get("runs")), *mapping(config.get("baselines"))]
    lines = [f"- {code(name)} has not begun" for name in names if name not in present]
    for run in project.runs:
        complete = {name for name, stage in run.stages.items() if stage.record is not None}
        # a point of an ablation has stages of its own
        stages = run.config.get("stages", config.get("stages"))
        planned = {PRETRAIN, *(stages if isinstance(stages, list) else ())}
        absent = ordered((planned | set(run.stages) | set(run.broken)) - complete)
        if absent:
            lines.append(f"- {name_of(run)}: {', '.join(absent)}")
    return lines + [f"- {problem}" for problem in project.problems]


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
