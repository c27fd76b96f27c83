"""Sync a run folder to MLflow, completely; a second time changes nothing: shoal sync RUN_FOLDER"""

from shoal.errors import ShoalError, TrainingError, UserError
from shoal.registry.client import without_secrets
from shoal.registry.sqlite_store import check_store
from shoal.storage.records import Identity
from shoal.storage.run_folder import RunFolder
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import result_line
from shoal.tracking.sweep_sync import sync


def main(arguments: list[str], program: str = "shoal sync") -> int:
    """Check the folder, sync it, report where it is."""
    parser = JobParser(
        f"{program} RUN_FOLDER [track.tracking_uri=URI]", "Send a run folder to MLflow, completely."
    )
    parser.add_argument("run", help="a run folder: storage_path/experiment_name/run_name, local or s3://")
    parser.add_argument("setting", nargs="?", help="track.tracking_uri=URI syncs to another server")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    if not folder.exists(Identity.file):
        raise UserError(
            f"'{options.run}' is no run folder (it holds no {Identity.file}): give the folder a run was written to"
        )
    holder = folder.watch_holder()
    if holder:
        raise UserError(
            f"'{options.run}' is being worked on by {holder.process}: that process syncs it; wait for its end"
        )
    if options.setting:
        key, _, uri = options.setting.partition("=")
        if key != "track.tracking_uri" or not uri:
            raise UserError(f"'{options.setting}' is not understood: write track.tracking_uri=URI")
        folder.update(Identity, tracking_uri=without_secrets(uri))
    check_store(str(folder.identity().tracking_uri))
    try:
        run_id = sync(folder)
    except ShoalError:  # a damaged file, or a driver that has begun meanwhile
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise TrainingError(
            f"MLflow at {folder.identity().tracking_uri} does not accept it ({type(error).__name__}: {reason}): "
            "nothing is lost; try again when it answers"
        ) from error
    print(f"synced to {folder.identity().tracking_uri} as run {run_id}")
    print(result_line(folder.uri))
    return 0
