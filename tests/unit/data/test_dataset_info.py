import itertools

import numpy as np
import pandas as pd
import pytest

from shoal.data import dataset_info as dataset_info_module
from shoal.data.dataset_info import DatasetInfo, blocks_with_splits, inspect_source
from shoal.data.partition import partition_source
from shoal.data.sampler import SPLITS, Lanes
from shoal.data.sources.base import Part, Source, in_memory_source
from shoal.data.sources.function import source_from_value
from shoal.errors import DataError


def source(*blocks, split=None, is_ready=False):
    """A source that reads its rows in the given blocks."""
    return Source("mine:rows", "memory", (Part(lambda: iter(blocks), split),), nbytes=1, is_ready=is_ready)


def cut(block, *places):
    total = len(next(iter(block.values())))
    edges = [0, *places, total]
    return [{n: c[a:b] for n, c in block.items()} for a, b in itertools.pairwise(edges)]


def splits(block, preprocessing):
    return next(iter(blocks_with_splits(source(block), preprocessing)))[1]


def problem(block, preprocessing):
    src = source_from_value("mine:rows", block) if isinstance(block, dict) else block
    with pytest.raises(DataError) as caught:
        partition_source(src, preprocessing, inspect_source(src, preprocessing), 2)
    return str(caught.value)


# Fitting.


def test_the_transform_is_fitted_on_training_rows_alone(rows, preprocessing):
    made = preprocessing(validation_fraction=0.3, test_fraction=0.2)
    before = inspect_source(source(rows), made).transform
    held_out = splits(rows, made) > 0
    assert held_out.sum() > 20
    other = {name: column.copy() for name, column in rows.items()}
    other["size"][held_out] = 1e6
    other["count"][held_out] = -5
    other["color"][held_out] = "a colour of validation rows only"
    assert inspect_source(source(other), made).transform == before
    other["size"][~held_out] += 1
    assert inspect_source(source(other), made).transform != before


def test_a_regression_label_is_standardised_by_training_rows_alone(rows, preprocessing):
    made = preprocessing(is_classification=False, label="size")
    before = inspect_source(source(rows), made).transform.label
    train = rows["size"][splits(rows, made) == 0]
    np.testing.assert_allclose([before.mean, before.std], [train.mean(), train.std()], rtol=1e-6)
    other = {**rows, "size": np.where(splits(rows, made) > 0, 1e6, rows["size"])}
    assert inspect_source(source(other), made).transform.label == before


@pytest.mark.parametrize("places", [(1,), (60,), (1, 2, 3), tuple(range(7, 120, 7))])
def test_rows_read_block_by_block_are_preprocessed_as_rows_read_at_once(rows, preprocessing, places):
    rows["size"][::9] = np.nan
    made = preprocessing()
    whole, blocks = source(rows), source(*cut(rows, *places))
    dataset_info = inspect_source(whole, made)
    again = inspect_source(blocks, made)
    assert again.transform == dataset_info.transform
    assert again.rows == dataset_info.rows
    for one, other in zip(
        partition_source(whole, made, dataset_info, 3), partition_source(blocks, made, again, 3), strict=True
    ):
        for name in SPLITS:
            np.testing.assert_array_equal(one[name][0], other[name][0])
            np.testing.assert_array_equal(one[name][1], other[name][1])


def test_a_block_without_any_training_row_changes_nothing(rows, preprocessing):
    made = preprocessing()
    first_held_out = int(np.flatnonzero(splits(rows, made) > 0)[0])
    blocks = source(*cut(rows, first_held_out, first_held_out + 1))
    assert inspect_source(blocks, made).transform == inspect_source(source(rows), made).transform


@pytest.mark.parametrize("label", ["target", "color", "is_old", "size"])
def test_dataset_info_survives_json_and_its_transform_gives_the_same_features_to_the_bit(
    rows, preprocessing, label
):
    rows["is_old"] = rows["count"] > 20
    rows["size"][3] = 0.1 + 0.2
    made = preprocessing(label=label, is_classification=label != "size")
    dataset_info = inspect_source(source(rows), made)
    again = DatasetInfo.model_validate_json(dataset_info.model_dump_json())
    assert again == dataset_info
    assert again.transform.features(rows).tobytes() == dataset_info.transform.features(rows).tobytes()
    assert again.transform.targets(rows).tobytes() == dataset_info.transform.targets(rows).tobytes()


