"""cluster.yaml on three hosts reached by SSH, with MLflow on PostgreSQL on a fourth: a lost host, kills, a stop.

`make cluster-test` runs it.
"""

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_up
import tracking_host
from hosts import Hosts
from ray_up import DESK, HEAD, UpCluster
from running import JOB_TIMEOUT_S, PACED_MODULE, TRACKED, eventually, mlflow_record
from shoal.storage.records import TrainResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader
from tracking_host import TrackingHost

pytestmark = pytest.mark.long

WORKERS, MLFLOW = ["worker-1", "worker-2"], "mlflow"
STEPS = 600
TRAIN = (
    "model.name=paced:Net",
    "data.source=synthetic:classification?rows=4000&features=20&classes=10",
    "data.global_batch_size=32",
    "train.epochs=100",
    f"train.max_steps={STEPS}",
    "train.evaluate_every_steps=100",
    "checkpoint.every_steps=50",
    "scale.num_workers=2",
)
KILLS = 10
STOP_S = 30.0  # within which a job that is stopped has ended
SWEEP = (
    "run_name=sweep",
    "train.epochs=3",
    "optim.lr=0.001,0.01",
    "model.width=16,32",
    "data.source=sklearn:digits",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if why := ray_up.reason() or tracking_host.reason():
        pytest.skip(why)
    # A short path, which PostgreSQL's user may go through.
    folder = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    folder.chmod(0o711)
    with Hosts(folder) as hosts:
        for number, name in enumerate((HEAD, *WORKERS, MLFLOW, DESK), start=1):
            hosts.on(name, f"10.77.0.{number}")
        yield hosts
    assert hosts.remains() == []


@pytest.fixture(scope="module")
def tracking(hosts: Hosts) -> TrackingHost:
    server = TrackingHost(hosts, MLFLOW)
    server.start()
    return server


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, tracking: TrackingHost) -> UpCluster:
    (hosts.shared / "shoal").mkdir()
    cluster = UpCluster(hosts, WORKERS, tracking.env)
    (cluster.project / "paced.py").write_text(PACED_MODULE)
    cluster.up()
    return cluster


def wait(job: "subprocess.Popen[str]", log: Path) -> str:
    """Return what a job printed; it must have succeeded."""
    code = job.wait(timeout=JOB_TIMEOUT_S)
    text = log.read_text()
    assert code == 0, text
    assert " succeeded" in text
    return text


