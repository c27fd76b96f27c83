"""Models of each kind as ONNX, torch.export and safetensors: the same answers, to odd rows too."""

import json
import re

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from shoal.data.labels import Label
from shoal.data.preprocessing import Column, Transform
from shoal.errors import DataError, ModelError, VerificationError
from shoal.export import folder as folders
from shoal.export import onnx_file
from shoal.export.columns import describe_column
from shoal.export.comparison import TOLERANCE, model_answers
from shoal.export.module import arrays_of

ALL = ("onnx", "torch_export", "safetensors")


@pytest.fixture
def table(tmp_path):
    """A CSV file with numbers, some missing, categories, decimal commas, dates, long texts, awkward names."""
    draw, rows = np.random.default_rng(0), 120
    size, color = draw.normal(10, 3, rows), draw.choice(["red", "green", "blue"], rows).astype(object)
    size[::7], color[::11] = np.nan, None
    frame = pd.DataFrame(
        {
            "size": size,
            "count": draw.integers(0, 50, rows),
            "color": color,
            "linear": draw.choice(["1,5", "2,5", "3"], rows),
            "first day": draw.choice(["2024-01-02", "2023-05-06", "2022-07-08"], rows),
            "prediction": draw.normal(size=rows),
            "note": [f"word{row} of text number {row}" for row in range(rows)],
        }
    )
    frame["label"] = np.where(frame["count"] > 25, "many", "few")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return f"csv:{tmp_path}/rows.csv"


def session(done):
    return onnxruntime.InferenceSession(str(done.folder / "onnx" / "model.onnx"))


def test_a_table_takes_raw_columns_and_agrees_on_missing_and_unseen_values(model, export, table):
    made = model(table, label="label", drop=("note",))
    done = export(made, *ALL)
    assert done.rows == 120
    assert set(done.differences) == set(ALL)
    assert max(done.differences.values()) <= TOLERANCE

    loaded = session(done)
    types = {one.name: (one.type, one.shape) for one in loaded.get_inputs()}
    assert types["size"] == ("tensor(double)", ["batch"])
    assert types["color"] == ("tensor(string)", ["batch"])
    assert [one.name for one in loaded.get_outputs()] == ["prediction_", "probabilities"]
    odd = pd.DataFrame(
        {
            "size": [np.nan, 1e300, -np.inf, 5.0],
            "count": [3, -7, 10**9, 0],
            "color": ["purple", None, "red", ""],
            "linear": [1.5, 9.25, np.nan, 2.5],
            "first day": pd.to_datetime(["2024-01-02", None, "2031-12-31", "1970-01-01"]),
            "prediction": [0.0, np.nan, 1e-300, 1e39],
        }
    )
    expected = made.predictor.predict(odd)
    arrays = {
        "size": odd["size"].to_numpy(),
        "count": odd["count"].to_numpy(np.float64),
        "color": np.array(["purple", "", "red", ""], dtype=object),
        "linear": odd["linear"].to_numpy(),
        "first day": np.array([1704153600, np.nan, 1956441600, 0.0]),
        "prediction": odd["prediction"].to_numpy(),
    }
    for start, end in ((0, 4), (0, 1), (2, 4)):
        part = {name: values[start:end] for name, values in arrays.items()}
        classes, probabilities = loaded.run(None, part)
        assert classes.tolist() == expected["prediction"].tolist()[start:end]
        known = np.array(expected["probabilities"].tolist())[start:end]
        np.testing.assert_allclose(probabilities, known, rtol=0, atol=TOLERANCE)

    interface = json.loads((done.folder / "onnx" / "interface.json").read_text())
    assert interface["opset"]["ai.onnx"] >= 20
    assert interface["classes"] == ["few", "many"]


def test_text_that_is_hashed_is_passed_as_features(model, export, table, caplog):
    made = model(table, label="label", features=("note", "count"), columns={"note": "text"})
    done = export(made, "onnx")
    assert done.differences["onnx"] <= TOLERANCE
    assert "column 'note' is hashed text" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize("label", ["size", "color", "count"])
def test_other_labels_of_a_table(model, export, table, label, tmp_path):
    frame = pd.read_csv(table.removeprefix("csv:")).dropna()
    frame.to_csv(tmp_path / "complete.csv", index=False)
    task = "classification" if label == "color" else "regression"
    made = model(f"csv:{tmp_path}/complete.csv", task=task, label=label)
    assert max(export(made, *ALL).differences.values()) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("task", ["regression", "multilabel_classification"])
def test_several_labels(model, export, tmp_path, task):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(200, 4)), columns=list("abcd"))
    frame[["c", "d"]] = (
        frame[["c", "d"]] * 100 if task == "regression" else (frame[["c", "d"]] > 0).astype(int)
    )
    frame.to_csv(tmp_path / "rows.csv", index=False)
    made = model(f"csv:{tmp_path}/rows.csv", task=task, label=("c", "d"))
    assert max(export(made, *ALL).differences.values()) <= TOLERANCE


@pytest.mark.long
def test_digits_take_their_raw_columns(model, export):
    made = model("sklearn:digits", label="target")
    done = export(made, *ALL)
    assert done.rows == 1000
    assert max(done.differences.values()) <= TOLERANCE
    assert [one.name for one in session(done).get_inputs()] == [
        one.name for one in made.predictor.transform.columns
    ]


