"""The run that is asked for, wherever its project lies."""

from __future__ import annotations

from pathlib import Path

from flsl.runtime.errors import UserError, nearest, require_folder
from flsl.runtime.results import PRETRAIN, Run, read_run, run_folders


def find_run(name: str, project: Path | None) -> Run:
    """Return the run with this name.

    Args:
        name: the run's name, or its folder.
        project: ``results/<project>``; None looks through ``results`` of the working directory.

    Raises:
        UserError: when there is no such run, several projects have one, or it was not completed.
    """
    if project is not None:
        projects = [require_folder(project, "a project's results")]
    elif (Path(name) / PRETRAIN).is_dir():
        # its name and its project are those of the path, which may be `.`
        folder = Path(name).absolute()
        return _complete(folder.resolve() if ".." in folder.parts else folder)
    else:
        projects = sorted(path for path in Path("results").glob("*") if (path / "runs").is_dir())
        if not projects:
            raise UserError("--project-folder: there is no project in ./results; name one: results/<project>")
    folders = [path for one in projects for path in run_folders(one)]
    found = [path for path in folders if path.name == name]
    if not found:
        known = sorted({path.name for path in folders})
        where = projects[0] if len(projects) == 1 else "./results"
        raise UserError(f"{where}: no run '{name}'{nearest(name, known)}; there are {', '.join(known) or 'none'}")
    if len(found) > 1:
        raise UserError(
            f"several projects have a run '{name}' ({', '.join(path.parent.parent.name for path in found)}); "
            "name one with --project-folder"
        )
    return _complete(found[0])


def _complete(folder: Path) -> Run:
    problems: list[str] = []
    run = read_run(folder, problems)
    stage = run.stages.get(PRETRAIN)
    if stage is None or stage.record is None:
        raise UserError(problems[0] if problems else f"{folder / PRETRAIN}: holds no finished pretraining")
    return run
