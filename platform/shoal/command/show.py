"""Print one run: shoal show RUN"""

import json

from shoal.command.run_table import STATES, RunSummary, summarise
from shoal.errors import UserError
from shoal.runs.locations import home
from shoal.storage.folder import Folder
from shoal.storage.records import Identity, Result, SweepResult, TrainResult, TransferResult
from shoal.storage.run_folder import RunFolder
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import result_line, sweep_report, train_report, transfer_report
from shoal.terminal.tables import table


def main(arguments: list[str]) -> int:
    """Print what a run folder holds: its state, its result as the job printed it, and what to do next.

    Raises:
        UserError: there is no such run.
    """
    parser = JobParser("shoal show RUN", "Print one run: its state, its result, and what to do next with it.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or the name of a run in ./runs")
    run = summarise(find_run(parser.parse_args(arguments).run))
    print(f"run     {run.folder.uri}")
    print(
        f"state   {run.state}: {STATES[run.state]}, started {run.started}"
        + (f", step {run.step}" if run.step else "")
    )
    if run.identity.reason:
        print(f"reason  {' '.join(run.identity.reason.split())}")
    if run.next:
        print(f"next    {run.next}")
    print(f"mlflow  {run.identity.tracking_uri}  run {run.folder.tracked().run_id or '(not there yet)'}")
    if run.folder.exists(Result.file):
        print(_report(run))
    return 0


def find_run(name: str) -> RunFolder:
    """Return the folder of a run by its path, or by its name, with or without the experiment, below `runs`.

    Raises:
        UserError: there is none, or there are several.
    """
    if RunFolder(name).exists(Identity.file):
        return RunFolder(name)
    storage = Folder(str(home() / "runs"))
    places = [
        f"{storage.uri}/{name}",
        *(f"{storage.uri}/{experiment}/{name}" for experiment in storage.names()),
    ]
    found = [place for place in places if RunFolder(place).exists(Identity.file)]
    if len(found) != 1:
        what = f"names {len(found)} runs ({', '.join(found)})" if found else "is no run"
        raise UserError(f"'{name}' {what}: give the folder of one; `shoal runs` lists them")
    return RunFolder(found[0])


def _report(run: RunSummary) -> str:
    """Return a result as its job printed it, or its metrics."""
    result = json.loads(run.folder.read(Result.file))
    if run.state == "FINISHED":
        if run.identity.is_sweep and (sweep := run.folder.load(SweepResult)):
            return sweep_report(sweep)
        if "base_width" in result and (transfer := run.folder.load(TransferResult)):
            return transfer_report(transfer)
        if "world_size" in result and (trained := run.folder.load(TrainResult)):
            return train_report(trained)
    lines = (
        [table([(name, f"{value:.6g}") for name, value in sorted(run.metrics.items())])]
        if run.metrics
        else []
    )
    return "\n".join([*lines, result_line(run.folder.uri)])