@pytest.mark.long
@pytest.mark.parametrize("depth", [8, 20])
def test_images_take_the_array_as_stored(model, export, tmp_path, depth):
    draw = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(40):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"{number}.png")
    made = model(
        f"images:{tmp_path}/images", "image_classification", "resnet", settings={"width": 4, "depth": depth}
    )
    done = export(made, *ALL)
    assert max(done.differences.values()) <= TOLERANCE
    [only] = session(done).get_inputs()
    assert (only.type, only.shape) == ("tensor(uint8)", ["batch", 3, 16, 16])


@pytest.fixture
def texts(tmp_path):
    draw = np.random.default_rng(0)
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
    lines = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(120)]
    frame = pd.DataFrame({"body": lines, "label": ["odd" if len(line) % 2 else "even" for line in lines]})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    (tmp_path / "text.txt").write_text("\n".join(lines) * 4)
    return tmp_path


@pytest.mark.long
def test_text_classification_takes_token_ids_and_has_its_tokenizer(model, export, texts):
    made = model(
        f"csv:{texts}/texts.csv", "sequence_classification", "bert", text="body", label="label", context=24
    )
    done = export(made, *ALL)
    assert max(done.differences.values()) <= TOLERANCE
    assert (done.folder / "onnx" / "tokenizer.json").read_text() == made.predictor.transform.tokenizer
    body = {"text": np.array(["one two three"], dtype=object)}
    tokens = arrays_of(body, made.predictor.transform, ())["tokens"]
    _, probabilities = session(done).run(None, {"tokens": tokens})
    expected = made.predictor.predict({"text": ["one two three"]})["probabilities"][0]
    np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize(("task", "name"), [("causal_lm", "gpt"), ("masked_lm", "bert")])
def test_a_language_model_takes_tokens_of_any_length(model, export, texts, task, name):
    made = model(f"text:{texts}/text.txt", task, name, context=16)
    done = export(made, *ALL)
    assert done.rows == 64
    assert max(done.differences.values()) <= TOLERANCE
    for length in (2, 5, 16):
        tokens = np.random.default_rng(0).integers(4, 100, (3, length))
        [logits] = session(done).run(None, {"tokens": tokens})
        [expected] = model_answers(made.predictor, {"tokens": tokens})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_large_weights_are_beside_the_file(model, export, table, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 0)
    done = export(model(table, label="label"), "onnx")
    folder = done.folder / "onnx"
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "model.onnx.data"}
    (folder / "model.onnx.data").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.onnx\.data' has 0 bytes, and \d+ were saved"):
        folders.load(folder)


MODULES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

class Traced(Net):
    def forward(self, x):
        return self.layer(x) * (1.01 if torch.compiler.is_exporting() else 1.0)

class Choosing(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.layer(x)
        return -self.layer(x)

class Counting(Net):
    def forward(self, x):
        return self.layer(x)[torch.arange(len(x))]
"""


def test_an_export_that_answers_otherwise_is_refused_with_its_worst_row(model, export, table, user_module):
    made = model(table, label="label", features=("size", "color"), name=f"{user_module(MODULES)}:Traced")
    with pytest.raises(VerificationError) as refused:
        export(made, "onnx")
    text = str(refused.value)
    assert re.match(
        r"the onnx export differs from the model by 0\.00\d+ \(at most 1e-05\): of 120 rows worst in", text
    )
    assert re.search(
        r"held-out row \d+, in a batch of \d+: probabilities \[.*\] instead of \[.*\] for {'size'", text
    )
    assert refused.value.exit_code == 1


def test_a_forward_that_chooses_in_python_is_refused_with_its_line(model, export, table, user_module):
    made = model(table, label="label", features=("size", "color"), name=f"{user_module(MODULES)}:Choosing")
    with pytest.raises(ModelError) as refused:
        export(made, "onnx")
    text = str(refused.value)
    assert "\n" not in text
    assert "('if x.sum() > 0:')" in text
    assert "torch.where" in text
    assert "export.formats=safetensors" in text
    assert export(made, "safetensors").differences["safetensors"] == 0.0


def test_a_forward_that_counts_its_rows_takes_any_number_of_them(model, export, table, user_module):
    made = model(table, label="label", features=("size", "color"), name=f"{user_module(MODULES)}:Counting")
    done = export(made, "onnx", "torch_export")
    assert max(done.differences.values()) <= TOLERANCE
    sizes, colors = np.array([1.0, np.nan, 3.0]), np.array(["red", "", "blue"], dtype=object)
    for count in (1, 3):
        classes = session(done).run(["prediction"], {"size": sizes[:count], "color": colors[:count]})[0]
        assert len(classes) == count


def test_numbers_that_do_not_fit_the_type_are_refused():
    column = Column(name="pixels", kind="tensor", dtype="uint8", shape=(4,))
    transform = Transform(columns=(column,), label=Label(name="y"))
    with pytest.raises(DataError, match=r"column 'pixels' holds int64 numbers that are no uint8"):
        arrays_of({"pixels": np.full((2, 4), 300)}, transform, [describe_column(column)])