def test_a_label_of_numbers_text_or_booleans_keeps_its_values_as_classes(rows, preprocessing):
    classes = {}
    for label in ("target", "color", "is_old"):
        block = {**rows, "is_old": rows["count"] > 20}
        classes[label] = inspect_source(source(block), preprocessing(label=label)).transform.label.classes
    assert classes == {"target": (0, 1), "color": ("blue", "green", "red"), "is_old": (False, True)}


def test_a_class_that_only_held_out_rows_have_is_a_class(rows, preprocessing):
    made = preprocessing()
    rows["target"][np.flatnonzero(splits(rows, made) == 2)[0]] = 2
    dataset_info = inspect_source(source(rows), made)
    assert dataset_info.transform.label.classes == (0, 1, 2)
    partition_source(source(rows), made, dataset_info, 2)


def test_whole_numbers_that_came_as_floats_are_classes(rows, preprocessing):
    assert inspect_source(
        source({**rows, "target": rows["target"].astype(float)}), preprocessing()
    ).transform.label.classes == (0, 1)
    as_objects = np.array(rows["target"].astype(float).tolist(), dtype=object)
    assert inspect_source(
        source({**rows, "target": as_objects}), preprocessing()
    ).transform.label.classes == (0, 1)


def test_row_counts_and_row_size_are_known(rows, preprocessing):
    dataset_info = inspect_source(source(rows), preprocessing())
    assert sum(dataset_info.rows.values()) == 120
    assert dataset_info.row_bytes == 4 * (1 + 1 + 4) + 8


# Partitioning.


def ready(count):
    return {"id": np.arange(count, dtype=np.float32)[:, None], "target": np.arange(count) % 3}


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("places", [(), (1, 50), tuple(range(10, 200, 10))])
def test_workers_rows_together_are_all_rows_each_once_with_their_targets(preprocessing, workers, places):
    block, made = ready(203), preprocessing(is_ready=True)
    src = source(*cut(block, *places), is_ready=True)
    dataset_info = inspect_source(src, made)
    workers_rows = partition_source(src, made, dataset_info, workers)
    assert len(workers_rows) == workers
    numbers = splits(block, made)
    for number, name in enumerate(SPLITS):
        parts = [held[name] for held in workers_rows]
        ids = np.concatenate([inputs[:, 0] for inputs, _ in parts])
        np.testing.assert_array_equal(np.sort(ids), np.flatnonzero(numbers == number))
        assert len(ids) == dataset_info.rows[name]
        for inputs, targets in parts:
            np.testing.assert_array_equal(inputs[:, 0] % 3, targets)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_gets_the_training_rows_its_lanes_name_in_ascending_order(preprocessing, workers):
    block, made = ready(203), preprocessing(is_ready=True)
    src = source(*cut(block, 77), is_ready=True)
    dataset_info = inspect_source(src, made)
    training = np.flatnonzero(splits(block, made) == 0)
    for worker, held in enumerate(partition_source(src, made, dataset_info, workers)):
        lanes = dataset_info.lanes(made, worker, workers)
        assert lanes == Lanes(len(training), 8, 0, worker, workers)
        mine = training[lanes.owner(np.arange(len(training))) == worker]
        np.testing.assert_array_equal(held["train"][0][:, 0], mine)


def test_held_out_rows_are_spread_evenly(preprocessing):
    block, made = ready(203), preprocessing(is_ready=True)
    dataset_info = inspect_source(source(block, is_ready=True), made)
    workers_rows = partition_source(source(block, is_ready=True), made, dataset_info, 4)
    for name in SPLITS[1:]:
        counts = [len(held[name][1]) for held in workers_rows]
        assert max(counts) - min(counts) <= 1


# Splits that the source states.


def frame(first, count):
    return pd.DataFrame({"id": np.arange(first, first + count, dtype=float), "target": np.arange(count) % 2})


def test_splits_that_the_source_states_are_kept(preprocessing):
    src = source_from_value("m:f", {"train": frame(0, 50), "val": frame(50, 20), "test": frame(70, 10)})
    dataset_info = inspect_source(src, preprocessing())
    assert dataset_info.rows == {"train": 50, "validation": 20, "test": 10}
    np.testing.assert_allclose(dataset_info.transform.columns[0].mean, 24.5)


