"""Rows that are kept in their own type: as small as they were, and the same numbers to the bit."""

import numpy as np
import pytest
import torch

from shoal.data.dataset_info import inspect_source
from shoal.data.loader import Batch
from shoal.data.partition import partition_source
from shoal.data.sources.base import Part, Source
from shoal.data.widen import Widen

SHAPES = [(12,), (3, 4), (3, 4, 5)]


def source(values, is_ready=False):
    block = {"x": values, "target": np.arange(len(values)) % 2}
    return Source("mine:rows", "memory", (Part(lambda: iter([block])),), nbytes=1, is_ready=is_ready)


def draw(dtype, shape, rows=50):
    low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    return np.random.default_rng(0).integers(low, high, (rows, *shape)).astype(dtype)


def widened(transform, rows):
    return Widen(transform)(
        Batch(torch.from_numpy(rows), torch.zeros(len(rows)), count=len(rows)), None
    ).inputs


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("is_ready", [False, True])
def test_rows_are_kept_in_their_own_type_and_widened_to_the_bits_of_features(
    preprocessing, dtype, shape, is_ready
):
    spec = preprocessing(is_ready=is_ready)
    rows = source(draw(dtype, shape), is_ready)
    info = inspect_source(rows, spec)
    [parts] = partition_source(rows, spec, info, 1)
    inputs, _ = parts["train"]
    assert inputs.dtype == np.dtype(dtype)
    assert info.row_bytes == inputs[0].nbytes + 8
    [(_, block)] = rows.blocks()
    is_train = spec.split_rule.assign(np.arange(50), None, False) == 0
    expected = info.transform.features(block)[is_train]
    found = widened(info.transform, inputs).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_flat_bytes_take_the_shape_that_is_set(preprocessing):
    rows = source(draw("uint8", (12,)))
    info = inspect_source(rows, preprocessing(shape=(3, 2, 2)))
    [(_, block)] = rows.blocks()
    stored = info.transform.stored(block)
    assert stored.shape == (50, 3, 2, 2)
    np.testing.assert_array_equal(widened(info.transform, stored).numpy(), info.transform.features(block))


def test_numbers_of_a_wider_type_than_in_training_are_standardised_at_once(preprocessing):
    rows = source(draw("uint8", (3, 4, 5)))
    info = inspect_source(rows, preprocessing())
    [(_, block)] = rows.blocks()
    stored = info.transform.stored({"x": block["x"].astype(np.float64)})
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(widened(info.transform, stored).numpy(), info.transform.features(block))


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
def test_rows_of_other_types_are_kept_as_float32(preprocessing, dtype):
    rows = source(np.arange(150).reshape(50, 3).astype(dtype))
    info = inspect_source(rows, preprocessing())
    [(_, block)] = rows.blocks()
    assert info.transform.narrow is None
    assert info.transform.stored(block).dtype == np.float32
    assert info.row_bytes == 3 * 4 + 8
