"""Jobs whose run folder is in an object store: how much they ask of it, and what they do while it is away."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from object_store import ObjectStore
from running import ROOT, STEP_TIMEOUT_S, Place, eventually
from shoal.storage.parts import part_name
from shoal.storage.records import JournalPosition
from shoal.storage.run_folder import JOURNAL, RunFolder
from shoal.tracking.journal import JournalReader, journal_name
from shoal.training.checkpoint.contents import checkpoint_step
from shoal.training.checkpoint.store import CheckpointStore

pytestmark = pytest.mark.long

RUN = ("run_name=run", "scale.num_workers=0", "storage_path=s3://bucket/runs", "track.every_steps=100")

OUTAGE_S = 30.0  # longer than any single request is tried for
# A sweep's driver asks the store every 25 s, and says that it is away 10 s later.
SWEEP_OUTAGE_S = 90.0


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    store = ObjectStore()
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    yield store
    store.clear()
    store.close()


@pytest.fixture
def stored(tmp_path: Path, store: ObjectStore) -> Place:
    return Place(tmp_path, store.env)


def run_folder() -> RunFolder:
    return RunFolder("s3://bucket/runs/shoal/run")


def wait_for_parts(process: subprocess.Popen[str], count: int) -> None:
    """Wait until a run's journal has so many parts."""
    until = time.monotonic() + STEP_TIMEOUT_S
    while len(run_folder().names("journal")) < count:
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"part {count} was not written: {process.communicate()}")
        time.sleep(0.5)


def asked_in_a_minute(stored: Place, store: ObjectStore, process: subprocess.Popen[str]) -> Counter[str]:
    """Return the requests of a minute of a job, which is interrupted then."""
    began = time.monotonic()
    time.sleep(60)
    asked = [what for when, what in store.requests if began <= when < began + 60]
    process.send_signal(signal.SIGINT)
    done = stored.wait(process)
    assert done.code == 130, done.err
    return Counter(asked)


def test_a_training_asks_little_of_an_object_store_however_long_its_journal_is(
    stored: Place, store: ObjectStore
) -> None:
    """After 720 parts: a minute of a running job."""
    before = 720
    for number in range(before):
        run_folder().write(part_name(journal_name(1), number), b"\n")
    process = stored.start("train", *RUN, "train.epochs=1000000")
    wait_for_parts(process, before + 3)
    position = f"{JOURNAL}/{JournalPosition.file}"  # saved once the earlier parts, new to MLflow, were read
    eventually(lambda: run_folder().exists(position), 120, "MLflow has all points")
    asked = asked_in_a_minute(stored, store, process)
    assert asked.total() < 30, asked.most_common()
    steps = [point.step for point in JournalReader(run_folder()).read() if point.key == "train/loss"]
    assert steps == list(range(100, steps[-1] + 1, 100))


def test_a_sweep_asks_little_of_an_object_store_however_long_the_journals_of_its_trials_are(
    stored: Place, store: ObjectStore
) -> None:
    """After 720 parts of each of two trials: a minute of both."""
    before = 720
    trials = [RunFolder(f"s3://bucket/runs/shoal/sweep/trials/t{number:04d}") for number in range(2)]
    for folder in trials:
        for number in range(before):
            folder.write(part_name(journal_name(1), number), b"\n")
    process = stored.start(
        "tune",
        "run_name=sweep",
        "storage_path=s3://bucket/runs",
        "optim.lr=0.001,0.002",
        "train.epochs=1000000",
        "track.every_steps=100",
        "tune.max_concurrent_trials=2",
    )
    until = time.monotonic() + STEP_TIMEOUT_S
    while min(len(folder.names("journal")) for folder in trials) < before + 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(2)
    position = f"{JOURNAL}/{JournalPosition.file}"
    eventually(lambda: all(folder.exists(position) for folder in trials), 120, "MLflow has all points")
    asked = asked_in_a_minute(stored, store, process)
    run_folders = len(trials) + 1  # the sweep's own is one
    assert asked.total() < 30 * run_folders, asked.most_common()


def test_an_outage_is_survived_and_said_and_no_point_or_checkpoint_is_missing(
    stored: Place, store: ObjectStore
) -> None:
    process = stored.start("train", *RUN, "train.epochs=1000000", "checkpoint.every_steps=2000")
    wait_for_parts(process, 2)
    store.is_away = True
    time.sleep(OUTAGE_S)
    assert process.poll() is None
    store.is_away = False
    wait_for_parts(process, len(run_folder().names("journal")) + 2)
    process.send_signal(signal.SIGINT)
    done = stored.wait(process)
    assert done.code == 130, done.err
    assert "does not answer" in done.err
    assert "answers again" in done.err
    assert "Traceback" not in done.err
    steps = [point.step for point in JournalReader(run_folder()).read() if point.key == "train/loss"]
    assert steps == list(range(100, steps[-1] + 1, 100))
    name, complaints = CheckpointStore(run_folder()).latest()
    assert not complaints
    assert name is not None
    assert (checkpoint_step(name) or 0) >= steps[-1]