def test_without_a_stated_validation_split_a_share_of_the_training_rows_is_held_out(preprocessing):
    src = source_from_value("m:f", {"train": frame(0, 1000), "test": frame(1000, 10)})
    rows = inspect_source(src, preprocessing(validation_fraction=0.2)).rows
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
def test_a_label_that_cannot_be_learnt_is_refused(rows, preprocessing, values, is_classification, pieces):
    message = problem(with_label(rows, values), preprocessing(is_classification=is_classification))
    assert all(piece in message for piece in pieces), message


def test_more_classes_than_a_model_could_tell_apart_are_refused(preprocessing, monkeypatch):
    monkeypatch.setattr(dataset_info_module, "MAX_CLASSES", 50)
    block = {"x": np.arange(60.0), "target": np.arange(60)}
    assert "60 classes in 60 rows, more than 50" in problem(block, preprocessing())


def test_a_label_column_that_is_not_there_is_refused_with_the_nearest(rows, preprocessing):
    message = problem(rows, preprocessing(label="tarjet"))
    assert "did you mean 'target'" in message
    assert "size, count, color, target" in message


def test_a_label_of_several_values_per_row_is_refused(rows, preprocessing):
    assert "shape (2,) per row" in problem({**rows, "target": np.zeros((120, 2))}, preprocessing())


def test_a_label_of_one_value_in_a_list_is_that_value(rows, preprocessing):
    nested = {**rows, "target": rows["target"][:, None]}
    dataset_info = inspect_source(source(nested), preprocessing())
    flat = partition_source(source(rows), preprocessing(), dataset_info, 1)[0]["train"][1]
    np.testing.assert_array_equal(
        partition_source(source(nested), preprocessing(), dataset_info, 1)[0]["train"][1], flat
    )


def test_a_batch_larger_than_the_training_rows_is_refused_with_the_largest_that_fits(rows, preprocessing):
    message = problem(rows, preprocessing(global_batch_size=500))
    training = inspect_source(source(rows), preprocessing()).rows["train"]
    assert "data.global_batch_size=500 is larger" in message
    assert f"set it to {training} or less" in message


def test_a_validation_split_that_came_out_empty_is_refused(preprocessing):
    block = {"x": np.arange(12.0), "target": np.arange(12) % 2}
    assert "came out empty" in problem(block, preprocessing(validation_fraction=1e-6, test_fraction=0))


def test_data_without_features_or_rows_is_refused(rows, preprocessing):
    assert "no column besides the label" in problem({"target": rows["target"]}, preprocessing())
    empty = in_memory_source("mine:rows", {name: column[:0] for name, column in rows.items()})
    assert "has 0 rows" in problem(empty, preprocessing())


def test_parts_with_different_columns_are_refused(rows, preprocessing):
    less = {name: column for name, column in rows.items() if name != "count"}
    assert "column 'count' is in only a part" in problem(source(rows, less), preprocessing())


# What a person should know.


def given(**splits):
    """A source of given splits, one block each."""
    return source_from_value("mine:rows", {name: dict(block) for name, block in splits.items()})


def numbered(labels, first=0, columns="x"):
    rows = np.arange(first, first + len(labels)) / 7
    return dict.fromkeys(columns, rows) | {"target": np.array(labels)}


@pytest.mark.parametrize(("columns", "weight"), [("x", None), ("xyz", None), ("xyz", "z"), ("xz", "z")])
def test_a_test_split_without_labels_is_left_out(preprocessing, columns, weight):
    made = preprocessing(test_fraction=0, validation_fraction=0, weight=weight)
    train, validation = (numbered([0, 1] * half, 40 - half, columns) for half in (20, 5))
    src = given(train=train, validation=validation, test=numbered([-1] * 9, 50, columns))
    info = inspect_source(src, made)
    assert info.rows == {"train": 40, "validation": 10, "test": 0}
    assert info.transform.label.classes == (0, 1)
    assert "the split test has no labels: it is left out" in info.notes
    [rows] = partition_source(src, made, info, 1)
    assert {name: len(targets) for name, (_, targets) in rows.items()} == info.rows


def test_a_validation_split_without_labels_is_refused_unless_there_is_to_be_none(preprocessing):
    src = given(train=numbered([0, 1] * 20), validation=numbered([np.nan] * 9, 40))
    with pytest.raises(DataError, match=r"no row of the validation split of .* has a label"):
        inspect_source(src, preprocessing(test_fraction=0))
    info = inspect_source(src, preprocessing(test_fraction=0, validation_fraction=0))
    assert info.rows == {"train": 40, "validation": 0, "test": 0}


