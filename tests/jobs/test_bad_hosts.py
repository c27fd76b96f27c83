"""A bit that flips in one worker's weights is noticed before a checkpoint is made of them, and the run resumes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from running import Place, Trace, assert_equal
from shoal.storage.records import FailureRecord
from shoal.training.checkpoint.contents import checkpoint_step

pytestmark = pytest.mark.long

# A user's model. The last worker flips a bit of its own weights once there is a file, which it removes.
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

    def forward(self, x):
        if self.training:
            time.sleep(0.01)
            if dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1:
                try:
                    os.remove("{flips}")
                except FileNotFoundError:
                    return self.layer(x)
                self.layer.weight.data.view(torch.int32)[1, 2] ^= 1 << 12
        return self.layer(x)
"""
SETTINGS = (
    "run_name=run",
    "model.name=flipping:Net",
    "train.epochs=1000",
    "train.max_steps=600",
    "train.evaluate_every_steps=100",
    "checkpoint.every_steps=40",
    "checkpoint.keep=100",
    "scale.cpus_per_worker=0.5",
)


def make(place: Place) -> Path:
    flips = place.path / "flips"
    (place.path / "flipping.py").write_text(MODULE.replace("{flips}", str(flips)))
    return flips


def without(trace: Trace, steps: range) -> Trace:
    points = {(key, step): value for (key, step), value in trace.points.items() if step not in steps}
    return replace(trace, points=points)


@pytest.mark.parametrize("workers", [3, 2])
def test_a_flipped_bit_is_refused_and_the_run_ends_like_its_twin(
    shared: Place, tmp_path: Path, workers: int
) -> None:
    settings = (*SETTINGS, f"scale.num_workers={workers}")
    flips = make(shared)
    process = shared.start("train", *settings)
    shared.wait_for_step(process, "run", 200)
    flips.touch()
    done = shared.wait(process)
    assert done.code == 0, done.out + done.err
    [line] = [line for line in done.err.splitlines() if "bad host: " in line]
    assert "'layer.weight'" in line
    record = shared.folder("run").load(FailureRecord)
    assert record is not None
    assert record.kind == "bad host"
    assert record.is_retried
    assert record.root is not None
    if workers == 3:
        assert record.root.rank == 2
        assert re.search(r"on worker 2 on \S+ is not what the other 2 workers have", line), line
    else:
        assert record.root.rank is None
        assert "none of them stands out" in line
    refused = int(re.search(r"weights at step (\d+)", line).group(1))  # type: ignore[union-attr]
    resumed = int(re.search(r"from the checkpoint of step (\d+)", line).group(1))  # type: ignore[union-attr]
    assert resumed < refused
    assert resumed in {checkpoint_step(name) for name in shared.folder("run").names("checkpoints")}
    twin = Place(tmp_path / "twin", shared.env)
    twin.path.mkdir()
    make(twin)
    twin.train(*settings)
    # The points of steps between were recorded before it was known, and a point that is recorded stays.
    spoilt = range(resumed + 1, refused + 1)
    assert_equal(*(without(Trace.of(one.folder("run")), spoilt) for one in (shared, twin)))
