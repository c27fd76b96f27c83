"""Items of several arrays, and arrays of several lengths: stored as one row of bytes, taken as they were."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from shoal.data import array_stats
from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.loader import ResidentShard, Rows, ViewedShard
from shoal.data.partition import partition_source
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import TRAIN, VALIDATION
from shoal.data.sources import base
from shoal.data.sources import function as module
from shoal.data.sources.function import source_from_value
from shoal.data.tree import tensors
from shoal.errors import DataError
from shoal.models.inputs import sample_like, view_of_rows

ROWS = 40
CPU = torch.device("cpu")
Point = collections.namedtuple("Point", "x y")


class Items(Dataset):
    """Items that a function makes of their number."""

    def __init__(self, make, count=ROWS):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row >= self.count:
            raise IndexError(row)
        return self.make(row)


class Takes(nn.Module):
    """Takes one tree."""

    def forward(self, batch):
        return batch


class TakesFields(nn.Module):
    def forward(self, image, text, text_lengths):
        return image, text, text_lengths


class TakesLengths(nn.Module):
    def forward(self, x, lengths):
        return x, lengths


def spec(source, keeps_targets=False, **data):
    config = DataConfig(**{"global_batch_size": 8, "test_fraction": 0.0} | data)
    return PreprocessingSpec(
        config, 0, not keeps_targets, source.is_ready, keeps_targets=keeps_targets,
        parts_of_items=source.parts_of_items,
    )  # fmt: skip


def prepared(make, keeps_targets=False, count=ROWS, **data):
    source = source_from_value("m:f", Items(make, count))
    preprocessing = spec(source, keeps_targets, **data)
    return source, preprocessing, inspect_source(source, preprocessing)


def batches(make, model=None, workers=1, split=TRAIN, **options):
    """The batches of all workers in the order of a first epoch, or the held-out rows."""
    source, preprocessing, info = prepared(make, **options)
    found = []
    for worker, rows in enumerate(partition_source(source, preprocessing, info, workers)):
        held = {name: Rows.of(*part, CPU) for name, part in rows.items()}
        shard = ResidentShard(info.lanes(preprocessing, worker, workers), held[TRAIN], held)
        viewed = ViewedShard(shard, view_of_rows(info.transform, model or Takes()))
        found.append(list(viewed.batches(0, 0) if split == TRAIN else viewed.held_out(split, 7)))
    return found


def a_user(row):
    return {
        "image": np.full((1, 3, 3), row, dtype=np.uint8),
        "price": float(row),
        "count": row,
        "is_new": row % 2 == 0,
        "nested": (torch.full((2,), row, dtype=torch.int16), {"half": torch.full((3,), row).half()}),
    }, row % 2


DTYPES = {
    "image": torch.uint8,
    "price": torch.float32,
    "count": torch.int64,
    "is_new": torch.bool,
}


def test_a_dict_of_any_arrays_comes_back_with_its_types_and_rows():
    [found] = batches(a_user)
    for batch in found:
        rows = batch.inputs["count"]
        assert {name: batch.inputs[name].dtype for name in DTYPES} == DTYPES
        assert torch.equal(batch.inputs["image"], rows.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 3, 3))
        assert torch.equal(batch.inputs["price"], rows.float())
        assert torch.equal(batch.inputs["is_new"], rows % 2 == 0)
        short, rest = batch.inputs["nested"]
        assert torch.equal(short, rows.to(torch.int16)[:, None].expand(-1, 2))
        assert torch.equal(rest["half"], rows.half()[:, None].expand(-1, 3))
        assert torch.equal(batch.targets, rows % 2)
        assert all(tensor.is_contiguous() for tensor in tensors(batch.inputs))
    [held_out] = batches(a_user, split=VALIDATION)
    assert sorted(row for batch in found + held_out for row in batch.inputs["count"].tolist()) == list(
        range(ROWS)
    )


def test_the_workers_have_together_the_batches_of_one():
    [alone] = batches(a_user)
    one, other = batches(a_user, workers=2)
    for whole, *parts in zip(alone, one, other, strict=True):
        rows = torch.empty_like(whole.inputs["count"])
        for worker, part in enumerate(parts):
            rows[worker::2] = part.inputs["count"]
        assert torch.equal(rows, whole.inputs["count"])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda row: ((np.zeros(2), np.zeros((3, 1))), 0), ((2,), (3, 1))),
        (lambda row: ([np.zeros(2), 1.0], 0), ((2,), ())),
        (lambda row: (Point(np.zeros(2), 3), row % 2), {"x": (2,), "y": ()}),
        (lambda row: ({"user": row, "item": 3}, row % 2), {"user": (), "item": ()}),
        (lambda row: {"x": np.zeros(4), "age": 3, "target": 0}, {"x": (4,), "age": ()}),
        (lambda row: {"inputs": {"a": np.zeros(4), "b": 0}, "target": 0}, {"a": (4,), "b": ()}),
        (lambda row: ({"source": np.zeros(2), "target": np.zeros(3)}, 0), {"source": (2,), "target": (3,)}),
        (lambda row: ({"photo": Image.new("RGB", (5, 4)), "n": 1}, 0), {"photo": (3, 4, 5), "n": ()}),
        (lambda row: ({"x": np.zeros(2), "color": "ab"[row % 2]}, 0), {"x": (2,), "color": (3,)}),
        (lambda row: (np.zeros((2, 3)), 0), (2, 3)),
        (lambda row: ({"x": np.zeros((2, 3))}, 0), {"x": (2, 3)}),
    ],
)
def test_a_builder_is_offered_the_shapes_of_the_tree(make, expected):
    def with_label(row):
        item = make(row)
        return (item[0], row % 2) if isinstance(item, tuple) else item | {"target": row % 2}

    _, _, info = prepared(with_label)
    assert info.transform.input_shapes == expected


def test_a_dict_of_single_values_stays_a_table():
    source, _, info = prepared(lambda row: {"age": row, "height": row / 2, "target": row % 2})
    assert not source.is_ready
    assert info.transform.input_tree is None


def test_dropped_fields_leave_the_tree():
    _, _, info = prepared(a_user, columns={"image": "drop", "nested.0": "drop"})
    assert info.transform.input_tree == {
        "price": "price",
        "count": "count",
        "is_new": "is_new",
        "nested": ({"half": "nested.1.half"},),
    }


def test_targets_are_a_tree_where_the_task_keeps_them():
    def make(row):
        return np.full(3, row, np.float32), {"mask": np.full((2, 2), row, np.uint8), "y": row / 4}

    [found] = batches(make, keeps_targets=True)
    for batch in found:
        rows = batch.inputs[:, 0]
        assert torch.equal(batch.targets["y"], rows / 4)
        assert torch.equal(batch.targets["mask"], rows.to(torch.uint8)[:, None, None].expand(-1, 2, 2))


def test_a_target_of_several_values_is_kept_or_refused():
    def make(row):
        return np.zeros(3, np.float32), np.full(2, row % 2)

    [found] = batches(make, keeps_targets=True)
    assert found[0].targets.shape == (8, 2)
    assert found[0].targets.dtype == torch.int64
    with pytest.raises(DataError, match=r"shape \(2,\) per row.*task=custom"):
        prepared(make)
    with pytest.raises(DataError, match=r"several arrays \(target.a, target.b\).*task=custom"):
        prepared(lambda row: (np.zeros(3), {"a": 1, "b": 2}))


# Arrays of several lengths.


def a_sequence(row):
    return np.arange(1, row % 5 + 2, dtype=np.float32), row % 2


def test_shorter_rows_are_padded_with_zeros_to_the_longest_of_all_splits():
    [found] = batches(a_sequence)
    [held_out] = batches(a_sequence, split=VALIDATION)
    for batch in found + held_out:
        assert batch.inputs.shape[1:] == (5,)
        lengths = (batch.inputs > 0).sum(1)
        assert torch.equal(batch.inputs, torch.arange(1.0, 6.0) * (torch.arange(5) < lengths[:, None]))


def test_a_forward_that_names_lengths_receives_them():
    [found] = batches(a_sequence, TakesLengths())
    for batch in found:
        assert list(batch.inputs) == ["x", "lengths"]
        assert torch.equal(batch.inputs["lengths"], (batch.inputs["x"] > 0).sum(1))


def test_fields_have_lengths_of_their_names():
    def make(row):
        return {"image": np.zeros((1, 2, 2)), "text": list(range(1, 2 + row % 3))}, row % 2

    [found] = batches(make, TakesFields())
    assert set(found[0].inputs) == {"image", "text", "text_lengths"}
    assert found[0].inputs["text"].dtype == torch.int64
    assert torch.equal(found[0].inputs["text_lengths"], (found[0].inputs["text"] > 0).sum(1))
    [found] = batches(make, Takes())  # which takes the dict as it is
    assert set(found[0].inputs) == {"image", "text", "text_lengths"}


def test_targets_of_each_entry_are_padded_with_what_torch_ignores():
    def make(row):
        length = 1 + row % 3
        return np.ones((length, 2), np.float32), {"tags": np.full(length, 7), "weights": np.ones(length)}

    [found] = batches(make, keeps_targets=True)
    for batch in found:
        lengths = batch.inputs[:, :, 0].sum(1)
        is_entry = torch.arange(3) < lengths[:, None]
        assert torch.equal(batch.targets["tags"], torch.where(is_entry, 7, -100))
        assert torch.equal(batch.targets["weights"], is_entry.float())


def test_rows_without_entries_have_the_type_of_the_others():
    [found] = batches(lambda row: ({"ids": list(range(row % 3)), "n": row}, row % 2))
    assert found[0].inputs["ids"].dtype == torch.int64


def test_a_row_that_is_much_longer_than_the_others_is_refused_by_number(monkeypatch):
    monkeypatch.setattr(array_stats, "PADDED_BYTES", 1000)
    with pytest.raises(DataError, match=r"row 17 has 900 entries, and the 40 rows have 23 on average.*x\[:"):
        prepared(lambda row: (np.zeros(900 if row == 17 else 1, np.float32), row % 2))


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda row: (np.zeros((2, 2 + row % 2)), 0), ["of item 5 is of shape [2, 3]"]),
        (lambda row: (Image.new(["L", "RGB"][row % 2], (4, 4)), 0), ["of item 5 is of shape [3, 4, 4]"]),
        (lambda row: ({"x": {"y": 1}, "x.y": np.zeros(1)}, 0), ["'x.y'"]),
        (lambda row: ([np.zeros(2)] * (1 + row % 2), 0), ["features.1", "as many parts"]),
    ],
)
def test_items_of_other_shapes_are_refused(make, pieces):
    with pytest.raises(DataError) as caught:
        prepared(make)
    assert all(piece in str(caught.value) for piece in pieces), caught.value


def test_rows_above_the_limit_are_those_below_it(monkeypatch):
    def make(row):
        return {"ids": np.arange(1 + row % 9), "x": np.full(2, row, np.float32)}, row % 2

    [small] = batches(make)
    monkeypatch.setattr(base, "IN_DRIVER_BYTES", 100)
    monkeypatch.setattr(module, "BLOCK_BYTES", 400)
    source = source_from_value("m:f", Items(make))
    assert len(list(source.blocks())) > 3
    [large] = batches(make)
    for one, other in zip(small, large, strict=True):
        assert all(map(torch.equal, tensors(one.inputs), tensors(other.inputs)))


def test_other_rows_change_the_fingerprint_of_arrays_of_several_lengths():
    def source(last):
        return source_from_value("m:f", Items(lambda row: (np.arange(row + 1) + last * (row == 39), 0)))

    assert source(0).fingerprint == source(0).fingerprint != source(1).fingerprint


def test_a_sample_has_the_form_of_a_batch():
    _, _, info = prepared(a_sequence)
    assert torch.equal(sample_like(info.transform, TakesLengths())["lengths"], torch.tensor([5]))
    _, _, info = prepared(a_user)
    sample = sample_like(info.transform, Takes(), rows=3)
    assert sample["image"].shape == (3, 1, 3, 3)
    assert sample["nested"][1]["half"].dtype == torch.float16
