"""Open MLflow on the store of the runs: shoal ui [STORE] [--port 5000]"""

import os
import sys

from shoal.config.secrets import hide, mask, reveal
from shoal.registry.sqlite_store import create_store
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.tracking.cockpit import runs_tables
from shoal.tracking.config import StoreConfig


def main(arguments: list[str]) -> int:
    """Make an SQLite store if there is none, so that MLflow and a job do not make its tables at once; become MLflow."""
    parser = JobParser(
        "shoal ui [STORE] [--port 5000]", "Open MLflow on the runs of this folder, or on another store."
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="e.g. sqlite:////home/you/other/mlflow.db")
    parser.add_argument("--port", type=int, default=5000, help="of the page, on this machine alone")
    options = parser.parse_args(arguments)
    store = reveal(resolve_tracking_uri(StoreConfig(tracking_uri=hide(options.store or None))))
    if store.startswith(("http://", "https://")):
        print(f"MLflow runs already, at {mask(store)}")
        return 0
    create_store(store)
    address = f"http://127.0.0.1:{options.port}"
    print(f"MLflow on {mask(store)}: {address} (Ctrl-C ends it)", flush=True)
    for experiment, page in runs_tables(store).items():
        print(f"  {experiment}, best first: {address}/{page}", flush=True)
    # One server process and no job runners take 0.5 GB of memory; MLflow's defaults take over 2 GB.
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(options.port), "--workers", "1"]
    os.execve(sys.executable, command, environment)
