"""Close runs whose process is gone, in their folders and in MLflow: shoal reap STORE"""

from shoal.config.secrets import hide
from shoal.errors import UserError
from shoal.runs.locations import home
from shoal.storage.folder import Folder
from shoal.terminal.arguments import JobParser
from shoal.terminal.doctor_report import reap_report
from shoal.workflows.reap import is_tracking_uri, reap, write_reaped


def main(arguments: list[str], program: str = "shoal reap") -> int:
    """Look twice where once does not tell, close, report.

    Raises:
        UserError: there are no runs there.
    """
    parser = JobParser(
        f"{program} STORE",
        "Close runs that say RUNNING while no process works on them. One that lives is left alone.",
    )
    parser.add_argument(
        "store", metavar="STORE", help="a storage_path (runs, s3://bucket/runs), or MLflow's address"
    )
    store = hide(parser.parse_args(arguments).store)
    if not is_tracking_uri(store) and not Folder(store if "://" in store else str(home() / store)).names():
        raise UserError(f"'{store}' holds no runs: name the storage_path that they were written to")
    runs = reap(store, lambda text: print(text, flush=True))
    print(reap_report(write_reaped(runs, store)))
    return 0
