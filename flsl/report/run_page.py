"""A page about one run: its figures, how long each stage took, and all that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from flsl.report.markdown import cells, code, duration, table
from flsl.report.page import page
from flsl.report.stale import Stale, stale_stages
from flsl.report.tables import reference
from flsl.runtime.attempts import read_attempts
from flsl.runtime.compared import headlines
from flsl.runtime.errors import UserError, nearest
from flsl.runtime.outputs import write_text
from flsl.runtime.results import Project, Run, mapping

_WHOLE = ("project", "results", "tracking", "cluster", "runs", "ablations")  # settings of the project, not of a run


def write_run_page(project: Project, name: str, path: Path) -> None:
    """Write the page of the run ``name`` to ``path``, as HTML.

    Raises:
        UserError: when there is no such run, or the file cannot be written.
    """
    _write(project, name, stale_stages(project), path)


def write_run_pages(project: Project, folder: Path) -> None:
    """Write the pages of all runs into ``folder``, as ``<run>.html``.

    Raises:
        UserError: when a file cannot be written.
    """
    stale = stale_stages(project)
    for run in project.runs:
        _write(project, run.name, stale, folder / f"{run.name}.html")


def _write(project: Project, name: str, stale: Sequence[Stale], path: Path) -> None:
    write_text(path, page(_page(project, name, stale), f"{project.name}: {name}"))


def run_page(project: Project, name: str) -> str:
    """Return the page of a run as Markdown.

    Raises:
        UserError: when there is no such run.
    """
    return _page(project, name, stale_stages(project))


def _page(project: Project, name: str, stale: Sequence[Stale]) -> str:
    known = {run.name: run for run in project.runs}
    if name not in known:
        raise UserError(f"--run: {project.folder} has no run '{name}'{nearest(name, known)}")
    run = known[name]
    kind = "baseline: its encoder was not pretrained here" if run.baseline else "pretraining run"
    parts = [
        f"# {name}",
        f"A {kind} of {project.name}. Accuracies and precisions are percentages.",
        "## Headline figures",
        _figures(project, run),
        "## Stages",
        _stages(run),
        *_stale([one for one in stale if one.run == name]),
        "## Environment",
        _environment(run),
        "## Inputs",
        _inputs(run),
        "## Settings",
        _settings(run),
        "## All figures",
        table(["figure", "value"], [[code(metric), f"{value:.6g}"] for metric, value in run.figures.items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(project: Project, run: Run) -> str:
    heads = headlines([run.figures])
    if not heads:
        return "It has not been evaluated yet."
    base = reference(project)
    shown: Sequence[Run] = [run] if base is None or base.name == run.name else [run, base]
    rows = [[head.label, *cells([one.figures.get(head.metric) for one in shown], head.metric)] for head in heads]
    return table(["figure", *(code(one.name) for one in shown)], rows)


def _stages(run: Run) -> str:
    rows = []
    for stage in run.stages.values():
        origin = stage.provenance
        attempts = len(read_attempts(stage.folder))
        rows.append(
            [
                stage.name,
                "begun" if stage.record is None else duration(stage.seconds),
                origin.get("started", ""),
                origin.get("device", ""),
                origin.get("host", ""),
                code(str(origin.get("git") or "unknown")[:12]),
                attempts or "",
            ]
        )
    return table(["stage", "time", "started", "device", "host", "commit", "jobs"], rows)


def _stale(stale: Sequence[Stale]) -> list[str]:
    lines = [f"- {one.stage}: {'; '.join(one.reasons)}" for one in stale]
    return ["**Stale**: changed since these results were made", "\n".join(lines)] if lines else []


def _environment(run: Run) -> str:
    found = {stage.name: mapping(stage.provenance.get("packages")) for stage in run.stages.values()}
    names = list(dict.fromkeys(name for packages in found.values() for name in packages))
    rows = []
    for name in names:
        versions = list(dict.fromkeys(str(packages[name]) for packages in found.values() if name in packages))
        rows.append([name, ", ".join(versions)])
    return table(["package", "version"], rows) if rows else "Nothing is recorded yet."


def _inputs(run: Run) -> str:
    rows = [
        [stage.name, code(path), code(str(digest)[:16])]
        for stage in run.stages.values()
        for path, digest in mapping(stage.provenance.get("inputs")).items()
    ]
    return table(["stage", "file", "SHA-256"], rows) if rows else "Nothing is recorded yet."


def _settings(run: Run) -> str:
    own = {name: value for name, value in run.config.items() if name not in _WHOLE}
    text = yaml.safe_dump(own, sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```" if own else "There is no config.yaml."
