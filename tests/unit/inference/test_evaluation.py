"""Which rows of a source are measured."""

import numpy as np
import pytest

from shoal.data.config import DataConfig
from shoal.data.sources.base import Part, Source
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.tasks.open_data import preprocessing_spec


def rows(start, count):
    return {"x": np.arange(start, start + count)}


def unread():
    raise AssertionError("rows of another split are read")


def source_of(**splits):
    """A source that is too large to keep, of one part for each split; a part is its blocks, or unread."""
    parts = [
        Part(read=unread if blocks is None else lambda blocks=blocks: iter(blocks), split=split)
        for split, blocks in splits.items()
    ]
    return Source("m:f", "function", tuple(parts), nbytes=1 << 40)


def measured(source, split):
    preprocessing = preprocessing_spec(DataConfig(source="m:f"), "classification", 0, source)
    return [block["x"].tolist() for block in split_blocks(source, preprocessing, split)]


def test_only_the_rows_that_a_source_states_for_a_split_are_read():
    source = source_of(train=None, validation=[rows(0, 2), rows(2, 1)], test=None)
    assert measured(source, "validation") == [[0, 1], [2]]


def test_rows_of_a_split_that_a_source_does_not_state_are_drawn():
    [drawn] = measured(source_of(train=[rows(0, 1000)], test=[rows(1000, 9)]), "validation")
    assert 50 < len(drawn) < 200
    assert max(drawn) < 1000
    assert measured(source_of(train=None, test=[rows(0, 3)]), "test") == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("most", "expected"), [(None, [2, 2, 2]), (1, [1]), (2, [2]), (3, [2, 1]), (9, [2, 2, 2])]
)
def test_no_more_rows_are_read_than_are_wanted(most, expected):
    read = []

    def blocks():
        for number in range(3):
            read.append(number)
            yield rows(2 * number, 2)

    assert [len(block["x"]) for block in first_rows(blocks(), most)] == expected
    assert len(read) == len(expected)
