"""Nodes that die and come back: a training goes on with fewer workers, then with more, to the same losses."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_training import HEAD, MODULES, OTHERS, HostTraining, three_hosts
from hosts import Hosts
from ray_nodes import head, node
from running import (
    SLOW_MODULE,
    Place,
    Trace,
    assert_close,
    eventually,
    last_step,
    mlflow_record,
    slow_run,
    twin_place,
)
from shoal.runs.callbacks import WORKERS_METRIC
from shoal.runs.goodput import resizes
from shoal.runs.timeline import read_timeline
from shoal.storage.records import FailureRecord, Resize, TrainResult, TrialResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader

pytestmark = pytest.mark.long

STEPS = 6000
SETTINGS = slow_run(STEPS)


def resizes_so_far(folder: RunFolder) -> list[Resize]:
    return resizes(read_timeline(folder))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_shrinks_when_a_node_dies_and_grows_when_one_returns(
    place: Place, tmp_path: Path, strategy: str
) -> None:
    """The losses are those of a run of one process that nothing happened to; growth repeats no step."""
    place.add_module("slow", SLOW_MODULE)
    folder = place.folder("run")
    with head() as address, node(address, "first", cpus=1), contextlib.ExitStack() as nodes:
        lost = nodes.enter_context(node(address, "second", cpus=1))
        place.env["RAY_ADDRESS"] = address
        process = place.start(
            "train",
            *SETTINGS,
            "scale.num_workers=[1, 2]",
            "scale.max_failures=1",
            f"scale.strategy={strategy}",
        )
        place.wait_for_step(process, "run", 250)
        killed_ms = time.time() * 1000
        lost.kill()
        eventually(lambda: len(resizes_so_far(folder)) == 1, 60, "one worker goes on")
        returned_ms = time.time() * 1000
        nodes.enter_context(node(address, "third", cpus=1))
        joined_ms = time.time() * 1000
        eventually(lambda: len(resizes_so_far(folder)) == 2, 60, "two workers go on")
        done = place.wait(process)
    assert done.code == 0, done.out + done.err
    result = folder.load(TrainResult)
    assert result is not None
    assert result.goodput is not None
    shrunk, grown = result.resizes
    print(f"{strategy}: shrunk {(shrunk.at_ms - killed_ms) / 1000:.1f} s after the kill")
    print(
        f"{strategy}: grown {(grown.at_ms - returned_ms) / 1000:.1f} s after the node was started, "
        f"{(grown.at_ms - joined_ms) / 1000:.1f} s after it was seen to have joined"
    )
    assert (shrunk.before, shrunk.workers) == (2, 1)
    assert (grown.before, grown.workers) == (1, 2)
    assert shrunk.at_ms - killed_ms < 60_000  # 30 s on a machine of its own
    assert grown.at_ms - joined_ms < 60_000
    assert shrunk.step >= 200  # a checkpoint before the kill; growth wrote one where it was
    assert shrunk.step < grown.step < STEPS
    assert "there is room for 2 workers" in grown.why
    first, second, third = result.goodput.attempts
    assert (first.step, second.step, third.step) == (0, shrunk.step, grown.step)
    failure = folder.load(FailureRecord)
    assert failure is not None
    assert failure.failures == 1  # the growth counted as none
    assert result.world_size == 2
    run, history = mlflow_record(f"sqlite:///{place.path}/mlflow.db", str(result.mlflow_run_id))
    changes = f"2 to 1 at step {shrunk.step}, 1 to 2 at step {grown.step}"
    assert run.data.tags["shoal.resizes"] == changes
    assert run.data.tags["shoal.num_workers"] == "[1, 2]"
    assert run.data.metrics["perf/num_workers"] == 2
    assert history.keys() == Trace.of(folder).points.keys()
    twin = twin_place(tmp_path)
    assert twin.run("train", *SETTINGS, "scale.num_workers=0").code == 0
    assert_close(Trace.of(folder), Trace.of(twin.folder("run")))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


def start(hosts: Hosts, tmp_path: Path) -> HostTraining:
    return HostTraining(hosts, tmp_path / "log", (*SETTINGS, "scale.num_workers=[1, 2]"))


def await_resizes(training: HostTraining, count: int) -> None:
    eventually(lambda: len(resizes_so_far(training.folder)) == count, 120, f"{count} resizes")


def test_a_training_goes_on_without_a_host_that_is_powered_off_and_with_it_when_it_is_back(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Ray counts a host without power as alive for a while, with room for a worker."""
    training = start(hosts, tmp_path)
    training.await_step(250)
    off_ms = time.time() * 1000
    hosts.off("w2")
    await_resizes(training, 1)
    hosts.on("w2")
    hosts.start_ray("w2", HEAD, PYTHONPATH=MODULES)
    joined_ms = time.time() * 1000
    await_resizes(training, 2)
    training.wait()
    shrunk, grown = resizes_so_far(training.folder)
    print(f"hosts: shrunk {(shrunk.at_ms - off_ms) / 1000:.1f} s after the power-off")
    print(f"hosts: grown {(grown.at_ms - joined_ms) / 1000:.1f} s after Ray was started there")
    assert (shrunk.before, shrunk.workers) == (2, 1)
    assert (grown.before, grown.workers) == (1, 2)
    assert shrunk.at_ms - off_ms < 90_000  # 30 s on a machine of its own
    assert grown.at_ms - joined_ms < 60_000
    assert " on w2 was lost" in shrunk.why


