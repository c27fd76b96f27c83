"""A worker that moves no more is noticed, and the run resumes by itself; it ends like its uninterrupted twin."""

import re
from pathlib import Path

import pytest

from running import Place, Trace, assert_equal
from shoal.storage.records import FailureRecord

pytestmark = pytest.mark.long

# A user's module. A worker that finds the file removes it, and then waits for ever.
MODULE = """
import os
import signal
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


def is_chosen(name):
    try:
        os.remove(name)
    except FileNotFoundError:
        return False
    return True


class Items(Dataset):
    def __len__(self):
        return 480

    def __getitem__(self, number):
        while number == 77 and is_chosen("{hangs}/data"):
            time.sleep(1e6)
        row = np.random.default_rng(number).normal(size=8).astype(np.float32)
        return row + 0.01 * np.random.normal(size=8).astype(np.float32), int(row[0] > 0)


class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training:
            time.sleep(0.02)
            while is_chosen("{hangs}/model"):
                while True:
                    pass
            if is_chosen("{hangs}/stopped"):
                os.kill(os.getpid(), signal.SIGSTOP)
        return self.layer(x)
"""
SETTINGS = (
    "run_name=run",
    "data.source=hanging:Items",
    "data.global_batch_size=32",
    "model.name=hanging:Net",
    "train.max_steps=400",
    "train.epochs=100",
    "train.evaluate_every_steps=100",
    "checkpoint.every_steps=20",
    "scale.num_workers=2",
)


def make(place: Place, module: str = MODULE) -> Path:
    (place.path / "hanging.py").write_text(module.replace("{hangs}", str(place.path)))
    return place.path


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]) -> Trace:
    place = Place(tmp_path_factory.mktemp("twin"), {"RAY_ADDRESS": cluster["address"]})
    make(place)
    place.train(*SETTINGS)
    return Trace.of(place.folder("run"))


@pytest.mark.parametrize("how", ["stopped", "data", "model"])
def test_a_worker_that_moves_no_more_is_replaced(shared: Place, twin: Trace, how: str) -> None:
    """It stops, waits for its data source, or loops in its model; each once."""
    path = make(shared)
    process = shared.start("train", *SETTINGS)
    shared.wait_for_step(process, "run", 100)
    (path / how).touch()
    done = shared.wait(process)
    assert done.code == 0, done.out + done.err
    assert_equal(Trace.of(shared.folder("run")), twin)
    line = next(line for line in done.err.splitlines() if "hang: " in line)
    seconds = int(re.search(r" for (\d+) s ", line).group(1))  # type: ignore[union-attr]
    assert 7 <= seconds <= 12, line
    assert done.result["goodput"]["seconds"]["hang"] >= seconds - 2
    assert re.search(r"resuming from the checkpoint of step \d+, failure 1 of 3$", line), line
    said = {"stopped": "does not answer: it is stopped (SIGSTOP)", "data": "a wait for", "model": "a"}
    assert said[how] in line
    record = shared.folder("run").load(FailureRecord)
    assert record is not None
    assert record.kind == "hang"
    assert record.root is not None
    assert record.root.rank is not None
    odd = next(group for group in record.stacks if group.ranks == [record.root.rank])
    assert {"stopped": "", "data": "__getitem__", "model": "forward"}[how] in odd.stack
    assert "jobs/train.py run_name=run" in str(record.next_command)


def test_a_run_that_hangs_at_the_same_step_for_ever_ends_with_an_error(shared: Place) -> None:
    path = make(shared, MODULE.replace("os.remove(name)", "os.stat(name)"))
    process = shared.start("train", *SETTINGS, "scale.max_failures=1", "checkpoint.every_steps=1000")
    shared.wait_for_step(process, "run", 100)
    (path / "data").touch()
    done = shared.wait(process)
    assert done.code == 1, done.out + done.err
    [error] = done.errors
    assert error.startswith("error: hang: worker ")
    assert "2 failures without progress, more than scale.max_failures=1" in error
    assert "Traceback" not in done.err
    record = shared.folder("run").load(FailureRecord)
    assert record is not None
    assert not record.is_retried
