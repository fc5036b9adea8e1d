"""From a project's results folder to MLflow: ``flsl track sync``."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from flsl.config.checking import check
from flsl.config.experiment import TrackingSettings
from flsl.runtime.compared import own_settings
from flsl.runtime.errors import UserError, require_folder
from flsl.runtime.progress import track, warn
from flsl.runtime.results import CONFIG, Run, project_name, read_config, read_project, read_run, run_folders
from flsl.track.ablations import parts
from flsl.track.lock import sending
from flsl.track.mirror import Counts, Mirror, Place
from flsl.track.store import Seen, default_uri, open_store
from flsl.track.table import TAG, table_view


def sync(project_folder: Path | str, settings: TrackingSettings | None = None, within: float | None = None) -> Counts:
    """Bring MLflow to what the files of a project say; a second call sends nothing.

    One MLflow run per run of the project, with the pretraining settings, and those of evaluations that any run varies,
    as params and the final figures of all stages as metrics; below it one per stage, with its settings, curves and
    files. What is gone from the folder goes from the view (to MLflow's trash). Runs of other origin in the same
    experiment are left alone.

    Args:
        project_folder: ``results/<project>``.
        settings: how to send, and to which store; without ``uri`` to that of ``MLFLOW_TRACKING_URI``, else to SQLite
            in the folder.
        within: seconds after which to stop; the next call goes on from there.

    Returns:
        What was done.

    Raises:
        UserError: when the folder holds no runs.
        TrackingError: when the store does not answer or refuses.
    """
    settings = settings or TrackingSettings()
    called = require_folder(project_folder, "a project's results")
    folder = called.resolve()
    folders = {path.name: path for path in run_folders(folder)}
    if not folders:
        raise UserError(f"{folder}: holds no runs; a project's folder has runs/<run>/config.yaml and results below it")
    uri = settings.uri or default_uri(folder)
    place = Place(project_name(called), folder)
    with (
        sending(folder, max(30.0, 3 * settings.timeout)),
        open_store(uri, settings.timeout, within, at_once=True, project_folder=folder) as store,
    ):
        experiment = store.experiment(settings.experiment or place.project, {"flsl.project": place.project})
        seen: dict[str, list[Seen]] = defaultdict(list)
        for one in store.runs(experiment, {"flsl.project": place.project}):
            seen[one.tags.get("flsl.run", "")].append(one)
        _warn_of_others(seen, folders, place)
        mirror = Mirror(store, experiment, place, settings, ablations=parts(folder), varied=_varied(folders))
        for name, path in track(folders.items(), "runs to MLflow", len(folders)):
            if mirror.up_to_date(path, seen[name]):
                mirror.counts.unchanged += 1
                continue
            problems: list[str] = []
            run = read_run(path, problems)
            for problem in problems:
                warn(problem)
            mirror.run(run, seen[name])
        for name in seen.keys() - folders.keys():
            for one in seen[name]:
                if one.tags.get("flsl.folder") == str(folder):
                    mirror.remove(one)
        if mirror.counts.runs or mirror.counts.removed:
            store.tag_experiment(experiment, TAG, table_view(read_project(folder)))
        mirror.counts.experiment = experiment
    return mirror.counts


def _varied(folders: Mapping[str, Path]) -> set[str]:
    """Return the settings of pretraining, and those of evaluations that any run varies."""
    runs = (Run(name, path, read_config(path / CONFIG, [])) for name, path in folders.items())
    return {name for run in runs if not run.baseline for name in own_settings(run)}


def recorded_settings(project_folder: Path) -> TrackingSettings:
    """Return ``tracking`` of the config that was resolved last in a project's folder, or the defaults."""
    paths = sorted(project_folder.glob(f"runs/*/{CONFIG}"), key=lambda path: path.stat().st_mtime_ns)
    recorded = read_config(paths[-1], []).get("tracking") if paths else None
    if isinstance(recorded, dict):
        with contextlib.suppress(UserError):  # of a version with other settings
            return check(TrackingSettings, recorded, str(paths[-1]))
    return TrackingSettings()


def _warn_of_others(seen: dict[str, list[Seen]], folders: dict[str, Path], place: Place) -> None:
    """Say so when runs of equal names came from another folder: two projects in one experiment overwrite each other."""
    others = {one.tags.get("flsl.folder") for name in folders for one in seen.get(name, [])} - {str(place.folder)}
    for other in sorted(str(folder) for folder in others):
        warn(
            f"runs of these names were sent from {other} before and now show {place.folder}; "
            "where that is another project, set tracking.experiment to keep both"
        )
