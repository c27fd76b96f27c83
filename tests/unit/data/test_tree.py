"""Trees of tensors keep their form whatever is done to their tensors."""

import math
from collections import UserDict, namedtuple

import pytest
import torch

from shoal.data.tree import (
    are_equal,
    are_finite,
    clone,
    describe,
    first_tensor,
    map_tensors,
    only_tensor,
    row_count,
    select_rows,
    tensors,
)
from shoal.errors import DataError

Pair = namedtuple("Pair", "left right")


def some_tree():
    return {"image": torch.arange(12.0).view(3, 2, 2), "more": (torch.arange(3), [torch.ones(3).bool()])}


def test_a_mapped_tree_has_the_form_of_the_tree():
    doubled = map_tensors(lambda tensor: tensor * 2, some_tree())
    assert set(doubled) == {"image", "more"}
    assert isinstance(doubled["more"], tuple)
    assert isinstance(doubled["more"][1], list)
    assert doubled["more"][0].tolist() == [0, 2, 4]


def test_named_tuples_and_other_mappings_are_trees():
    pair = map_tensors(torch.neg, Pair(torch.ones(2), torch.zeros(2)))
    assert isinstance(pair, Pair)
    assert pair.left.tolist() == [-1, -1]
    assert row_count(UserDict(ids=torch.zeros(4, 7))) == 4


def test_rows_are_those_of_every_tensor():
    some = select_rows(some_tree(), slice(1, 3))
    assert row_count(some) == 2
    assert some["more"][0].tolist() == [1, 2]
    picked = select_rows(some_tree(), torch.tensor([2, 0]))
    assert picked["more"][0].tolist() == [2, 0]
    assert [len(tensor) for tensor in tensors(picked)] == [2, 2, 2]


def test_a_clone_shares_no_memory():
    tree = some_tree()
    copied = clone(tree)
    copied["image"] += 1
    assert first_tensor(tree)[0, 0, 0] == 0


def test_numbers_that_are_not_finite_are_found_in_any_tensor():
    assert are_finite(some_tree())
    assert not are_finite((torch.zeros(2, dtype=torch.int64), {"x": torch.tensor([1.0, float("nan")])}))


def test_a_tree_is_described_by_the_shapes_of_its_tensors():
    assert describe(torch.zeros(8, 3)) == "shape (8, 3) and type float32"
    assert describe({"age": torch.zeros(2).long(), "x": (torch.zeros(2, 3),)}) == (
        "{age: shape (2,) and type int64, x: (shape (2, 3) and type float32)}"
    )


def test_one_tensor_is_asked_for_by_name():
    assert only_tensor(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(DataError, match=r"one tensor is expected, and there are \{x: shape"):
        only_tensor({"x": torch.ones(2)})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"a": [1.0, math.nan], "b": [1.0]}, True),
        ({"a": [1.0, 2.0], "b": [1.0]}, False),
        ({"a": [1.0, math.nan, 1.0], "b": [1.0]}, False),
        ({"a": [1.0, math.nan]}, False),
    ],
)
def test_trees_are_equal_if_all_their_numbers_are_and_nan_equals_nan(other, expected):
    one = {"a": torch.tensor([1.0, math.nan]), "b": torch.ones(1)}
    assert are_equal(one, {name: torch.tensor(values) for name, values in other.items()}) is expected
