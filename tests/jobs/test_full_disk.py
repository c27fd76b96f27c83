"""Jobs on a disk that runs full, a small tmpfs: one error, a closed record, and the same command goes on."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from running import STEP_TIMEOUT_S, Finished, Place, eventually
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.contents import checkpoint_step
from shoal.training.checkpoint.store import CheckpointStore

pytestmark = pytest.mark.long

FULL = "No space left on device"
TRAIN = ("run_name=run", "model.width=256", "train.epochs=4000", "track.every_steps=100")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, leaving: int = 0) -> Path:
    """Write a file that leaves so many bytes: 0 until the disk refuses, since a job writes meanwhile."""
    path = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(b"\0" * (free - leaving))
        while leaving == 0:
            file.write(b"\0" * 4096)
    return path


def test_a_small_disk_can_be_mounted_as_root(disk: Path) -> None:
    """In CI this says that the other tests here ran."""
    fill(disk)
    with pytest.raises(OSError, match=FULL):
        (disk / "more").write_bytes(b"x" * 100_000)


def wait_for_points(
    process: subprocess.Popen[str], folder: RunFolder, inner: str = "", beyond: int = 0
) -> None:
    """Wait until a run, or one of a sweep's, has a checkpoint, and a journal of more than `beyond` attempts."""
    until = time.monotonic() + STEP_TIMEOUT_S
    root = folder.local()
    assert root is not None

    def journals() -> int:
        return sum(path.stat().st_size > 0 for path in root.glob(f"{inner}journal/*.jsonl"))

    while not (list(root.glob(f"{inner}checkpoints/step-*")) and journals() > beyond):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"it wrote nothing: {process.communicate()}")
        time.sleep(0.05)


def assert_said_once(done: Finished, disk: Path) -> None:
    """One error with path, reason and remedy, exit code 2, nothing else but a few warnings."""
    assert done.code == 2, done.out + done.err
    assert len(done.errors) == 1, done.err
    (error,) = done.errors
    assert str(disk) in error
    assert FULL in error
    assert "free some space there, then run the same command" in error
    assert "Traceback" not in done.err + done.out, done.err
    assert len(done.err.splitlines()) <= 3, done.err


def mlflow_runs(place: Place, experiment: str = "shoal") -> list[Any]:
    client = MlflowClient(f"sqlite:///{place.path}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def parts(disk: Path) -> list[Path]:
    return list(disk.rglob(".part-*"))


@pytest.mark.parametrize(
    "scale",
    [
        ("scale.num_workers=0",),
        ("scale.num_workers=2",),
        ("scale.num_workers=2", "scale.strategy=fsdp"),  # each worker writes its own part of a checkpoint
    ],
    ids=["alone", "two", "sharded"],
)
def test_a_disk_that_runs_full_in_training_is_said_once_and_the_run_goes_on_when_there_is_room(
    shared: Place, disk: Path, scale: tuple[str, ...]
) -> None:
    command = (*TRAIN, *scale, f"storage_path={disk}")
    folder = RunFolder(f"{disk}/shoal/run")
    process = shared.start("train", *command)
    wait_for_points(process, folder)
    filler = fill(disk)
    assert_said_once(shared.wait(process), disk)
    (run,) = mlflow_runs(shared)
    assert run.info.status == "FAILED"
    assert FULL in run.data.tags["shoal.reason"]
    assert parts(disk) == []

    assert_said_once(shared.run("train", *command), disk)
    filler.unlink()
    resumes_at, _ = CheckpointStore(folder).latest()
    process = shared.start("train", *command)
    wait_for_points(process, folder, beyond=1)
    eventually(lambda: mlflow_runs(shared)[0].info.status == "RUNNING", 60, "MLflow knows that it goes on")
    process.send_signal(signal.SIGINT)
    done = shared.wait(process)
    assert done.code == 130, done.err
    assert f"resuming at step {checkpoint_step(resumes_at)} of" in done.out
    (run,) = mlflow_runs(shared)
    assert run.info.status == "KILLED", done.out + done.err


def test_a_disk_with_room_for_all_but_the_model_is_said_once(place: Place, disk: Path) -> None:
    command = (
        "run_name=run",
        "model.width=8",
        "train.epochs=2",
        "scale.num_workers=0",
        f"storage_path={disk}",
    )
    filler = fill(disk, leaving=700_000)  # Shoal's own code, which is packaged with a model, is larger
    assert_said_once(place.run("train", *command), disk)
    (run,) = mlflow_runs(place)
    assert run.info.status == "FAILED"
    assert FULL in run.data.tags["shoal.reason"]
    filler.unlink()
    result = place.train(*command)
    assert result["is_verified"]
    (run,) = mlflow_runs(place)
    assert run.info.status == "FINISHED"


def test_a_disk_that_runs_full_in_a_sweep_is_said_once_and_the_sweep_goes_on_when_there_is_room(
    shared: Place, disk: Path
) -> None:
    command = (
        "run_name=sweep",
        f"storage_path={disk}",
        "optim.lr=0.001,0.002,0.004,0.008",
        "train.epochs=300",
    )
    folder = RunFolder(f"{disk}/shoal/sweep")
    process = shared.start("tune", *command)
    wait_for_points(process, folder, "trials/*/")
    filler = fill(disk)
    assert_said_once(shared.wait(process), disk)
    assert {run.info.status for run in mlflow_runs(shared)} <= {"FAILED", "FINISHED"}
    assert parts(disk) == []
    filler.unlink()
    done = shared.run("tune", *command)
    assert done.code == 0, done.err
    assert done.result["trials"]["ended"] == 4
    assert {run.info.status for run in mlflow_runs(shared)} == {"FINISHED"}
