"""List runs, and what to do next with unfinished ones: shoal runs [STORAGE]"""

import logging

from shoal.command.run_table import STATES, RunSummary, summarise
from shoal.errors import ShoalError, UserError
from shoal.runs.locations import home
from shoal.storage.folder import Folder
from shoal.storage.records import Identity
from shoal.storage.run_folder import RunFolder
from shoal.terminal.arguments import JobParser
from shoal.terminal.tables import table

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Print a line for each run, newest last, and a line for each that is not finished.

    Raises:
        UserError: there are no runs there.
    """
    parser = JobParser(
        "shoal runs [STORAGE] [--experiment NAME] [--all]", "List runs, and what to do next with them."
    )
    parser.add_argument("storage", nargs="?", default="runs", help="storage_path of the runs; default: runs")
    parser.add_argument("--experiment", help="of which alone")
    parser.add_argument("--all", action="store_true", help="evaluations too")
    options = parser.parse_args(arguments)
    uri = options.storage if "://" in options.storage else str(home() / options.storage)
    runs = list_runs(Folder(uri), options.experiment, options.all)
    if not runs:
        raise UserError(f"'{uri}' holds no runs: name the storage_path that they were written to")
    rows = [("run", "state", "steps", "metric", "started")]
    rows += [(run.name, run.state, str(run.step or ""), run.metric, run.started) for run in runs]
    print(table(rows))
    for run in runs:
        if run.next:
            print(f"{run.name}: {STATES[run.state]}; {run.next}")
    return 0


def list_runs(
    storage: Folder, experiment: str | None = None, has_evaluations: bool = False
) -> list[RunSummary]:
    """Return the runs of a storage folder, oldest first; damaged ones are named in a warning."""
    experiments = [experiment] if experiment else storage.names()
    found = []
    for name in experiments:
        if name == "evaluations" and not has_evaluations and not experiment:
            continue
        for run in storage.names(name):
            folder = RunFolder(f"{storage.uri}/{name}/{run}")
            if not folder.exists(Identity.file):
                continue
            try:
                found.append(summarise(folder))
            except (ShoalError, ValueError) as error:
                logger.warning("%s: %s", folder.uri, error)
    return sorted(found, key=lambda run: run.identity.start_ms)
