"""A loss that is not finite: its steps are made again once, which tells a bad host from the data and the model."""

import socket
from pathlib import Path

import pytest

from running import Place, Trace, assert_equal, mlflow_record
from shoal.storage.records import FailureRecord, TrainResult

pytestmark = pytest.mark.long

# A user's model. Its loss is lost on the last worker once there is a file, which it removes; or at a step, always.
MODULE = """
import os
import time

import torch
import torch.distributed as dist
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            time.sleep(0.01)
            self.steps += 1
            is_last = dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1
            if is_last and (self.steps == {always} or was_there("{once}")):
                return self.layer(x) * float("nan")
        return self.layer(x)


def was_there(path):
    try:
        os.remove(path)
    except FileNotFoundError:
        return False
    return True
"""
SETTINGS = (
    "run_name=run",
    "model.name=losing:Net",
    "train.epochs=1000",
    "train.max_steps=400",
    "checkpoint.every_steps=40",
    "scale.num_workers=2",
    "scale.cpus_per_worker=0.5",
)


def make(place: Place, always: int = 0) -> Path:
    once = place.path / "once"
    place.add_module("losing", MODULE.replace("{always}", str(always)).replace("{once}", str(once)))
    return once


def test_a_loss_that_is_lost_once_is_the_hosts_and_the_run_ends_like_its_twin(
    shared: Place, tmp_path: Path
) -> None:
    once = make(shared)
    process = shared.start("train", *SETTINGS)
    shared.wait_for_step(process, "run", 100)
    once.touch()
    done = shared.wait(process)
    assert done.code == 0, done.out + done.err
    folder, host = shared.folder("run"), socket.gethostname()
    record = folder.load(FailureRecord)
    assert record is not None
    assert (record.kind, record.is_retried) == ("bad host", True)
    assert record.root is not None
    assert (record.root.rank, record.root.host) == (1, host)
    [first] = [line for line in done.err.splitlines() if "diverged: " in line]
    assert f"worker 1 on {host}: train/loss is nan at step {record.root.step}" in first
    assert "failure 1 of 3" in first
    [named] = [line for line in done.err.splitlines() if "bad host: " in line]
    assert record.message in named
    result = folder.load(TrainResult)
    assert result is not None
    run, _ = mlflow_record(str(result.tracking_uri), str(result.mlflow_run_id))
    assert run.data.tags["shoal.suspect_host"] == host
    (tmp_path / "twin").mkdir()
    twin = Place(tmp_path / "twin", shared.env)
    make(twin)
    twin.train(*SETTINGS)
    assert_equal(Trace.of(folder), Trace.of(twin.folder("run")))


def test_a_loss_that_is_lost_again_at_the_same_step_is_the_datas_or_the_models(shared: Place) -> None:
    make(shared, always=150)
    done = shared.run("train", *SETTINGS)
    assert done.code == 1, done.out + done.err
    [line] = done.errors
    assert "worker 1 on" in line
    assert "the same steps made again gave the same bits at step 150, so it is the data or the model" in line
    assert done.err.count("diverged: ") == 2  # one replay
    record = shared.folder("run").load(FailureRecord)
    assert record is not None
    assert (record.kind, record.is_retried) == ("diverged", False)
    assert record.root is not None
    assert record.root.step == 150
    assert len(record.root.samples) == 32  # half of a batch
    assert f"training rows {record.root.samples[0]}, " in line
