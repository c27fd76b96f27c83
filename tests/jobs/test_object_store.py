"""Jobs whose run folder is in an object store: how much they ask of it, and what they do while it is away."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from object_store import ObjectStore
from running import STEP_TIMEOUT_S, Place
from shoal.storage.parts import part_name
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader, journal_name

RUN = ("run_name=run", "scale.num_workers=0", "storage_path=s3://bucket/runs", "track.every_steps=100")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    store = ObjectStore()
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    yield store
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


def test_a_training_asks_little_of_an_object_store_however_long_its_journal_is(
    stored: Place, store: ObjectStore
) -> None:
    """After 2,000 parts, more than eight hours of them: a minute of a running job."""
    before = 2000
    for number in range(before):
        run_folder().write(part_name(journal_name(1), number), b"\n")
    process = stored.start("train", *RUN, "train.epochs=1000000")
    wait_for_parts(process, before + 3)
    began = time.monotonic()
    time.sleep(60)
    asked = [what for when, what in store.requests if began <= when < began + 60]
    process.send_signal(signal.SIGINT)
    done = stored.wait(process)
    assert done.code == 130, done.err
    assert len(asked) < 30, Counter(asked)
    steps = [point.step for point in JournalReader(run_folder()).read() if point.key == "train/loss"]
    assert steps == list(range(100, steps[-1] + 1, 100))
