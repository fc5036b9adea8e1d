"""The view of MLflow's table of runs that this project's experiment is looked at in: settings and figures as columns.

MLflow shows no figure until its columns are chosen. It keeps chosen ones as *views*, in tags of the experiment; this
makes one, which stands under *Views* above the table and has an address of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from flsl.runtime.compared import NO_RESULTS, changed_settings, headlines, ordered
from flsl.runtime.results import Project, Run
from flsl.track.names import mlflow_name

KEY = "flsl"
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "Settings and figures"
_MOST = 30  # columns; all others are a click away, under Columns
_LONGEST = 4500  # of a tag, in every version of MLflow


def table_view(project: Project) -> str:
    """Return the value of the experiment's tag :data:`TAG`.

    Columns are the settings that differ between the runs, the headline figures, then what else the stages say as far
    as there is room; runs stand in the order in which they were begun, their stages folded below them.
    """
    names = [f"params.`{mlflow_name(name)}`" for name in _differing(project.runs)]
    names += [f"metrics.`{mlflow_name(name)}`" for name in _figures(project.runs)]
    while True:
        text = _view(names[:_MOST])
        if len(text) <= _LONGEST:
            return text
        names = names[: min(len(names), _MOST) - 1]


def address(server: str, experiment: str) -> str:
    """Return where the view is seen: ``server`` is what MLflow's pages are at, e.g. ``http://localhost:5000``."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={KEY}"


def _view(columns: Sequence[str]) -> str:
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": dict.fromkeys(columns, 150),
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    # the times only order the views of an experiment; equal results make an equal view
    about = {"name": NAME, "createdAt": 0, "updatedAt": 0}
    return json.dumps({**about, "state": json.dumps(state, separators=(",", ":"))}, separators=(",", ":"))


def _differing(runs: Sequence[Run]) -> list[str]:
    changed = changed_settings(runs)
    seeds = {run.seed for run in runs}
    return [*(["seed"] if len(seeds) > 1 else []), *sorted({name for own in changed.values() for name in own})]


def _figures(runs: Sequence[Run]) -> list[str]:
    known = ordered({name: None for run in runs for name in run.figures})
    first = [head.metric for head in headlines(run.figures for run in runs)]
    stages = [name for name in known if name.split("/")[0] not in NO_RESULTS and name not in first]
    return [*first, *stages]
