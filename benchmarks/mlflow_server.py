"""The tracking server of deploy/tracking for benchmarks: started, killed with its database, asked, and filled."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from harness import ROOT, free_ports, scratch

START_S = 120.0
SCRIPT = ROOT / "deploy" / "tracking" / "start.sh"
# A copy of a row with other values in some columns, whatever columns MLflow's tables have.
COPY = """
insert into {table} select made.* from {table} was, generate_series(1, %(copies)s) number,
    lateral jsonb_populate_record(was, {changes}) made where was.run_uuid = %(run)s
"""
RUN = "jsonb_build_object('run_uuid', md5('copy ' || number))"
NAME = "'t' || lpad(number::text, 5, '0')"
# The same value in both tables of metrics, which is another in each run.
VALUE = "jsonb_build_object('value', abs(hashint4(number) %% 100000) / 1e5)"
CHANGES = {
    "runs": f"{RUN} || jsonb_build_object('name', {NAME}, 'start_time', was.start_time + number)",
    "params": RUN,
    "tags": f"{RUN} || case when was.key = 'mlflow.runName' then jsonb_build_object('value', {NAME}) else '{{}}' end",
    "metrics": f"{RUN} || {VALUE}",
    "latest_metrics": f"{RUN} || {VALUE}",
}


class MlflowServer:
    """The server in a folder of its own, which its next start finds as it was.

    Attributes:
        uri: its address.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        self._env = {**os.environ, "TRACKING_HOME": str(home), "TRACKING_PORT": str(port)}
        self._env |= {"PYTHON": os.environ.get("PYTHON", sys.executable)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        return (self._home / "admin-password").read_text().strip()

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            SystemExit: it does not.
        """
        log = self._home.with_suffix(".log")
        with log.open("a") as out:
            self._process = subprocess.Popen(
                [str(SCRIPT)], env=self._env, stdout=out, stderr=out, start_new_session=True
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the tracking server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server and its database by SIGKILL, all at once."""
        assert self._process is not None
        database = int((self._home / "postgres" / "postmaster.pid").read_text().split()[0])
        processes = [psutil.Process(pid) for pid in (self._process.pid, database)]
        processes += [child for one in processes for child in one.children(recursive=True)]
        for ask in (psutil.Process.suspend, psutil.Process.kill):
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    ask(process)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=60)

    def database(self) -> Any:
        """Return a connection to its PostgreSQL."""
        import psycopg

        password = (self._home / "database-password").read_text().strip()
        return psycopg.connect(
            host=str(self._home / "run"), user="shoal", password=password, dbname="mlflow", autocommit=True
        )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False


@contextlib.contextmanager
def mlflow_server() -> Iterator[MlflowServer]:
    """Run a new server; what it keeps is gone afterwards. Clients of this process get its password."""
    with scratch() as folder:
        folder.chmod(0o711)  # PostgreSQL's own user goes through it
        server = MlflowServer(folder / "server")
        server.start()
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": server.password}
        try:
            yield server
        finally:
            server.stop()


def copy_run(server: MlflowServer, run_id: str, copies: int) -> None:
    """Copy a run that MLflow wrote, row by row, so often; names, times and values of metrics differ."""
    with server.database() as database:
        for table, changes in CHANGES.items():
            text = COPY.format(table=table, changes=changes).encode()
            database.execute(text, {"run": run_id, "copies": copies})
        database.execute("analyze")