@pytest.fixture(autouse=True)
def reads_mlflow(tracking: TrackingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tracking.env.items():
        monkeypatch.setenv(name, value)


def test_a_cluster_of_hosts_trains_and_sweeps_and_loses_a_host(
    hosts: Hosts, tracking: TrackingHost, cluster: UpCluster, tmp_path: Path
) -> None:
    log = tmp_path / "doctor.log"
    said = wait(cluster.submit(log, "jobs/doctor.py", "scale.num_workers=2"), log)
    assert "3 nodes" in said

    folder = RunFolder(str(hosts.shared / "shoal" / "runs" / "shoal" / "run"))
    log = tmp_path / "train.log"
    job = cluster.submit(log, "jobs/train.py", *TRAIN, "run_name=run")
    wait_for_step(folder, 200, job, log)
    lost = next(name for name in WORKERS if trainers(hosts, name))
    hosts.off(lost)
    said = wait(job, log)
    assert "lost worker" in said
    assert "resuming from the checkpoint of step" in said
    assert_recorded(hosts, tracking, folder)

    hosts.on(lost)
    hosts.serve_ssh(lost, (hosts.home(DESK) / ".ssh" / "id_ed25519.pub").read_text())
    cluster.wait_for_nodes(3, 180)  # Ray's autoscaler starts it again
    log = tmp_path / "sweep.log"
    wait(cluster.submit(log, "jobs/tune.py", *SWEEP), log)
    assert_swept(hosts, tracking, hosts.shared / "shoal" / "runs" / "shoal" / "sweep")
    assert_nothing_left(hosts, cluster)


def test_ten_kills_are_accounted_for(
    hosts: Hosts, tracking: TrackingHost, cluster: UpCluster, tmp_path: Path
) -> None:
    """Every second from the submission to the end is in a class of goodput, of a training on two hosts."""
    draw, log = random.Random(0), tmp_path / "kills.log"
    folder = RunFolder(str(hosts.shared / "shoal" / "runs" / "shoal" / "kills"))
    submitted_s = time.time()
    job = cluster.submit(log, "jobs/train.py", *TRAIN, "run_name=kills", "scale.max_failures=100")
    for number in range(KILLS):
        step = (number + 1) * STEPS // (KILLS + 2) + draw.randrange(STEPS // (KILLS + 2))
        wait_for_step(folder, step, job, log)
        alive = [one for name in cluster.names for one in trainers(hosts, name)]
        draw.choice(alive).kill()
        psutil.wait_procs(alive, timeout=60)
    wait(job, log)
    assert_recorded(hosts, tracking, folder)
    result, ended_ms = folder.load(TrainResult), folder.identity().end_ms
    assert result is not None
    assert result.goodput is not None
    assert ended_ms is not None
    goodput, wall_s = result.goodput, ended_ms / 1000 - submitted_s
    print(goodput.model_dump_json(indent=1), wall_s)
    assert sum(goodput.seconds.values()) == pytest.approx(wall_s, rel=0.01)
    assert len(goodput.attempts) == KILLS + 1
    assert goodput.seconds["repeated_steps"] > 0
    assert_nothing_left(hosts, cluster)


def test_a_stopped_job_ends_in_time_and_the_same_command_goes_on(
    hosts: Hosts, tracking: TrackingHost, cluster: UpCluster, tmp_path: Path
) -> None:
    command, log = ("jobs/train.py", *TRAIN, "run_name=stopped"), tmp_path / "stopped.log"
    folder = RunFolder(str(hosts.shared / "shoal" / "runs" / "shoal" / "stopped"))
    job = cluster.submit(log, *command)
    wait_for_step(folder, 100, job, log)
    since = time.monotonic()
    cluster.stop(log.stem)
    job.wait(timeout=JOB_TIMEOUT_S)
    assert time.monotonic() - since < STOP_S
    assert " was stopped" in log.read_text()
    assert folder.identity().status == "KILLED"
    with hosts.network(DESK):
        run, _ = mlflow_record(tracking.uri, str(folder.tracked().run_id))
    assert run.info.status == "KILLED"
    assert_nothing_left(hosts, cluster)

    log = tmp_path / "resumed.log"
    said = wait(cluster.submit(log, *command), log)
    assert "resuming at step" in said
    assert_recorded(hosts, tracking, folder)


def wait_for_step(folder: RunFolder, step: int, job: "subprocess.Popen[str]", log: Path) -> None:
    def is_there() -> bool:
        assert job.poll() is None, log.read_text()
        return any(point.step >= step for point in JournalReader(folder).read())

    eventually(is_there, 200, f"step {step} is trained")


def trainers(hosts: Hosts, name: str) -> list[psutil.Process]:
    return hosts.processes(name, "RayTrainWorker")


def assert_recorded(hosts: Hosts, tracking: TrackingHost, folder: RunFolder) -> None:
    """The run is FINISHED, and has every step once, in its folder and in MLflow."""
    assert folder.identity().status == "FINISHED"
    read = JournalReader(folder).read()
    points = {(point.key, point.step): point.value for point in read if point.key.startswith(TRACKED)}
    assert [step for key, step in sorted(points) if key == "train/loss"] == list(range(1, STEPS + 1))
    with hosts.network(DESK):
        run, history = mlflow_record(tracking.uri, str(folder.tracked().run_id))
    assert run.info.status == "FINISHED"
    assert history == points


def assert_swept(hosts: Hosts, tracking: TrackingHost, folder: Path) -> None:
    """Four trials ended, and all runs of the sweep are FINISHED in MLflow."""
    from mlflow import MlflowClient

    assert len(list(folder.glob("trials/*/result.json"))) == 4
    parent = RunFolder(str(folder)).tracked().run_id
    with hosts.network(DESK):
        client = MlflowClient(tracking.uri, tracking.uri)
        experiment = client.get_run(str(parent)).info.experiment_id
        runs: list[Any] = client.search_runs([experiment])
    assert [run.info.status for run in runs] == ["FINISHED"] * 6  # the training, the sweep and its trials


def assert_nothing_left(hosts: Hosts, cluster: UpCluster) -> None:
    """No job leaves a process, a placement group, a busy CPU or a file in /dev/shm."""
    until = time.monotonic() + 60
    while (state := cluster.state())["free"][0] < state["free"][1] and time.monotonic() < until:
        time.sleep(2)
    assert state["free"] == [3, 3]
    assert state["groups"] == []
    assert {name for name in state["actors"] if not name.startswith("_Autoscaling")} == set(), state
    for name in cluster.names:
        for word in ("jobs/", "RayTrain", "Trial", "shoal.tracking"):
            assert hosts.processes(name, word) == []
        held = hosts.run(name, "ls", "/dev/shm").stdout.split()
        assert [file for file in held if not file.startswith("plasma")] == []
    assert list((hosts.shared / "shoal").glob("**/*.part-*")) == []
