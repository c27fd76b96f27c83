import itertools

import numpy as np
import pandas as pd
import pytest

from shoal.data import prepare
from shoal.data.order import SPLITS, Lanes
from shoal.data.prepare import Prepared, deal_here, number_blocks, prepare_here
from shoal.data.sources import Part, Source, of_value
from shoal.errors import DataError


def source(*blocks, split=None, is_ready=False):
    """A source that reads its rows in the given blocks."""
    return Source("mine:rows", "memory", (Part(lambda: iter(blocks), split),), nbytes=1, is_ready=is_ready)


def cut(block, *places):
    total = len(next(iter(block.values())))
    edges = [0, *places, total]
    return [{n: c[a:b] for n, c in block.items()} for a, b in itertools.pairwise(edges)]


def splits(block, recipe):
    return next(iter(number_blocks(source(block), recipe)))[1]


def problem(block, recipe):
    src = of_value("mine:rows", block) if isinstance(block, dict) else block
    with pytest.raises(DataError) as caught:
        deal_here(src, recipe, prepare_here(src, recipe), 2)
    return str(caught.value)


# Fitting.


def test_the_transform_is_fitted_on_training_rows_alone(rows, recipe):
    made = recipe(validation_fraction=0.3, test_fraction=0.2)
    before = prepare_here(source(rows), made).transform
    held_out = splits(rows, made) > 0
    assert held_out.sum() > 20
    other = {name: column.copy() for name, column in rows.items()}
    other["size"][held_out] = 1e6
    other["count"][held_out] = -5
    other["color"][held_out] = "a colour of validation rows only"
    assert prepare_here(source(other), made).transform == before
    other["size"][~held_out] += 1
    assert prepare_here(source(other), made).transform != before


def test_a_regression_label_is_standardised_by_training_rows_alone(rows, recipe):
    made = recipe(is_classification=False, label="size")
    before = prepare_here(source(rows), made).transform.label
    train = rows["size"][splits(rows, made) == 0]
    np.testing.assert_allclose([before.mean, before.std], [train.mean(), train.std()], rtol=1e-6)
    other = {**rows, "size": np.where(splits(rows, made) > 0, 1e6, rows["size"])}
    assert prepare_here(source(other), made).transform.label == before


@pytest.mark.parametrize("places", [(1,), (60,), (1, 2, 3), tuple(range(7, 120, 7))])
def test_rows_read_block_by_block_are_prepared_as_rows_read_whole(rows, recipe, places):
    rows["size"][::9] = np.nan
    made = recipe()
    whole, blocks = source(rows), source(*cut(rows, *places))
    prepared = prepare_here(whole, made)
    again = prepare_here(blocks, made)
    assert again.transform == prepared.transform
    assert again.rows == prepared.rows
    for one, other in zip(
        deal_here(whole, made, prepared, 3), deal_here(blocks, made, again, 3), strict=True
    ):
        for name in SPLITS:
            np.testing.assert_array_equal(one[name][0], other[name][0])
            np.testing.assert_array_equal(one[name][1], other[name][1])


def test_a_block_without_any_training_row_does_not_disturb(rows, recipe):
    made = recipe()
    first_held_out = int(np.flatnonzero(splits(rows, made) > 0)[0])
    blocks = source(*cut(rows, first_held_out, first_held_out + 1))
    assert prepare_here(blocks, made).transform == prepare_here(source(rows), made).transform


@pytest.mark.parametrize("label", ["target", "color", "is_old", "size"])
def test_what_was_prepared_survives_json_and_gives_the_very_same_features(rows, recipe, label):
    rows["is_old"] = rows["count"] > 20
    rows["size"][3] = 0.1 + 0.2
    made = recipe(label=label, is_classification=label != "size")
    prepared = prepare_here(source(rows), made)
    again = Prepared.model_validate_json(prepared.model_dump_json())
    assert again == prepared
    assert again.transform.features(rows).tobytes() == prepared.transform.features(rows).tobytes()
    assert again.transform.targets(rows).tobytes() == prepared.transform.targets(rows).tobytes()