def test_a_store_that_stays_away_ends_the_job_with_one_error(
    stored: Place, store: ObjectStore, tmp_path: Path
) -> None:
    """With a patience of seconds; what is checked is how it ends."""
    job = tmp_path / "train.py"
    job.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT / 'jobs')!r})\nimport _path\n"
        "from shoal.storage import failures\nfailures.OUTAGE_S = 8.0\n"
        f"runpy.run_path({str(ROOT / 'jobs' / 'train.py')!r}, run_name='__main__')\n"
    )
    command = [sys.executable, str(job), *RUN, "train.epochs=1000000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=stored.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_parts(process, 2)
    eventually(lambda: run_folder().tracked().run_id is not None, 60, "MLflow has the run")
    store.is_away = True
    done = stored.wait(process)
    store.is_away = False
    assert done.code == 2, done.err
    assert len(done.errors) == 1, done.err
    assert "storage 's3://bucket/runs/shoal/run' does not answer" in done.errors[0]
    assert "Traceback" not in done.err, done.err
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FAILED"
    assert "does not answer" in run.data.tags["shoal.reason"]


STOP_S = 25.0  # about 10 s of patience, and the ends of Ray and MLflow on a machine that is busy


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_whose_store_is_gone_ends_soon_after_a_signal(
    stored: Place, store: ObjectStore, workers: int
) -> None:
    settings = [*RUN[:1], *RUN[2:], f"scale.num_workers={workers}", "train.epochs=1000000"]
    process = stored.start("train", *settings)
    wait_for_parts(process, 2)
    eventually(lambda: run_folder().tracked().run_id is not None, 60, "MLflow has the run")
    assert_ends_without_its_store(stored, store, process, "the same command|goes on from the last checkpoint")


@pytest.mark.parametrize("when", ["training", "verifying"])
def test_a_sweep_whose_store_is_gone_ends_soon_after_a_signal(
    stored: Place, store: ObjectStore, when: str
) -> None:
    epochs = 2 if when == "verifying" else 1000000
    awaited = "report/report.html" if when == "verifying" else "trials/t0001/journal"
    settings = ["run_name=sweep", "storage_path=s3://bucket/runs", "optim.lr=0.001,0.002"]
    process = stored.start("tune", *settings, f"train.epochs={epochs}")
    folder = RunFolder("s3://bucket/runs/shoal/sweep")
    eventually(lambda: folder.exists(awaited) or process.poll() is not None, STEP_TIMEOUT_S, awaited)
    assert_ends_without_its_store(stored, store, process, "the same command|goes on from the last checkpoint")


def assert_ends_without_its_store(
    stored: Place, store: ObjectStore, process: subprocess.Popen[str], says: str
) -> None:
    store.is_away = True
    time.sleep(5)  # in the middle of a wait
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = stored.wait(process)
    took_s = time.monotonic() - began_s
    store.is_away = False
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert re.search(says, done.err), done.err
    assert took_s < STOP_S, done.err
    runs = MlflowClient(f"sqlite:///{stored.path}/mlflow.db").search_runs(["1"])
    assert {run.info.status for run in runs} <= {"KILLED", "FINISHED"}
    assert runs[-1].info.status == "KILLED"  # the sweep, or the run


def test_a_sweep_outlasts_an_outage_and_says_so(stored: Place, store: ObjectStore) -> None:
    process = stored.start(
        "tune",
        "run_name=sweep",
        "storage_path=s3://bucket/runs",
        "optim.lr=0.001,0.002,0.004",
        "train.epochs=200",
    )
    folder = RunFolder("s3://bucket/runs/shoal/sweep")
    until = time.monotonic() + STEP_TIMEOUT_S
    while not folder.exists("trials/t0000/journal"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.5)
    store.is_away = True
    time.sleep(SWEEP_OUTAGE_S)
    store.is_away = False
    done = stored.wait(process)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert "does not answer" in done.err
    trials = MlflowClient(f"sqlite:///{stored.path}/mlflow.db").search_runs(["1"])
    assert sorted(run.info.status for run in trials) == ["FINISHED"] * 4
