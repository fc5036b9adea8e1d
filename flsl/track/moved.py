"""A store that was moved, or copied, with its project's folder: MLflow keeps the absolute places of artifacts."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
_MOVED = """
    SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id)
    WHERE key = 'flsl.project' AND artifact_location LIKE 'file://%/mlartifacts' AND artifact_location != ?
"""
_FORGET = """
    DELETE FROM tags WHERE key IN ('flsl.files', 'flsl.artifacts', 'flsl.ablation_files') AND run_uuid IN
    (SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, length(:old) + 1) = :old || '/')
"""
_RUNS = """
    UPDATE runs SET artifact_uri = :new || substr(artifact_uri, length(:old) + 1)
    WHERE substr(artifact_uri, 1, length(:old) + 1) = :old || '/'
"""
_EXPERIMENTS = "UPDATE experiments SET artifact_location = :new WHERE artifact_location = :old"
_FOLDERS = "UPDATE tags SET value = :new WHERE key = 'flsl.folder' AND value = :old"


def bring_home(database: Path, timeout: float) -> None:
    """Have the artifacts of a project's own store lie beside it, where they lay beside it before it was moved.

    The tags that say which files were sent go, so that the next sync stores what was not moved along.

    Raises:
        sqlite3.Error: when the database cannot be read or written.
    """
    home = database.parent
    new = (home / ARTIFACTS).as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=timeout)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return  # MLflow has not made its tables yet
        for (old,) in connection.execute(_MOVED, (new,)).fetchall():
            place = {"old": old, "new": new}
            before = Path(unquote(urlsplit(old).path)).parent
            with connection:
                for statement in (_FORGET, _RUNS, _EXPERIMENTS):
                    connection.execute(statement, place)
                connection.execute(_FOLDERS, {"old": str(before), "new": str(home)})
