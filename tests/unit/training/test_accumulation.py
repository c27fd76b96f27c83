"""Gradient accumulation: less memory and the same numbers."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from shoal.data.loader import Batch
from shoal.distributed.process_group import SingleProcess
from shoal.errors import TrainingError
from shoal.training.accumulation import make_accumulation, split_batch
from shoal.training.device_memory import is_out_of_memory
from shoal.training.loop import update
from training_run import Net, TrainingRun, assert_same, mlp, saved_bytes


def test_micro_batches_give_the_losses_of_the_full_batch(tmp_path):
    full = TrainingRun(tmp_path / "full", mlp()).train()
    for size in (16, 8, 5, 4):
        split = TrainingRun(tmp_path / str(size), mlp(), micro_batch_size=size).train()
        assert len(split.losses) == 26
        np.testing.assert_allclose(split.losses, full.losses, rtol=1e-5)
        assert split.progress.samples == 400


def test_no_forward_pass_has_more_samples_than_a_micro_batch(tmp_path):
    run = TrainingRun(tmp_path, Net(), micro_batch_size=6, epochs=1).train()
    assert run.model.rows == [6, 6, 4] * 12 + [6, 2]  # 12 batches of 16, and one of 8


def test_micro_batches_take_as_much_less_memory_for_activations(tmp_path):
    def peak(size):
        run = TrainingRun(tmp_path, mlp(width=512, depth=6), micro_batch_size=size)
        weights = sum(
            parameter.nbytes for parameter in run.model.parameters()
        )  # they are held for backward too
        with saved_bytes() as most:
            update(run.loop, next(run.loop.shard.batches(0, 0)), 0, run.clock)
        return most[0] - weights

    assert peak(4) < 0.3 * peak(None)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (7, 2, [[2, 1], [2, "filler"], [2, "filler"]]),
        (9, 2, [[2, 1], [2, 1], [2, 1]]),
        (2, 2, [[1], [1], ["filler"]]),
        (1, 1, [[1], ["filler"], ["filler"]]),
        (30, 4, [[4, 4, 2], [4, 4, 2], [4, 4, 2]]),
    ],
)
def test_every_worker_runs_equally_many_micro_batches_whatever_its_part_of_a_short_batch(
    count, size, expected
):
    found = []
    for worker in range(3):
        x = torch.arange(float(len(range(worker, count, 3))))
        batch = Batch(x[:, None], x, count) if len(x) else Batch(torch.ones(1, 1), torch.ones(1), count, True)
        seen = []
        make_accumulation(size, nn.Identity(), nn.Identity(), SingleProcess(), 3).run(
            batch, lambda part, seen=seen: seen.append(part) or torch.zeros(())
        )
        assert all(part.count == count for part in seen)
        real = [part.targets for part in seen if not part.is_filler]
        assert not real or torch.equal(torch.cat(real), x)
        found.append(["filler" if part.is_filler else len(part.targets) for part in seen])
    assert found == expected


def test_micro_batches_hold_the_rows_of_the_batch_in_order():
    batch = Batch(torch.arange(10.0).view(5, 2), torch.arange(5), count=5)
    micro_batches = split_batch(batch, 2, 4)
    assert torch.equal(torch.cat([part.inputs for part in micro_batches[:3]]), batch.inputs)
    assert [part.is_filler for part in micro_batches] == [False, False, False, True]


def test_micro_batches_of_several_tensors_hold_the_same_rows_of_each():
    rows = torch.arange(5)
    parts = split_batch(Batch({"x": rows.float()[:, None], "ids": rows}, (rows, rows), count=5), 2, 4)
    assert [part.inputs["ids"].tolist() for part in parts] == [[0, 1], [2, 3], [4], [0]]
    assert [part.targets[1].tolist() for part in parts] == [[0, 1], [2, 3], [4], [0]]
    assert [part.first for part in parts[:3]] == [0, 2, 4]


class Synchronized(SingleProcess):
    """Knows whether a backward would reduce gradients over workers."""

    def __init__(self):
        self.is_unsynced = False

    @contextlib.contextmanager
    def no_sync(self, forward):
        self.is_unsynced = True
        yield
        self.is_unsynced = False


@pytest.mark.parametrize(("size", "expected"), [(16, [False]), (8, [True, False]), (4, [True] * 3 + [False])])
def test_gradients_are_reduced_over_workers_in_the_last_micro_batch_alone(size, expected):
    collective, seen = Synchronized(), []
    accumulation = make_accumulation(size, nn.Identity(), nn.Identity(), collective, 1)
    batch = Batch(torch.zeros(16, 1), torch.zeros(16), 16)
    accumulation.run(batch, lambda part: seen.append(collective.is_unsynced) or torch.zeros(()))
    assert seen == expected


# Micro-batches that are halved.

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_micro_batches_and_repeats_the_step_from_the_same_state(
    tmp_path, error, caplog
):
    fixed = TrainingRun(tmp_path / "fixed", Net(), micro_batch_size=4, optim={"clip_norm": 1.0}).train()
    model = Net(limit=5, error=error)
    found = TrainingRun(tmp_path / "auto", model, micro_batch_size="auto", optim={"clip_norm": 1.0}).train()
    assert model.rows[:6] == [16, 8, 4, 4, 4, 4]
    assert max(model.rows[2:]) == 4
    assert found.losses == fixed.losses
    assert_same(found.model, fixed.model)
    messages = [record.message for record in caplog.records if "out of memory" in record.message]
    assert [text.split("; ")[0] for text in messages] == [
        "out of memory with 16 samples at a time",
        "out of memory with 8 samples at a time",
    ]


def test_memory_that_does_not_hold_one_sample_is_an_error_with_the_remedy(tmp_path):
    model = Net(limit=0, error=ERRORS[0])
    model.norm = nn.Identity()  # which a single sample would not do for
    run = TrainingRun(tmp_path, model, micro_batch_size="auto")
    with pytest.raises(
        TrainingError, match=r"one sample at a time: set train\.activation_checkpointing=true"
    ):
        run.train()
    assert run.model.rows == [16, 8, 4, 2, 1]


def test_another_error_is_not_taken_for_one_of_memory(tmp_path):
    run = TrainingRun(
        tmp_path,
        Net(limit=5, error=RuntimeError("mat1 and mat2 cannot be multiplied")),
        micro_batch_size="auto",
    )
    with pytest.raises(RuntimeError, match="multiplied"):
        run.train()
    assert run.model.rows == [16]
    assert not is_out_of_memory(ValueError("no"))


def test_with_enough_memory_auto_is_the_full_batch(tmp_path):
    full, auto = (
        TrainingRun(tmp_path / "a", Net()).train(),
        TrainingRun(tmp_path / "b", Net(), micro_batch_size="auto").train(),
    )
    assert auto.losses == full.losses
    assert_same(auto.model, full.model)
