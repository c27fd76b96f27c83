"""A Ray cluster with tokens refuses who has none, or another one, at each port that takes work, and runs nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest

from running import eventually, ray_cluster

pytestmark = pytest.mark.long

TOKEN, OTHER = "a" * 64, "b" * 64
# The control store, which drivers and nodes join by, and the port for `ray.init("ray://...")`.
METHODS = [
    ("address", "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", grpc.StatusCode.OK),
    ("client", "/ray.rpc.RayletDriver/ClusterInfo", grpc.StatusCode.NOT_FOUND),  # it has not connected
]
# What a driver does first.
RUN_A_TASK = """
import sys, logging, ray
ray.init(sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
print("ran", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with ray_cluster(has_dashboard=True, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as made:
        yield made


def status(url: str, token: str | None, body: dict[str, str] | None = None) -> int:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        return int(urlopen(Request(url, data, headers), timeout=30).status)
    except HTTPError as error:
        return error.code


def test_the_dashboard_refuses_to_show_and_to_run(cluster: dict[str, str], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    dashboard = f"http://{cluster['dashboard']}"
    job = {"entrypoint": f"touch {ran}"}
    for token, refused in ((None, 401), (OTHER, 403)):
        for path in ("/api/jobs/", "/api/cluster_status", "/nodes?view=summary", "/api/v0/actors", "/logs"):
            assert status(dashboard + path, token) == refused, path
        assert status(f"{dashboard}/api/jobs/", token, job) == refused
        assert status(f"http://{cluster['agent']}/api/job_agent/jobs/", token, job) == refused
    assert not ran.exists()
    assert status(f"{dashboard}/api/jobs/", TOKEN) == 200
    assert status(f"{dashboard}/api/jobs/", TOKEN, job) == 200
    eventually(ran.exists, 60, "the job of one with the token runs")


def called(address: str, method: str, token: str | None) -> grpc.StatusCode:
    """Call a method of gRPC with an empty request, and return the answer's status."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[no-any-return]
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("port", "method", "status_with_token"), METHODS)
def test_a_port_of_grpc_refuses_a_call(
    cluster: dict[str, str], port: str, method: str, status_with_token: grpc.StatusCode
) -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED
    answers = [called(cluster[port], method, token) for token in (None, OTHER, TOKEN)]
    assert answers == [refused, refused, status_with_token]


def test_no_task_runs_without_the_token(cluster: dict[str, str], tmp_path: Path) -> None:
    def run_a_task(**env: str) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        command = [sys.executable, "-c", RUN_A_TASK, cluster["address"]]
        own = {"HOME": str(tmp_path), **env}
        return subprocess.run(command, env={**kept, **own}, capture_output=True, text=True)

    refused = run_a_task(RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "ran" not in refused.stdout
    assert "authenticat" in (refused.stdout + refused.stderr).lower()
    assert run_a_task(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN).stdout == "ran 42\n"
