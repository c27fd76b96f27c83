"""deploy/tracking: a training through a restart of PostgreSQL, a backup, and the same from the backup."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from mlflow import MlflowClient

from running import ROOT, Place, Trace, answers, eventually, free_port, mlflow_record
from tracking_host import reason

DEPLOY = ROOT / "deploy" / "tracking"
RUN = ("scale.num_workers=0", "run_name=run", "train.epochs=40", "checkpoint.every_steps=200")

pytestmark = pytest.mark.long


@pytest.fixture
def homes() -> Iterator[Path]:
    """A folder with a short path that PostgreSQL's own user may go through."""
    if why := reason():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "TRACKING_HOME": str(home),
        "PYTHON": sys.executable,
        "TRACKING_WORKERS": "1",
        **more,
    }


def call(home: Path, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(DEPLOY / script), *arguments]
    return subprocess.run(command, env=environment(home), capture_output=True, text=True)


@contextlib.contextmanager
def serving(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with (home.parent / f"{home.name}.log").open("w") as log:
        process = subprocess.Popen(
            [str(DEPLOY / "start.sh")],
            env=environment(home, TRACKING_PORT=str(port)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually(lambda: answers(f"{uri}/health") or process.poll() is not None, 90, "the server starts")
        assert process.poll() is None, (home.parent / f"{home.name}.log").read_text()
        yield uri, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert not (home / "postgres" / "postmaster.pid").exists(), "PostgreSQL ended with it"


def assert_refuses_strangers(uri: str) -> None:
    """Nobody without a password, or with a wrong one, is shown a run or a file, writes one, or makes a user."""
    api = "/api/2.0/mlflow"
    wrong = {"Authorization": f"Basic {base64.b64encode(b'admin:guessed').decode()}"}
    reads = [
        "/",
        f"{api}/experiments/search?max_results=1",
        f"{api}-artifacts/artifacts",
        "/signup",
        "/version",
    ]
    writes = [f"{api}/runs/create", f"{api}/users/create", "/graphql", "/v1/traces"]
    requests = [(path, None) for path in reads] + [(path, b"{}") for path in writes]
    for path, body in requests:
        for headers in ({}, wrong):
            with pytest.raises(HTTPError, match="401"):
                urlopen(Request(uri + path, body, {"Content-Type": "application/json", **headers}))


def as_user(uri: str, user: str, secret: str, path: str, method: str = "GET", **body: str) -> None:
    """Call the server as a user, whom it must not refuse."""
    basic = base64.b64encode(f"{user}:{secret}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(f"{uri}/api/2.0/mlflow/{path}", data, headers, method=method)):
        pass


def assert_remembers_who_is_in(uri: str, server: psutil.Process, password: str) -> None:
    """A password is hashed, for some 0.1 s of CPU time, once and not with each request; a new one counts at once."""
    search = "experiments/search?max_results=1"
    as_user(uri, "admin", password, search)
    before = cpu_seconds(server)
    for _ in range(50):
        as_user(uri, "admin", password, search)
    assert cpu_seconds(server) - before < 2.0
    first, second = "a-first-password", "another-password"
    as_user(uri, "admin", password, "users/create", "POST", username="guest", password=first)
    as_user(uri, "guest", first, search)
    as_user(uri, "admin", password, "users/update-password", "PATCH", username="guest", password=second)
    with pytest.raises(HTTPError, match="401"):
        as_user(uri, "guest", first, search)
    as_user(uri, "guest", second, search)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and of those below it."""
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def artifacts_of(uri: str, run_id: str, folder: Path) -> dict[str, bytes]:
    client = MlflowClient(uri, uri)
    path = Path(client.download_artifacts(run_id, "", str(folder)))
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_training_through_a_restart_of_the_database_is_whole_and_so_is_its_backup(
    homes: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, backup = homes / "a", homes / "b", homes / "backup"
    with serving(first) as (uri, server):
        password = (first / "admin-password").read_text().strip()
        assert_remembers_who_is_in(uri, server, password)
        assert_refuses_strangers(uri)
        credentials = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        process = place.start("train", *RUN, f"track.tracking_uri={uri}", **credentials)
        place.wait_for_step(process, "run", 100)
        eventually(lambda: place.folder("run").tracked().run_id is not None, 60, "a run in MLflow")
        restart = subprocess.run(
            ["bash", "-c", f". {DEPLOY}/common.sh; postgres restart"],
            env=environment(first),
            capture_output=True,
            text=True,
        )
        assert restart.returncode == 0, restart.stderr
        done = place.wait(process)
        assert done.code == 0, done.out + done.err
        run_id = done.result["mlflow_run_id"]
        run, history = mlflow_record(uri, run_id)
        assert run.info.status == "FINISHED"
        assert history == Trace.of(place.folder("run")).points
        files = artifacts_of(uri, run_id, tmp_path / "first")
        assert "config.yaml" in files
        kept = call(first, "backup.sh", str(backup))
        assert kept.returncode == 0, kept.stderr
    assert call(first, "restore.sh", str(backup)).stderr.startswith("error: "), (
        "not over a database that is there"
    )
    restored = call(second, "restore.sh", str(backup))
    assert restored.returncode == 0, restored.stderr
    with serving(second) as (uri, _):
        run_there, history_there = mlflow_record(uri, run_id)
        assert history_there == history
        assert run_there.info.status == "FINISHED"
        assert run_there.data.params == run.data.params
        assert artifacts_of(uri, run_id, tmp_path / "second") == files
