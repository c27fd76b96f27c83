import warnings

import numpy as np
import pytest
import torch

from shoal.data.loader import ResidentShard, Rows
from shoal.data.packing import Field, Packing, as_ragged
from shoal.data.sampler import Lanes

CPU = torch.device("cpu")


def crew(rows, batch_size, workers, seed=0):
    """One shard per worker over rows whose input and target is their own number."""
    numbers = np.arange(rows, dtype=np.int64)
    held_out = np.arange(1000, 1000 + rows)
    shards = []
    for worker in range(workers):
        lanes = Lanes(rows, batch_size, seed, worker, workers)
        mine, rest = numbers[lanes.owner(numbers) == worker], held_out[worker::workers]
        train = Rows.of(mine[:, None].astype(np.float32), mine, CPU)
        shards.append(ResidentShard(lanes, train, {"validation": Rows.of(rest[:, None], rest, CPU)}))
    return shards


def counted(batch):
    """The rows of a batch that count."""
    return [] if batch.is_filler else batch.targets.tolist()


@pytest.mark.parametrize(("rows", "batch_size"), [(64, 16), (103, 16), (97, 16), (10, 16), (50, 5)])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_the_workers_batches_put_together_are_the_batches_of_one(rows, batch_size, workers):
    for epoch in (0, 1):
        (alone,) = crew(rows, batch_size, 1)
        whole = list(alone.batches(epoch, 0))
        parts = [list(shard.batches(epoch, 0)) for shard in crew(rows, batch_size, workers)]
        assert {len(part) for part in parts} == {len(whole)}
        for one, *many in zip(whole, *parts, strict=True):
            assert sorted(row for batch in many for row in counted(batch)) == sorted(counted(one))
            assert {batch.count for batch in many} == {one.count} == {len(counted(one))}


def test_inputs_and_targets_stay_together():
    for batch in crew(50, 8, 1)[0].batches(2, 0):
        np.testing.assert_array_equal(batch.inputs[:, 0], batch.targets)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7])
def test_starting_in_the_middle_of_an_epoch_serves_exactly_what_is_left(start):
    for shard in crew(103, 16, 3):
        rest = [counted(batch) for batch in shard.batches(1, start)]
        assert rest == [counted(batch) for batch in shard.batches(1, 0)][start:]


def test_a_worker_without_rows_in_the_last_batch_gets_a_filler_that_says_so():
    shards = crew(rows=17, batch_size=8, workers=4)
    last = [list(shard.batches(0, 0))[-1] for shard in shards]
    assert [batch.is_filler for batch in last] == [False, True, True, True]
    assert {batch.count for batch in last} == {1}
    assert {len(batch.inputs) for batch in last} == {1}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_held_out_rows_come_once_each_in_batches_of_at_most_the_asked_size(size):
    seen = []
    for shard in crew(50, 8, 3):
        for batch in shard.held_out("validation", size):
            assert 1 <= len(batch.targets) == batch.count <= size
            seen += batch.targets.tolist()
    assert sorted(seen) == list(range(1000, 1050))


def test_read_only_memory_is_used_as_it_is_without_a_warning():
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = Rows.of(array, np.zeros(3), CPU)
    assert rows.inputs.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("nbytes", [1, 100, 1000])
@pytest.mark.parametrize("start", [0, 3])
def test_batches_do_not_depend_on_how_many_are_gathered_at_a_time(monkeypatch, nbytes, start):
    shard = crew(103, 16, 3)[1]
    expected = [counted(batch) for batch in shard.batches(1, start)]
    monkeypatch.setattr("shoal.data.loader.GATHERED_BYTES", nbytes)
    assert [counted(batch) for batch in shard.batches(1, start)] == expected


def test_batches_of_rows_elsewhere_are_moved_to_the_device():
    """The meta device stands for a GPU: it takes tensors, and their values need not be looked at."""
    lanes, rows = Lanes(10, 4, 0), Rows.of(np.arange(10.0)[:, None], np.arange(10), CPU)
    shard = ResidentShard(lanes, rows, {"validation": rows}, torch.device("meta"))
    found = [*shard.batches(0, 0), *shard.held_out("validation", 4)]
    assert [len(batch.targets) for batch in found] == [4, 4, 2, 4, 4, 2]
    assert {tensor.device.type for batch in found for tensor in (batch.inputs, batch.targets)} == {"meta"}
    assert rows.inputs.device == CPU


def test_the_lengths_of_packed_rows_are_those_of_their_first_ragged_array():
    arrays = as_ragged([np.ones((length, 2), np.float32) for length in (3, 1, 0, 2)])
    block = {"id": np.arange(4), "steps": arrays}
    fields = [Field("id", "int64", ()), Field("steps", "float32", (3, 2), is_ragged=True)]
    packing = Packing(fields)
    np.testing.assert_array_equal(packing.lengths(packing.pack(block)), [3, 1, 0, 2])
    assert Packing(fields[:1]).lengths(packing.pack(block)) is None
