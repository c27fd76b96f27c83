import json

import numpy as np
import pytest

from shoal.data.array_stats import ArrayStats
from shoal.data.labels import Label
from shoal.data.moments import Moments
from shoal.data.preprocessing import MAX_CATEGORIES, Column, Transform
from shoal.data.statistics import ColumnStats
from shoal.errors import DataError


def fit(values):
    return ColumnStats.of(np.asarray(values)).fit("x")


def texts(*values):
    return np.array(values, dtype=object)


# Moments.


@pytest.mark.parametrize("shape", [(), (3,)])
def test_merged_moments_equal_numpys_over_all_rows_with_missing_ones_left_out(shape):
    draw = np.random.default_rng(0)
    numbers = draw.normal(1e3, 2.0, (997, *shape))
    numbers[draw.random(numbers.shape) < 0.1] = np.nan
    merged = Moments.of(numbers[:1])
    for first, last in [(1, 2), (2, 500), (500, 500), (500, 997)]:
        merged = merged.merge(Moments.of(numbers[first:last]))
    mean, std = merged.fitted()
    np.testing.assert_array_equal(merged.count, (~np.isnan(numbers)).sum(axis=0))
    np.testing.assert_allclose(mean, np.nanmean(numbers, axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, np.nanstd(numbers, axis=0), rtol=1e-6)


def test_moments_of_nothing_are_neutral():
    nothing, some = Moments.of(np.array([np.nan, np.nan])), Moments.of(np.array([1.0, 3.0]))
    assert nothing.merge(some).fitted() == some.merge(nothing).fitted() == (2.0, 1.0)


# Columns.


def test_a_number_column_is_standardized():
    values = np.random.default_rng(0).normal(5, 3, 1000)
    features = fit(values).features(values)
    assert features.shape == (1000, 1)
    assert features.dtype == np.float32
    np.testing.assert_allclose([features.mean(), features.std()], [0, 1], atol=1e-5)


def test_missing_numbers_become_the_mean_and_a_column_says_which_they_were():
    features = fit([1.0, np.nan, 3.0]).features(np.array([1.0, np.nan, 3.0]))
    np.testing.assert_allclose(features, [[-1, 0], [0, 1], [1, 0]])


def test_a_number_missing_only_at_prediction_becomes_the_mean_without_another_column():
    np.testing.assert_allclose(fit([1.0, 3.0]).features(np.array([np.nan, 3.0])), [[0], [1]])


@pytest.mark.parametrize("as_type", [np.float64, object])
def test_an_infinite_number_counts_as_missing(as_type):
    values = np.array([1.0, np.inf, 3.0, -np.inf], dtype=as_type)
    np.testing.assert_allclose(fit(values).features(values), [[-1, 0], [0, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -1e9])
def test_a_constant_column_is_zero_and_stays_finite_for_other_values(value):
    column = fit(np.full(99, value))
    np.testing.assert_allclose(column.features(np.full(3, value)), 0, atol=1e-6)
    assert np.isfinite(column.features(np.array([value + 1]))).all()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(1.7e9 + np.linspace(0, 10, 100), id="far from zero: time stamps of ten seconds"),
        pytest.param(np.linspace(0, 1, 100) * 1e-15, id="tiny: a capacitance in farad"),
        pytest.param(np.linspace(0, 1, 100) * 1e40, id="beyond float32"),
    ],
)
def test_a_column_is_standardised_wherever_its_numbers_lie(values):
    column = fit(values)
    features = column.features(values)
    np.testing.assert_allclose([features.mean(), features.std()], [0, 1], atol=1e-3)
    assert Column.model_validate_json(column.model_dump_json()) == column


@pytest.mark.parametrize("values", [[True, False, True], texts(True, None, False), texts(1, 2.5, None)])
def test_booleans_and_mixed_numbers_are_number_columns(values):
    assert fit(values).kind == "number"


def test_a_column_with_no_value_at_all_can_be_fitted():
    values = np.full(4, np.nan)
    np.testing.assert_array_equal(fit(values).features(values), [[0, 1]] * 4)
    assert fit(texts(None, None)).features(texts(None, "a")).shape == (2, 1)


def test_a_text_column_is_one_hot_and_unseen_or_missing_values_share_the_last_place():
    column = fit(texts("b", "a", "b", None))
    assert column.categories == ("a", "b")
    np.testing.assert_array_equal(
        column.features(texts("a", "b", "never seen", None)), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    )


def test_a_text_column_of_more_values_than_categories_is_hashed_whatever_the_order_of_rows():
    values = [f"v{number:03d}" for number in range(MAX_CATEGORIES + 20)] + ["v119"] * 2
    column = fit(texts(*values))
    assert column == fit(texts(*reversed(values)))
    assert column.kind == "hashed"
    features = column.features(texts("v119", "v119", "never seen", None))
    np.testing.assert_array_equal(features.sum(axis=1), [1, 1, 1, 0])
    np.testing.assert_array_equal(features[0], features[1])


