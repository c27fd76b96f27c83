"""What tests share: jobs run as their users run them, a small Ray cluster, a real MLflow server, what is compared."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from shoal.storage.run_folder import RunFolder
from shoal.terminal import errors
from shoal.tracking.journal import JournalReader

ROOT = Path(__file__).resolve().parents[1]
# Ray gives its workers niceness 15 by default, so that beside tests of other processes they hardly run.
RAY_ENV = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

# A user's model that takes its time, so that a kill at a given step hits it.
SLOW_MODULE = """
import time

from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training:
            time.sleep(0.01)
        return self.layer(x)
"""
# A training of that model, whose steps and checkpoints a test counts.
SLOW_SETTINGS = ("model.name=slow:Net", "data.source=synthetic:classification?rows=2000", "train.epochs=1000")
# It takes longer, so that a small run lasts long enough to lose a host or to be signalled.
PACED_MODULE = SLOW_MODULE.replace("0.01", "0.05")
# After so long a job hangs; a quiet machine needs a tenth. What is checked by `eventually` has limits of its own.
JOB_TIMEOUT_S, STEP_TIMEOUT_S = 900.0, 600.0

TRACKED = ("train/", "val/", "test/", "best/")


def slow_run(steps: int) -> tuple[str, ...]:
    """Return the settings of a training with `SLOW_MODULE`, named `run`, with a checkpoint every 100 steps."""
    return ("run_name=run", *SLOW_SETTINGS, f"train.max_steps={steps}", "checkpoint.every_steps=100")


@dataclass
class Finished:
    """A job that ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def result(self) -> dict[str, Any]:
        last = self.out.strip().splitlines()[-1]
        assert last.startswith("result: "), self.out + self.err
        return dict(json.loads(Path(last.removeprefix("result: ")).read_text()))


class Place:
    """A working directory with a runs/ folder and an mlflow.db of its own."""

    def __init__(self, path: Path, env: dict[str, str]) -> None:
        self.path = path
        self.env = {**os.environ, **RAY_ENV, **env}
        self.env.pop("MLFLOW_TRACKING_URI", None)

    def add_module(self, name: str, text: str) -> None:
        """Write a module of the user's, which jobs and their workers can import."""
        (self.path / f"{name}.py").write_text(text)
        self.env["PYTHONPATH"] = f"{self.path}:{os.environ.get('PYTHONPATH', '')}"

    def start(self, job: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments],
            cwd=self.path,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, job: str, *arguments: str, **env: str) -> Finished:
        since = time.monotonic()
        process = self.start(job, *arguments, **env)
        return self.wait(process, since)

    def run_in_process(self, job: str, *arguments: str) -> Finished:
        """Run a job that starts nothing, e.g. one that is refused, without the seconds that imports take."""
        since, out, err = time.monotonic(), io.StringIO(), io.StringIO()
        main = importlib.import_module(job).main
        modules, handlers = (
            set(sys.modules),
            {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)},
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, self.env, clear=True))
            stack.enter_context(mock.patch.object(sys, "argv", [job, *arguments]))
            stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
            stack.enter_context(contextlib.chdir(self.path))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            code = errors.run(main)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in set(sys.modules) - modules:  # the user's own; another test's have the same names
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(self.path):
                del sys.modules[name]
        return Finished(code, out.getvalue(), err.getvalue(), time.monotonic() - since)

    def wait(self, process: subprocess.Popen[str], since: float | None = None) -> Finished:
        since = time.monotonic() if since is None else since
        try:
            out, err = process.communicate(timeout=JOB_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"the job did not end within {JOB_TIMEOUT_S:.0f} s:\n{out}\n{err}")
        return Finished(process.returncode, out, err, time.monotonic() - since)

    def train(self, *arguments: str, **env: str) -> dict[str, Any]:
        done = self.run("train", *arguments, **env)
        assert done.code == 0, done.out + done.err
        return done.result

    def folder(self, run: str, experiment: str = "shoal") -> RunFolder:
        return RunFolder(str(self.path / "runs" / experiment / run))

    def wait_for_step(self, process: subprocess.Popen[str], run: str, step: int) -> None:
        """Wait until a run's journal holds a training step."""
        folder, until = self.folder(run), time.monotonic() + STEP_TIMEOUT_S
        while time.monotonic() < until:
            points = JournalReader(folder).read()
            if any(point.key == "train/loss" and point.step >= step for point in points):
                return
            if process.poll() is not None:
                pytest.fail(f"the job ended before step {step}: {process.communicate()}")
            time.sleep(0.05)
        process.kill()
        pytest.fail(f"step {step} was not reached: {process.communicate()}")


def twin_place(tmp_path: Path) -> Place:
    """A place for an uninterrupted run of the same job with `slow:Net`, on this machine alone."""
    path = tmp_path / "twin"
    path.mkdir()
    twin = Place(path, {})
    twin.add_module("slow", SLOW_MODULE)
    return twin


def last_step(folder: RunFolder) -> int:
    """Return the last step whose loss is in the journal."""
    return max((point.step for point in JournalReader(folder).read() if point.key == "train/loss"), default=0)