def test_minus_one_is_a_class_where_training_rows_have_it(preprocessing):
    made = preprocessing(test_fraction=0, validation_fraction=0)
    src = given(train=numbered([-1, 1] * 20), test=numbered([-1] * 9, 50))
    info = inspect_source(src, made)
    assert info.rows["test"] == 9
    assert info.transform.label.unlabelled == ()


@pytest.mark.parametrize("is_classification", [True, False])
def test_a_split_whose_labels_are_missing_is_left_out_and_single_gaps_are_refused(
    preprocessing, is_classification
):
    made = preprocessing(is_classification=is_classification, test_fraction=0, validation_fraction=0)
    train, nothing = numbered([0.0, 1.0] * 20), numbered([np.nan] * 9, 50)
    info = inspect_source(given(train=train, test=nothing), made)
    assert (info.rows["test"], info.transform.label.unlabelled) == (0, ("test",))
    some = numbered([np.nan, 1.0], 50)
    with pytest.raises(DataError, match=r"missing .* in 1 of 42 rows"):
        inspect_source(given(train=train, test=some), made)


def test_a_class_without_training_rows_is_named_with_its_rows(preprocessing):
    made = preprocessing(test_fraction=0, validation_fraction=0)
    info = inspect_source(given(train=numbered(["a", "b"] * 20), test=numbered(["a", "c", "c"], 50)), made)
    assert info.class_counts == {"train": {"a": 20, "b": 20}, "test": {"c": 2, "a": 1}}
    assert "1 class has no training rows and cannot be learnt: 'c' (2 rows)" in info.notes


def test_test_rows_that_are_training_rows_and_a_copy_of_the_label_are_said(rows, preprocessing):
    made = preprocessing(test_fraction=0, validation_fraction=0)
    leaky = rows | {"copy": np.where(rows["target"] > 0, "yes", "no").astype(object)}
    again = {name: column[:30] for name, column in leaky.items()}
    info = inspect_source(given(train=leaky, test=again), made)
    assert "100.0% of the test rows are training rows too: their metrics are too good" in info.notes
    assert any(line.startswith("column 'copy' alone predicts 'target' (100%)") for line in info.notes)


def test_nothing_odd_is_said_of_honest_rows(rows, preprocessing):
    honest = rows | {"target": np.random.default_rng(1).integers(0, 2, 120)}
    assert inspect_source(source(honest), preprocessing()).notes == []


def test_a_label_of_amounts_is_a_number(rows, preprocessing):
    made = preprocessing(is_classification=False)
    prices = rows["size"].round(2)
    plain = inspect_source(source(rows | {"target": prices}), made)
    texts = np.array([f"{price:.2f} €".replace(".", ",") for price in prices], dtype=object)
    src = source(rows | {"target": texts})
    info = inspect_source(src, made)
    assert "label column 'target' is read as numbers with a decimal comma" in info.notes
    for name in SPLITS:
        np.testing.assert_allclose(
            partition_source(src, made, info, 1)[0][name][1],
            partition_source(source(rows | {"target": prices}), made, plain, 1)[0][name][1],
            rtol=1e-5,
        )
    for row in (np.flatnonzero(splits(rows, made) == number)[0] for number in (0, 1)):
        odd = texts.copy()
        odd[row] = "free"
        assert "'free'" in problem(source(rows | {"target": odd}), made)


def test_what_is_known_survives_the_json_of_a_checkpoint(rows, preprocessing):
    info = inspect_source(source(rows), preprocessing())
    assert DatasetInfo.model_validate_json(info.model_dump_json()) == info
    assert info.examples


def test_a_column_that_the_config_drops_is_no_feature(rows, preprocessing):
    made = preprocessing(columns={"size": "drop", "count": "category"})
    info = inspect_source(source(rows), made)
    assert {column.name: column.kind for column in info.transform.columns} == {
        "count": "category",
        "color": "category",
    }
    assert {summary.name: summary.kind for summary in info.columns}["size"] == "dropped"


def test_classes_that_differ_only_by_blanks_or_case_are_named(preprocessing):
    info = inspect_source(given(train=numbered(["yes", "Yes ", "no", "maybe"] * 20)), preprocessing())
    assert [note for note in info.notes if "differ only" in note] == [
        "classes 'Yes ' and 'yes' differ only by blanks or case: write them alike if they are one"
    ]