def test_vectors_are_standardised_per_element_and_images_over_all():
    draw = np.random.default_rng(0)
    vectors = draw.normal([1, 100], [1, 10], (500, 2))
    np.testing.assert_allclose(fit(vectors).features(vectors).std(axis=0), [1, 1], atol=1e-4)
    images = draw.normal(3, 2, (50, 4, 4))
    column = fit(images)
    assert isinstance(column.mean, float)
    np.testing.assert_allclose(column.features(images).std(), 1, atol=1e-4)


def test_rows_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"shape \(3,\) per row: the model was trained on \(2,\)"):
        fit(np.zeros((4, 2))).features(np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", "float32"),
        ("uint8", "float32"),
        ("bool", "float32"),
        ("int32", "int64"),
        ("int64", "int64"),
    ],
)
def test_ready_features_keep_their_values_as_float32_or_int64(dtype, expected):
    values = np.array([[0, 1], [1, 0]], dtype=dtype)
    features = ArrayStats.of(values).fit("x").features(values)
    assert features.dtype == expected
    np.testing.assert_array_equal(features, values)


def test_a_column_of_two_kinds_in_two_parts_of_the_data_is_refused_by_name():
    numbers, words = ColumnStats.of(np.zeros(2)), ColumnStats.of(texts("a"))
    with pytest.raises(DataError, match="column 'size' is number"):
        numbers.merge(words, "size")


# Labels.


@pytest.mark.parametrize(
    ("classes", "values"),
    [
        ((3, 5, 8), np.array([5, 3, 8])),
        ((3, 5, 8), np.array([5.0, 3.0, 8.0])),
        (("cat", "dog"), texts("dog", "cat")),
        ((False, True), np.array([True, False])),
    ],
)
def test_labels_become_class_numbers_and_come_back(classes, values):
    label = Label(name="y", classes=classes)
    numbers = label.targets(values)
    assert numbers.dtype == np.int64
    assert [classes[number] for number in numbers] == list(values)
    assert label.values(numbers).tolist() == list(values)


def test_a_class_that_training_never_saw_is_refused_by_name():
    with pytest.raises(DataError, match="holds 'cow', which is not among the 2 classes"):
        Label(name="y", classes=("cat", "dog")).targets(texts("dog", "cow"))


def test_regression_labels_come_back_in_their_own_unit():
    label = Label(name="y", mean=100.0, std=20.0)
    values = np.array([60.0, 100.0, 147.3])
    np.testing.assert_allclose(label.targets(values), [-2, 0, 2.365], rtol=1e-6)
    np.testing.assert_allclose(label.values(label.targets(values)), values, rtol=1e-6)


# The whole transform.


@pytest.fixture
def transform():
    columns = (fit([1.0, np.nan, 3.0]), fit(texts("a", "b")), fit(np.ones((3, 2))))
    names = ("size", "color", "place")
    return Transform(
        columns=tuple(c.model_copy(update={"name": n}) for c, n in zip(columns, names, strict=True)),
        label=Label(name="target", classes=(0, 1)),
    )


BLOCK = {"color": texts("b", None), "size": np.array([3.0, np.nan]), "place": np.ones((2, 2))}


def test_features_stand_in_the_fitted_order_whatever_the_order_of_columns(transform):
    features = transform.features(BLOCK)
    assert transform.input_shape == features.shape[1:] == (2 + 3 + 2,)
    np.testing.assert_allclose(features, [[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0]])


def test_columns_that_are_not_needed_do_not_disturb(transform):
    more = {**BLOCK, "id": np.arange(2)}
    np.testing.assert_array_equal(transform.features(more), transform.features(BLOCK))


def test_a_missing_column_is_refused_with_the_nearest_there_is(transform):
    block = {"colour": BLOCK["color"], "size": BLOCK["size"], "place": BLOCK["place"]}
    with pytest.raises(DataError, match=r"column 'color' is missing \(did you mean 'colour'\?\)"):
        transform.features(block)
    with pytest.raises(DataError, match=r"label column 'target' is missing \(did you mean 'tarjet'\?\)"):
        transform.targets({"tarjet": np.zeros(2)})


def test_a_single_tensor_column_keeps_its_shape():
    image = fit(np.random.default_rng(0).random((5, 3, 4)))
    transform = Transform(columns=(image,), label=Label(name="target", classes=(0, 1)))
    assert transform.input_shape == (3, 4)
    assert transform.features({"x": np.zeros((2, 3, 4))}).shape == (2, 3, 4)


def test_a_transform_survives_json_with_its_types(transform):
    again = Transform.model_validate(json.loads(json.dumps(transform.model_dump())))
    assert again == transform
    np.testing.assert_array_equal(again.features(BLOCK), transform.features(BLOCK))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_statistics_of_a_large_block_are_computed_in_parts(monkeypatch, shape):
    values = np.random.default_rng(0).normal(size=(101, *shape))
    values[7] = np.nan
    whole = ColumnStats.of(values)
    monkeypatch.setattr("shoal.data.statistics.STATISTICS_BYTES", 1000)
    parts = ColumnStats.of(values)
    assert parts.fit("x") == whole.fit("x")
    assert (parts.rows, parts.missing) == (whole.rows, whole.missing)