@dataclass(frozen=True)
class Trace:
    """What a run left behind: final weights, and every recorded value."""

    checkpoint: str
    weights: dict[str, np.ndarray]
    points: dict[tuple[str, int], float]

    @classmethod
    def of(cls, folder: RunFolder) -> "Trace":
        local = folder.local("checkpoints")
        assert local is not None
        last = max(local.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        read = JournalReader(folder).read()
        points = {(point.key, point.step): point.value for point in read if point.key.startswith(TRACKED)}
        return cls(last.name, _weights(last), points)


def _weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """Return the weights of a checkpoint, which may be in shards alone."""
    whole = checkpoint / "model.safetensors"
    if whole.exists():
        return load_file(whole)
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "all.pt"
        dcp_to_torch_save(checkpoint, file)
        found = torch.load(file, weights_only=True)
    start = "model/"
    return {name[len(start) :]: one.numpy() for name, one in found.items() if name.startswith(start)}


def assert_equal(one: Trace, other: Trace) -> None:
    """Same final step, same weights and same records, bit for bit."""
    assert one.checkpoint == other.checkpoint
    for name, tensor in one.weights.items():
        assert np.array_equal(tensor, other.weights[name]), name
    assert one.points == other.points


def assert_close(one: Trace, other: Trace, relative: float = 1e-4) -> None:
    """Same steps; every record within a relative tolerance, and every weight tensor by its norm."""
    assert one.checkpoint == other.checkpoint
    for name, tensor in one.weights.items():
        assert np.linalg.norm(tensor - other.weights[name]) <= relative * np.linalg.norm(tensor), name
    assert one.points.keys() == other.points.keys()
    for key, value in one.points.items():
        assert other.points[key] == pytest.approx(value, rel=relative), key


def mlflow_record(tracking_uri: str, run_id: str) -> tuple[Any, dict[tuple[str, int], float]]:
    """Return an MLflow run and its metric history; each step of a key must be there exactly once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, tracking_uri)
    run = client.get_run(run_id)
    history: dict[tuple[str, int], float] = {}
    for key in run.data.metrics:
        if key.startswith(TRACKED):
            for metric in client.get_metric_history(run_id, key):
                assert (key, metric.step) not in history, f"{key} at step {metric.step} is there twice"
                history[key, metric.step] = metric.value
    return run, history


@contextlib.contextmanager
def ray_cluster(has_dashboard: bool = False, **env: str) -> Iterator[dict[str, str]]:
    """A small Ray cluster; its dashboard is ten more processes, and takes the jobs that are submitted."""
    gcs, dashboard, agent, client = (free_port() for _ in range(4))
    # A folder of its own, short since sockets lie in it: only jobs that receive its address find this cluster.
    folder = tempfile.mkdtemp(prefix="shoal-", dir="/tmp")
    options = ["--head", "--block", "--num-cpus=4", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"]
    options += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    options += [f"--include-dashboard={str(has_dashboard).lower()}"]
    token = env.get("RAY_AUTH_TOKEN", "")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
        env={**os.environ, **RAY_ENV, "RAY_USAGE_STATS_ENABLED": "0", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if has_dashboard:
            eventually(
                lambda: answers(f"http://127.0.0.1:{dashboard}/api/version", token),
                60,
                "the dashboard starts",
            )
        eventually(lambda: has_joined(folder), 60, "the cluster starts")
        ports = {"address": gcs, "dashboard": dashboard, "agent": agent, "client": client}
        yield {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        end(psutil.Process(process.pid))
        shutil.rmtree(folder, ignore_errors=True)


def end(process: psutil.Process) -> None:
    """End a process and all below it; Ray's own way leaves its raylet half a minute."""
    tree = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=2)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive, timeout=10)


def has_joined(folder: str) -> bool:
    """Whether a cluster's node has published its address, which it does last."""
    return (Path(folder) / "ray_current_cluster").exists()


def answers(url: str, token: str = "") -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=1)
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Ray Train worker processes below a job's own cluster."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def still_runs(process: psutil.Process, word: str = "") -> bool:
    """Whether a process runs, and has a word in its command line."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


# What `mlflow server --workers 1` does, in one process: MLflow's command imports all, makes the tables, and starts
# another Python that imports all again.
MLFLOW_SERVER = """
import os, sys
from mlflow.server import constants

path, port = sys.argv[1:]
store, artifacts = f"sqlite:///{path}/server.db", "mlflow-artifacts:/"
os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = store
os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = f"{path}/artifacts"
os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"

import uvicorn
from mlflow.server.fastapi_app import app
from mlflow.server.handlers import initialize_backend_stores

initialize_backend_stores(store, store, artifacts)
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="critical")
"""


# Where the server does what an SQLite store does: its case is in the long tests.
MOSTLY_SQLITE = pytest.mark.parametrize(
    "mlflow_store", ["sqlite", pytest.param("http", marks=pytest.mark.long)], indirect=True
)


class Server:
    """A real MLflow server on a port of its own, which can be killed and started again."""

    def __init__(self, path: Path) -> None:
        self._path, self._port = path, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MLFLOW_SERVER, str(self._path), str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(lambda: answers(f"{self.uri}/health"), 60, "the MLflow server starts")

    def kill(self) -> None:
        """End the server and its children at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def eventually(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something to become true: so long on a quiet machine, three times as long beside other tests."""
    until = time.monotonic() + 3 * seconds
    while time.monotonic() < until:
        if check():
            return
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")
