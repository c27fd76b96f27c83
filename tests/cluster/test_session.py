"""What a Ray cluster that Shoal starts on this machine listens on, and who may use it."""

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

from shoal.runs.machine import check_cluster

# Starts a cluster, has a worker work, and prints where each process listens; then what a stranger without a token gets.
STARTER = """
import contextlib, json, os, subprocess, sys
from pathlib import Path
import psutil
from shoal.cluster import session
from shoal.runs import machine
from shoal.runs.config import ScaleConfig
machine.CLUSTER_FILE = Path("/nowhere")
if "token" in sys.argv:
    session.listening_on_loopback = lambda: contextlib.nullcontext(False)
session.connect(ScaleConfig(num_workers=1), 0)
import ray
worker = ray.get(ray.remote(lambda: (os.getpid(), os.environ.get("GLOO_SOCKET_IFNAME"))).remote())
own = psutil.Process()
listening = [
    (process.name(), connection.laddr.ip)
    for process in [own, *own.children(recursive=True)]
    for connection in process.net_connections(kind="inet")
    if connection.status == psutil.CONN_LISTEN
]
code = "import sys; from ray._raylet import GcsClient; print(GcsClient(address=sys.argv[1]).get_all_node_info())"
environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
environment.pop("RAY_AUTH_TOKEN", None)
stranger = subprocess.run(
    [sys.executable, "-c", code, ray.get_runtime_context().gcs_address],
    env=environment, capture_output=True, text=True,
)
said = {"listening": listening, "stranger": [stranger.returncode, stranger.stdout + stranger.stderr]}
print(json.dumps({**said, "worker": worker, "left": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}))
session.disconnect()
"""


def started(*arguments: str, **variables: str) -> dict[str, object]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")
    }
    environment |= variables
    done = subprocess.run(
        [sys.executable, "-c", STARTER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own; gRPC writes 127.0.0.1 as one of IPv6."""
    return ip_address(address.removeprefix("::ffff:")).is_loopback


def test_a_cluster_that_is_started_here_listens_on_loopback_alone(tmp_path: Path) -> None:
    """Beside the token of some other cluster, which Ray by itself takes and refuses."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of another cluster")
    found = started(HOME=str(tmp_path))
    listening = found["listening"]
    assert isinstance(listening, list)
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [one for one in listening if not is_loopback(one[1])] == []
    assert found["worker"][1].startswith("lo")  # type: ignore[index]
    assert found["left"] is None


def test_a_cluster_that_answers_is_accepted(cluster: dict[str, str]) -> None:
    check_cluster(cluster["address"])


def test_where_it_cannot_it_demands_a_token() -> None:
    found = started("token")
    code, text = found["stranger"]  # type: ignore[misc]
    assert code != 0
    assert "auth" in text.lower()