def test_a_label_of_numbers_text_or_booleans_keeps_its_values_as_classes(rows, recipe):
    classes = {}
    for label in ("target", "color", "is_old"):
        block = {**rows, "is_old": rows["count"] > 20}
        classes[label] = prepare_here(source(block), recipe(label=label)).transform.label.classes
    assert classes == {"target": (0, 1), "color": ("blue", "green", "red"), "is_old": (False, True)}


def test_a_class_that_only_held_out_rows_have_is_a_class(rows, recipe):
    made = recipe()
    rows["target"][np.flatnonzero(splits(rows, made) == 2)[0]] = 2
    prepared = prepare_here(source(rows), made)
    assert prepared.transform.label.classes == (0, 1, 2)
    deal_here(source(rows), made, prepared, 2)


def test_whole_numbers_that_came_as_floats_are_classes(rows, recipe):
    assert prepare_here(
        source({**rows, "target": rows["target"].astype(float)}), recipe()
    ).transform.label.classes == (0, 1)
    as_objects = np.array(rows["target"].astype(float).tolist(), dtype=object)
    assert prepare_here(source({**rows, "target": as_objects}), recipe()).transform.label.classes == (0, 1)


def test_row_counts_and_row_size_are_known(rows, recipe):
    prepared = prepare_here(source(rows), recipe())
    assert sum(prepared.rows.values()) == 120
    assert prepared.row_bytes == 4 * (1 + 1 + 4) + 8


# Dealing.


def ready(count):
    return {"id": np.arange(count, dtype=np.float32)[:, None], "target": np.arange(count) % 3}


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("places", [(), (1, 50), tuple(range(10, 200, 10))])
def test_workers_rows_together_are_all_rows_each_once_with_their_targets(recipe, workers, places):
    block, made = ready(203), recipe(is_ready=True)
    src = source(*cut(block, *places), is_ready=True)
    prepared = prepare_here(src, made)
    hands = deal_here(src, made, prepared, workers)
    assert len(hands) == workers
    numbers = splits(block, made)
    for number, name in enumerate(SPLITS):
        parts = [hand[name] for hand in hands]
        ids = np.concatenate([inputs[:, 0] for inputs, _ in parts])
        np.testing.assert_array_equal(np.sort(ids), np.flatnonzero(numbers == number))
        assert len(ids) == prepared.rows[name]
        for inputs, targets in parts:
            np.testing.assert_array_equal(inputs[:, 0] % 3, targets)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_gets_the_training_rows_its_lanes_name_in_ascending_order(recipe, workers):
    block, made = ready(203), recipe(is_ready=True)
    src = source(*cut(block, 77), is_ready=True)
    prepared = prepare_here(src, made)
    training = np.flatnonzero(splits(block, made) == 0)
    for worker, hand in enumerate(deal_here(src, made, prepared, workers)):
        lanes = prepared.lanes(made, worker, workers)
        assert lanes == Lanes(len(training), 8, 0, worker, workers)
        mine = training[lanes.owner(np.arange(len(training))) == worker]
        np.testing.assert_array_equal(hand["train"][0][:, 0], mine)
        assert lanes.local_rows == len(mine)


def test_held_out_rows_are_spread_evenly(recipe):
    block, made = ready(203), recipe(is_ready=True)
    prepared = prepare_here(source(block, is_ready=True), made)
    hands = deal_here(source(block, is_ready=True), made, prepared, 4)
    for name in SPLITS[1:]:
        counts = [len(hand[name][1]) for hand in hands]
        assert max(counts) - min(counts) <= 1


# Splits that the source gives.


def frame(first, count):
    return pd.DataFrame({"id": np.arange(first, first + count, dtype=float), "target": np.arange(count) % 2})


