"""Golden rows of every form come back as they were, and are compared as rounding allows."""

import numpy as np
import pandas as pd
import pytest

from saved_model import package
from shoal.inference.golden import Golden, choose, difference, save
from shoal.inference.predictor import Predictor


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"a": [1.5, np.nan], "b": ["x", None], "c": [1, 2], "d": [True, False]}),
        pd.DataFrame({"when": np.array(["2020-01-01", "NaT"], "datetime64[us]")}),
        pd.DataFrame({"array": [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)]}),
        pd.DataFrame({"ragged": [np.arange(2), np.arange(5)], "n": [1, 2]}),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    ],
    ids=["scalars", "dates", "arrays", "ragged", "one array"],
)
def test_rows_are_read_as_they_were_written(tmp_path, rows):
    save(tmp_path, rows, lambda given: pd.DataFrame({"prediction": range(len(given))}))
    found = Golden.load(tmp_path)
    assert found.answers["prediction"].tolist() == [0, 1]
    if isinstance(rows, np.ndarray):
        assert np.array_equal(found.rows, rows)
        assert found.rows.dtype == rows.dtype
        return
    for name in rows:
        for one, other in zip(rows[name], found.rows[name], strict=True):
            if isinstance(one, np.ndarray):
                assert np.array_equal(one, other)
                assert one.dtype == other.dtype
            else:
                assert one == other or (pd.isna(one) and pd.isna(other))


def test_fewer_rows_are_chosen_where_they_are_large_or_the_model_is():
    assert len(choose(np.zeros((100, 8)), parameters=1000)) == 32
    assert len(choose(np.zeros((100, 8)), parameters=10**9)) == 4
    assert len(choose(np.zeros((100, 1 << 17)), parameters=1000)) == 4
    assert len(choose(pd.DataFrame({"a": range(5)}), parameters=1000)) == 5


def classes(*probabilities):
    return pd.DataFrame(
        {
            "prediction": [int(np.argmax(row)) for row in probabilities],
            "probabilities": list(map(list, probabilities)),
        }
    )


@pytest.mark.parametrize(
    ("found", "expected", "match"),
    [
        (classes([0.2, 0.8]), classes([0.2, 0.8]), None),
        (classes([0.20001, 0.79999]), classes([0.2, 0.8]), None),
        (classes([0.21, 0.79]), classes([0.2, 0.8]), "'probabilities' of row 0"),
        (classes([0.50001, 0.49999]), classes([0.49999, 0.50001]), None),  # either may be the class
        (classes([0.2, 0.8], [0.2, 0.8]), classes([0.2, 0.8]), "2 rows"),
        (pd.DataFrame({"prediction": [1.0]}), classes([0.2, 0.8]), "instead of"),
        (pd.DataFrame({"prediction": [np.nan, 100.0]}), pd.DataFrame({"prediction": [np.nan, 100.0]}), None),
        (
            pd.DataFrame({"prediction": [np.nan]}),
            pd.DataFrame({"prediction": [1.0]}),
            "'prediction' of row 0",
        ),
        (pd.DataFrame({"prediction": [1e-7, 5.0]}), pd.DataFrame({"prediction": [2e-7, 5.0]}), None),
        (pd.DataFrame({"prediction": ["a"]}), pd.DataFrame({"prediction": ["b"]}), "is 'a', and was 'b'"),
        (pd.DataFrame({"prediction": [[1.0, 2.0]]}), pd.DataFrame({"prediction": [[1.0]]}), "'prediction'"),
    ],
)
def test_answers_may_differ_by_rounding_alone(found, expected, match):
    problem = difference(found, expected)
    assert problem is None if match is None else match in problem


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm"])
def test_a_language_model_carries_texts_with_their_losses(tmp_path, task):
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 200)
    kind = {"causal_lm": "gpt", "masked_lm": "bert"}[task]
    model = {"name": kind, "width": 32, "depth": 1}
    weights = package(tmp_path / "saved", f"text:{tmp_path}/text.txt", task, model, label=None, context=32)
    predictor = Predictor.load(weights)
    assert len(predictor.golden.rows) == 2
    assert set(predictor.golden.answers) == {"prediction", "loss"}
    assert (predictor.golden.answers["loss"] > 1).all()
    assert predictor.golden.rows["text"].str.contains(r"\[MASK\]").all() == (task == "masked_lm")
