"""deploy/tracking on a host of its own: MLflow on PostgreSQL, as all other hosts reach it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hosts import Hosts
from running import ROOT, answers, eventually

SCRIPTS = ROOT / "deploy" / "tracking"
PORT = 5000


def reason() -> str | None:
    """Why there is no such server here."""
    if not (list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")):
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.getuid() == 0 and subprocess.run(["id", "-u", "postgres"], capture_output=True).returncode:
        return "there is no user 'postgres' to run PostgreSQL, which refuses root"
    return None


class TrackingHost:
    """The server of a host; `env` is what its clients need."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        self._hosts, self._name = hosts, name
        self._folder = hosts.home(name) / "tracking"
        address = hosts.addresses[name]
        self.uri = f"http://{address}:{PORT}"
        self._own = {"TRACKING_HOME": str(self._folder), "PYTHON": sys.executable, "TRACKING_WORKERS": "1"}
        self._own |= {"TRACKING_HOST": address, "TRACKING_NAMES": f"{address}:{PORT}"}

    @property
    def env(self) -> dict[str, str]:
        password = (self._folder / "admin-password").read_text().strip()
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": password,
        }

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        log = self._hosts.home(self._name) / "tracking.log"
        process = self._hosts.start(self._name, str(SCRIPTS / "start.sh"), log=log, **self._own)
        with self._hosts.network(self._name):
            eventually(
                lambda: answers(f"{self.uri}/health") or process.poll() is not None, 90, "MLflow starts"
            )
        assert process.poll() is None, log.read_text()

    def restart_database(self) -> None:
        """Restart PostgreSQL alone: connections to it end."""
        restart = f". {SCRIPTS}/common.sh; postgres restart"
        self._hosts.run(self._name, "bash", "-c", restart, **self._own)