def test_given_splits_stand(recipe):
    src = of_value("m:f", {"train": frame(0, 50), "val": frame(50, 20), "test": frame(70, 10)})
    prepared = prepare_here(src, recipe())
    assert prepared.rows == {"train": 50, "validation": 20, "test": 10}
    np.testing.assert_allclose(prepared.transform.columns[0].mean, 24.5)


def test_without_a_given_validation_split_a_share_of_the_training_rows_is_held_out(recipe):
    src = of_value("m:f", {"train": frame(0, 1000), "test": frame(1000, 10)})
    rows = prepare_here(src, recipe(validation_fraction=0.2)).rows
    assert rows["test"] == 10
    assert rows["train"] + rows["validation"] == 1000
    assert 150 < rows["validation"] < 250


# What is refused.


def with_label(rows, values):
    return {**rows, "target": np.resize(values, 120)}


@pytest.mark.parametrize(
    ("values", "is_classification", "pieces"),
    [
        ([0.0, 1.0, np.nan], True, ["is missing (NaN) in 40 of 120 rows", "fill or drop"]),
        (np.array(["a", None], dtype=object), True, ["is missing (NaN) in 60 of 120 rows"]),
        ([7], True, ["has one class (7) in all 120 rows", "at least two"]),
        ([0.5, 1.5], True, ["holds fractions", "task=regression"]),
        (np.array(["a", "b"], dtype=object), False, ["holds text", "task=classification"]),
        (np.array(["a", "b"]), False, ["holds text", "task=classification"]),
        ([0.0, 1.0, np.inf], True, ["data.label='target'", "inf"]),
        ([0.5, 1.0, np.inf], False, ["data.label='target'", "inf"]),
    ],
)
def test_a_label_that_cannot_be_learnt_is_refused(rows, recipe, values, is_classification, pieces):
    message = problem(with_label(rows, values), recipe(is_classification=is_classification))
    assert all(piece in message for piece in pieces), message


def test_more_classes_than_a_model_could_tell_apart_are_refused(recipe, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_CLASSES", 50)
    block = {"x": np.arange(60.0), "target": np.arange(60)}
    assert "60 classes in 60 rows, more than 50" in problem(block, recipe())


def test_a_label_column_that_is_not_there_is_refused_with_the_nearest(rows, recipe):
    message = problem(rows, recipe(label="tarjet"))
    assert "did you mean 'target'" in message
    assert "size, count, color, target" in message


def test_a_label_of_several_values_per_row_is_refused(rows, recipe):
    assert "shape (2,) per row" in problem({**rows, "target": np.zeros((120, 2))}, recipe())


def test_a_label_of_one_value_in_a_list_is_that_value(rows, recipe):
    nested = {**rows, "target": rows["target"][:, None]}
    prepared = prepare_here(source(nested), recipe())
    flat = deal_here(source(rows), recipe(), prepared, 1)[0]["train"][1]
    np.testing.assert_array_equal(deal_here(source(nested), recipe(), prepared, 1)[0]["train"][1], flat)


def test_a_batch_larger_than_the_training_rows_is_refused_with_the_largest_that_fits(rows, recipe):
    message = problem(rows, recipe(global_batch_size=500))
    training = prepare_here(source(rows), recipe()).rows["train"]
    assert "data.global_batch_size=500 is larger" in message
    assert f"set it to {training} or less" in message


def test_a_validation_split_that_came_out_empty_is_refused(recipe):
    block = {"x": np.arange(12.0), "target": np.arange(12) % 2}
    assert "came out empty" in problem(block, recipe(validation_fraction=1e-6, test_fraction=0))


def test_data_without_features_or_rows_is_refused(rows, recipe):
    assert "no column besides the label" in problem({"target": rows["target"]}, recipe())
    assert "has 0 rows" in problem({name: column[:0] for name, column in rows.items()}, recipe())


def test_parts_with_different_columns_are_refused(rows, recipe):
    less = {name: column for name, column in rows.items() if name != "count"}
    assert "column 'count' is in only a part" in problem(source(rows, less), recipe())
