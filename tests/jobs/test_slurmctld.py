"""deploy/slurm on a real slurmctld with two nodes, which jobs share: by sbatch, a time limit and a queue.

`make cluster-test` runs it.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import slurm_cluster
from hosts import Hosts
from running import JOB_TIMEOUT_S, PACED_MODULE, ROOT, Trace, assert_equal, eventually
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.long

NODES = ["node-1", "node-2"]
STEPS = 600
TWO_NODES = ("--nodes=2", "--signal=USR1@60", "scale.num_workers=2")
TRAIN = (
    "model.name=paced:Net",
    "data.source=synthetic:classification?rows=4000&features=20&classes=10",
    "data.global_batch_size=32",
    "train.epochs=100",
    f"train.max_steps={STEPS}",
    "train.evaluate_every_steps=100",
    "checkpoint.every_steps=1000",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if why := slurm_cluster.reason():
        pytest.skip(why)
    with Hosts(Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))) as hosts:
        addresses = {name: f"10.78.0.{number}" for number, name in enumerate(NODES, start=1)}
        lines = "\n".join(f"{address} {name}" for name, address in addresses.items())
        for name, address in addresses.items():
            hosts.on(name, address, lines)
        yield hosts
    assert hosts.remains() == []


@pytest.fixture(scope="module")
def slurm(hosts: Hosts) -> SlurmCluster:
    (hosts.shared / "shoal").mkdir()
    (hosts.shared / "project").mkdir()
    (hosts.shared / "project" / "paced.py").write_text(PACED_MODULE)
    slurm = SlurmCluster(hosts, NODES, cpus=2)
    slurm.start()
    return slurm


def test_jobs_share_nodes_and_one_whose_time_is_up_is_queued_again_and_goes_on(
    hosts: Hosts, slurm: SlurmCluster
) -> None:
    """Two jobs on the same two nodes end with the same weights, one of them by way of a signal and the queue."""
    first, second = (submit(hosts, slurm, name, *TWO_NODES) for name in ("first", "second"))
    for name in ("first", "second"):
        wait_for_step(hosts, name, 50)
    for name in NODES:
        assert len(hosts.processes(name, "raylet/raylet")) == 2
        assert len(hosts.processes(name, "RayTrainWorker")) == 2

    # With a minute left the signal comes at once; then there is as much time as is needed.
    slurm.call("scontrol", "update", f"JobId={second}", "EndTime=now+61")
    eventually(lambda: slurm.show(second)["Restarts"] == "1", 120, "the job is queued again")
    slurm.call("scontrol", "update", f"JobId={second}", "TimeLimit=60")

    for job in (first, second):
        assert wait(slurm, hosts, job)["JobState"] == "COMPLETED", log_of(hosts, job).read_text()
    said = log_of(hosts, second).read_text()
    steps = [set(re.findall(rf"{word} at step (\d+)", said)) for word in ("interrupted", "resuming")]
    assert len(steps[0]) == 1, said
    assert steps[0] == steps[1]
    traces = [Trace.of(folder_of(hosts, name)) for name in ("first", "second")]
    assert_equal(*traces)
    assert_nothing_left(hosts, first, second)


def test_a_job_that_is_ended_by_its_user_has_a_checkpoint_and_is_not_queued_again(
    hosts: Hosts, slurm: SlurmCluster
) -> None:
    job = submit(hosts, slurm, "ended", "--nodes=1", "scale.num_workers=1")
    wait_for_step(hosts, "ended", 10)
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    shown = wait(slurm, hosts, job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "130:0", "0")
    folder = folder_of(hosts, "ended")
    assert folder.identity().status == "KILLED"
    assert [name for name in folder.names("checkpoints") if name.startswith("step-")]


def submit(hosts: Hosts, slurm: SlurmCluster, name: str, *options: str) -> str:
    job = str(ROOT / "jobs" / "train.py")
    own = (job, f"run_name={name}", *options, *TRAIN)
    return slurm.submit(hosts.shared / "project", "--cpus-per-task=1", *own)


def folder_of(hosts: Hosts, name: str) -> RunFolder:
    return RunFolder(str(hosts.shared / "shoal" / "runs" / "shoal" / name))


def log_of(hosts: Hosts, job: str) -> Path:
    return hosts.shared / "project" / f"shoal-{job}.log"


def wait_for_step(hosts: Hosts, name: str, step: int) -> None:
    def is_there() -> bool:
        return any(point.step >= step for point in JournalReader(folder_of(hosts, name)).read())

    eventually(is_there, 120, f"step {step} of {name} is trained")


def wait(slurm: SlurmCluster, hosts: Hosts, job: str) -> dict[str, str]:
    """Wait until a job has ended, and return what Slurm says of it."""
    until = time.monotonic() + JOB_TIMEOUT_S
    while (shown := slurm.show(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        assert time.monotonic() < until, log_of(hosts, job).read_text()
        time.sleep(1)
    return shown


def assert_nothing_left(hosts: Hosts, *jobs: str) -> None:
    """Ray's processes and files are gone from both nodes; its logs are where sbatch was called."""
    for name in NODES:
        for word in ("ray", "shoal.tracking"):
            assert hosts.processes(name, word) == []
        assert hosts.run(name, "find", "/tmp/ray", "/dev/shm", "-mindepth", "1").stdout == ""
        for job in jobs:
            kept = hosts.shared / "project" / f"shoal-{job}-ray" / name
            assert (kept / "raylet.out").exists()
