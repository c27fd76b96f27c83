"""Rows whose items draw random numbers: others in every epoch, the same on any number of workers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.loader import ResidentShard, Rows
from shoal.data.partition import partition_source
from shoal.data.redraw import RedrawnRows, RedrawnShard
from shoal.data.sources.function import source_from_value
from shoal.runs.data_notes import data_notes
from shoal.tasks.open_data import preprocessing_spec

CPU = torch.device("cpu")
ROWS, BATCH = 45, 8


class Noisy(Dataset):
    """Items (row number, a random number) and their label."""

    def __init__(self, rows: int, draw: Callable[[], float] = lambda: float(torch.rand(()))):
        self.rows, self.draw = rows, draw

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return np.array([row, self.draw()], np.float32), row % 2


def opened(value):
    source = source_from_value("m:f", value)
    config = DataConfig(source="m:f", global_batch_size=BATCH)
    preprocessing = preprocessing_spec(config, "classification", 3, source)
    return source, preprocessing, inspect_source(source, preprocessing)


def shards(value, workers):
    source, preprocessing, info = opened(value)
    redrawn = RedrawnRows.of(source, preprocessing, info)
    for rank, rows in enumerate(partition_source(source, preprocessing, info, workers)):
        held = {name: Rows.of(*arrays, CPU) for name, arrays in rows.items()}
        shard = ResidentShard(info.lanes(preprocessing, rank, workers), held.pop("train"), held)
        yield RedrawnShard(shard, redrawn, CPU), shard


def epoch_of(value, workers, epoch, start=0):
    """Return the rows of each batch of an epoch over all workers, sorted by their number."""
    batches = []
    for parts in zip(*(shard.batches(epoch, start) for shard, _ in shards(value, workers)), strict=True):
        assert len({part.count for part in parts}) == 1
        rows = np.concatenate([part.inputs.numpy() for part in parts if not part.is_filler])
        assert len(rows) == parts[0].count
        batches.append(rows[rows[:, 0].argsort()])
    return batches


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), np.random.rand], ids=["torch", "numpy"])
def test_a_row_draws_the_same_on_any_number_of_workers_and_other_numbers_in_each_epoch(draw):
    value = Noisy(ROWS, draw)
    alone = epoch_of(value, 1, epoch=2)
    for workers in (2, 3):
        for one, other in zip(alone, epoch_of(value, workers, epoch=2), strict=True):
            np.testing.assert_array_equal(one, other)
    first, second = (np.concatenate(epoch_of(value, 1, epoch)) for epoch in (0, 1))
    assert sorted(first[:, 0]) == sorted(second[:, 0])
    assert not set(first[:, 1]) & set(second[:, 1])
    for one, other in zip(alone[2:], epoch_of(value, 2, epoch=2, start=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_come_in_the_order_and_with_the_labels_of_rows_that_are_kept():
    for redrawn, kept in shards(Noisy(ROWS), 2):
        for one, other in zip(redrawn.batches(1, 0), kept.batches(1, 0), strict=True):
            assert torch.equal(one.inputs[:, 0], other.inputs[:, 0])
            assert torch.equal(one.targets, other.targets)
            assert (one.count, one.is_filler) == (other.count, other.is_filler)
        for one, other in zip(redrawn.held_out("test", 4), kept.held_out("test", 4), strict=True):
            assert torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train"), ("validation", "train", "test")])
def test_splits_that_the_source_states_are_kept_in_any_order(splits):
    rows = {"train": ROWS, "test": 5, "validation": 6}
    value = {split: Noisy(rows[split]) for split in splits}
    [(redrawn, kept)] = shards(value, 1)
    for one, other in zip(redrawn.batches(0, 0), kept.batches(0, 0), strict=True):
        assert torch.equal(one.inputs[:, 0], other.inputs[:, 0])


def test_it_is_said_and_rows_without_random_numbers_are_kept():
    source, preprocessing, info = opened(Noisy(ROWS))
    assert any("read again in every epoch" in note for note in data_notes(source, info))
    source, preprocessing, info = opened(Noisy(ROWS, lambda: 0.5))
    assert RedrawnRows.of(source, preprocessing, info) is None
    assert not any("random" in note for note in data_notes(source, info))