def test_a_training_goes_on_without_a_host_that_is_cut_off_whose_processes_change_nothing_when_it_is_back(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Nothing tells that it is but its silence; worker 0, which writes the records, lives there and sees the folder."""
    training = start(hosts, tmp_path)
    training.await_step(250)
    cut = host_of_worker_0(hosts)
    late = hosts.processes(cut, "RayTrainWorker")
    cut_ms = time.time() * 1000
    hosts.set_link(cut, "down")
    await_resizes(training, 1)
    assert [one for one in late if one.is_running()]
    training.await_step(resizes_so_far(training.folder)[0].step + 500)
    hosts.set_link(cut, "up")
    eventually(lambda: not hosts.processes(cut, "/raylet/raylet"), 120, "Ray ends a node that it gave up")
    hosts.start_ray(cut, HEAD, PYTHONPATH=MODULES)
    joined_ms = time.time() * 1000
    await_resizes(training, 2)
    assert not [one for one in late if one.is_running()]
    training.wait()
    shrunk, grown = resizes_so_far(training.folder)
    print(f"hosts: shrunk {(shrunk.at_ms - cut_ms) / 1000:.1f} s after the cut")
    print(f"hosts: grown {(grown.at_ms - joined_ms) / 1000:.1f} s after Ray was started there")
    assert (shrunk.before, shrunk.workers) == (2, 1)
    assert (grown.before, grown.workers) == (1, 2)
    assert shrunk.at_ms - cut_ms < 90_000  # 30 s on a machine of its own
    assert grown.at_ms - joined_ms < 60_000
    assert f"worker 0 on {cut} has been in" in shrunk.why
    twin = twin_place(tmp_path)
    assert twin.run("train", *SETTINGS, "scale.num_workers=0").code == 0
    assert_close(Trace.of(training.folder), Trace.of(twin.folder("run")))
    result = training.folder.load(TrainResult)
    assert result is not None
    _, history = mlflow_record(training.tracking_uri, str(result.mlflow_run_id))
    assert history.keys() == Trace.of(training.folder).points.keys()


def test_a_trial_shrinks_and_grows_again_and_the_sweep_ends_as_an_uninterrupted_one(
    place: Place, tmp_path: Path
) -> None:
    """The trial that loses a node goes on with one worker, and with two once another node is there."""
    place.add_module("slow", SLOW_MODULE)
    settings = (
        *SETTINGS[:3],
        "train.epochs=1000",
        "train.max_steps=4000",
        "train.evaluate_every_steps=500",
        "checkpoint.every_steps=50",
        "optim.lr=0.01,0.1",
    )
    trial = RunFolder(f"{place.folder('run').uri}/trials/t0000")

    def workers() -> list[float]:
        """How many there were, one after the other."""
        found = [point.value for point in JournalReader(trial).read() if point.key == WORKERS_METRIC]
        return [one for one, _ in itertools.groupby(found)]

    with head() as address, node(address, "first", cpus=1), contextlib.ExitStack() as nodes:
        lost = nodes.enter_context(node(address, "second", cpus=1))
        place.env["RAY_ADDRESS"] = address
        process = place.start("tune", *settings, "scale.num_workers=[1, 2]")
        eventually(lambda: last_step(trial) >= 150, 100, "the first trial makes steps")
        lost.kill()
        eventually(lambda: workers() == [2.0, 1.0], 60, "one worker goes on")
        nodes.enter_context(node(address, "third", cpus=1))
        done = place.wait(process)
    assert done.code == 0, done.out + done.err
    twin = twin_place(tmp_path)
    uninterrupted = twin.run("tune", *settings)
    assert uninterrupted.code == 0, uninterrupted.err
    for name in ("t0000", "t0001"):
        mine, other = (
            RunFolder(f"{one.folder('run').uri}/trials/{name}").load(TrialResult) for one in (place, twin)
        )
        assert mine is not None
        assert other is not None
        assert mine.outcome == other.outcome == "finished"
        assert mine.metrics == pytest.approx(other.metrics, rel=1e-4)
        assert mine.steps == other.steps == 4000
        assert mine.samples_seen == other.samples_seen
    assert workers() == [2.0, 1.0, 2.0]


def host_of_worker_0(hosts: Hosts) -> str:
    """Return where the journal is written."""
    for name in OTHERS:
        for one in hosts.processes(name, "RayTrainWorker"):
            open_files = [
                os.readlink(file) for file in Path(f"/proc/{one.pid}/fd").iterdir() if file.is_symlink()
            ]
            if any("/journal/" in file for file in open_files):
                return name
    raise AssertionError("no worker writes a journal")
