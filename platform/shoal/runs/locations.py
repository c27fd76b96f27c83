"""Where runs and their records are kept: absolute paths and URIs of what a config names."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.registry.client import without_secrets

if TYPE_CHECKING:  # reports name the home folder, and need no torch, which a run's config imports
    from shoal.runs.config import RunConfig
    from shoal.tracking.config import StoreConfig


def home() -> Path:
    """The folder that relative paths of storage and tracking are under.

    The working directory; inside `ray job submit` that is an upload which Ray deletes, so there it is
    `$SHOAL_HOME`, else `~/shoal`.
    """
    named = os.environ.get("SHOAL_HOME")
    if named:
        return Path(named).expanduser().resolve()
    return Path.home() / "shoal" if is_upload(Path.cwd()) else Path.cwd()


def is_upload(path: Path) -> bool:
    """Whether a path is in the upload of a job, which Ray deletes when the job has ended."""
    return "runtime_resources" in path.parts


def storage_uri(config: "RunConfig") -> str:
    """The absolute storage_path."""
    if "://" in config.storage_path:
        return config.storage_path.rstrip("/")
    return str(home() / Path(config.storage_path).expanduser())


def resolve_tracking_uri(track: "StoreConfig") -> str:
    """The tracking URI in force, without secrets; the path of an SQLite file is absolute, `~` is the home folder."""
    uri = track.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return without_secrets(uri) if path == uri else f"sqlite:///{home() / Path(path).expanduser()}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment of an SQLite store keeps artifacts: beside the database file."""
    path = uri.removeprefix("sqlite:///")
    return (Path(path).parent / "mlartifacts").as_uri() if path != uri else None


def this_command() -> str | None:
    """Return the command that this process was called by, for a shell; None where there is none, as in a notebook."""
    called = Path(sys.argv[0])
    if not called.is_file() or "ipykernel" in called.name:
        return None
    return shlex.join(["python", *sys.argv] if called.suffix == ".py" else [called.name, *sys.argv[1:]])


def sync_command() -> str:
    """Return how a person syncs a run from where this process was called: as a job, or by the command `shoal`."""
    job = Path(sys.argv[0])
    return f"python {job.with_name('sync.py')}" if (job.parent / "_path.py").is_file() else "shoal sync"
