"""Whichever way a model or its variant is asked, rows get the same probabilities, which `shoal evaluate` measures."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jobs.test_serve import serving
from running import Place
from shoal.export import folder as exports
from shoal.export.module import arrays_of
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_block

# In a process that has neither Ray nor a config of the run.
PYFUNC = """
import pickle, sys
import mlflow.pyfunc
data = pickle.load(open("asked.pickle", "rb"))
found = mlflow.pyfunc.load_model(sys.argv[1]).predict(data)
assert "ray" not in sys.modules
pickle.dump([list(row) for row in found["probabilities"]], open("answers.pickle", "wb"))
"""

ROWS = 24
HUGE = 2  # the row of the table that holds 1e30


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        train: arguments of the training.
        source: of rows to ask about, as `data.source`.
        data: the same rows as Python's callers pass them.
        columns: the same rows for `/predict`; `tensors`: for the V2 protocol; `invocations`: for MLflow's.
        labels: the right class of each row, by name.
    """

    train: tuple[str, ...]
    source: str
    data: Any
    columns: dict[str, Any]
    tensors: list[dict[str, Any]]
    invocations: dict[str, Any]
    labels: list[str]


def tensor(name: str, values: Any, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": values}


def of_frame(path: Path, frame: pd.DataFrame, label: str, train: tuple[str, ...]) -> Kind:
    """Rows of a table, which `asked.csv` holds."""
    frame.to_csv(path / "asked.csv", index=False)
    data = frame.drop(columns=label)
    cells: dict[str, list[Any]] = {
        name: [None if pd.isna(cell) else cell for cell in data[name].tolist()] for name in data
    }
    tensors = [
        tensor(name, values, "FP64" if data[name].dtype.kind in "if" else "BYTES", (len(frame), 1))
        for name, values in cells.items()
    ]
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    split = {"dataframe_split": {"columns": list(cells), "data": rows}}
    return Kind(train, "csv:asked.csv", data, cells, tensors, split, frame[label].astype(str).tolist())


def digits(path: Path) -> Kind:
    from sklearn.datasets import load_digits

    source = load_digits()
    frame = pd.DataFrame(source.data[:ROWS], columns=source.feature_names).assign(target=source.target[:ROWS])
    frame.iloc[3, 5] = np.nan
    return of_frame(path, frame, "target", ("digits.yaml",))


def table(path: Path) -> Kind:
    draw = np.random.default_rng(0)
    rows = 600
    size, color = draw.normal(10, 3, rows), draw.choice(["red", "blue", "green"], rows)
    sold = np.where((size > 10) & (color == "red"), "yes", "no")
    frame = pd.DataFrame({"size": size, "color": color, "sold": sold})
    frame.loc[::9, "size"] = np.nan
    frame.loc[::13, "color"] = None
    frame.to_csv(path / "shop.csv", index=False)
    asked = frame.head(ROWS).copy()
    asked.loc[1, "color"], asked.loc[HUGE, "size"], asked.loc[5, "color"] = "never seen", 1e30, ""
    asked["color"] = asked["color"].replace("", None)
    return of_frame(
        path, asked, "sold", ("classification.yaml", "data.source=csv:shop.csv", "data.label=sold")
    )


def texts(path: Path) -> Kind:
    draw = np.random.default_rng(0)
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
    lines = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(400)]
    frame = pd.DataFrame({"body": lines, "kind": ["odd" if len(line) % 2 else "even" for line in lines]})
    frame.to_csv(path / "texts.csv", index=False)
    asked = frame.head(ROWS).copy()
    asked.loc[0, "body"], asked.loc[1, "body"] = "words that nobody has seen: \u00e9\u4e2d", "one " * 60
    keys = ("task=sequence_classification", "model.name=bert", "model.width=16", "model.depth=1")
    data = ("data.source=csv:texts.csv", "data.text=body", "data.label=kind", "data.context=48")
    one = of_frame(path, asked, "kind", (*keys, *data))
    named = {"text": asked["body"].tolist()}
    split = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in named["text"]]}}
    tensors = [tensor("text", named["text"], "BYTES", (ROWS, 1))]
    return Kind(one.train, one.source, pd.DataFrame(named), named, tensors, split, one.labels)


def images(path: Path) -> Kind:
    draw, kinds = np.random.default_rng(0), ("cat", "dog")
    pixels, labels = [], []
    for place, kind in enumerate(kinds):
        for number in range(60):
            one = draw.integers(0, 200, (16, 16, 3), dtype=np.uint8) + np.uint8(40 * place)
            names = [f"pets/{kind}", f"asked/{kind}"] if number < ROWS // 2 else [f"pets/{kind}"]
            for name in names:
                (path / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(one).save(path / name / f"{number:02}.png")
            if number < ROWS // 2:
                pixels.append(one.transpose(2, 0, 1))
                labels.append(kind)
    block = np.stack(pixels)
    keys = ("task=image_classification", "model.name=resnet", "model.width=8", "model.depth=8")
    tensors = [tensor("image", block.ravel().tolist(), "UINT8", block.shape)]
    asked = block.tolist()
    return Kind(
        (*keys, "data.source=images:pets"), "images:asked", block, {"image": asked}, tensors, {"inputs": asked}, labels
    )  # fmt: skip


def by_pyfunc(place: Place, model: str, data: Any) -> np.ndarray:
    pd.to_pickle(data, place.path / "asked.pickle")
    subprocess.run([sys.executable, "-c", PYFUNC, f"{model}/model"], cwd=place.path, check=True)
    return np.array(pd.read_pickle(place.path / "answers.pickle"))


def by_export(folder: Path, model: Predictor, data: Any) -> np.ndarray:
    loaded = exports.load(folder)
    try:
        arrays = arrays_of(as_block(data, model.transform), model.transform, loaded.interface.inputs)
        answers = dict(zip([one.name for one in loaded.interface.outputs], loaded.run(arrays), strict=True))
    finally:
        loaded.close()
    return np.asarray(answers["probabilities"])


def by_http(place: Place, model: str, kind: Kind) -> dict[str, np.ndarray]:
    with serving(place, model) as (client, _):
        name = next(iter(client.get("/ready")[1]["models"]))
        columns = client.post("/predict", kind.columns)
        tensors = client.post(f"/v2/models/{name}/infer", {"inputs": kind.tensors})
        rows = client.post("/invocations", kind.invocations)
    for status, answer, _ in (columns, tensors, rows):
        assert status == 200, answer
    outputs = {one["name"]: np.reshape(one["data"], one["shape"]) for one in tensors[1]["outputs"]}
    predictions = rows[1]["predictions"]
    return {
        "/predict": np.array(columns[1]["probabilities"]),
        "V2": outputs["probabilities"],
        "/invocations": np.array([row["probabilities"] for row in predictions]),
    }


def trained(place: Place, kind: Kind, *keys: str) -> str:
    small = ("train.epochs=2", "scale.num_workers=0", "run_name=it", "experiment_name=it")
    return str(place.train(*kind.train, *small, *keys)["run_folder"])


def weights_of(model: str) -> Path:
    return next(Path(model, "model", "data").iterdir())


def assert_same_everywhere(
    place: Place, kind: Kind, model: str, formats: tuple[str, ...] = ("onnx", "torch_export")
) -> np.ndarray:
    """Ask a model in each way; return the probabilities."""
    done = place.run("predict", model, kind.source, f"out-{Path(model).name}", "scale.num_workers=0")
    assert done.code == 0, done.out + done.err
    parts = sorted((place.path / f"out-{Path(model).name}").glob("part-*"))
    expected = np.stack(pd.read_parquet(parts)["probabilities"])
    assert expected.shape[0] == ROWS
    assert done.result["rejected"] == 0
    predictor = Predictor.load_own(weights_of(model))
    exported = place.run("export", model, f"export.formats={','.join(formats)}")
    assert exported.code == 0, exported.out + exported.err
    folder = Path(exported.result["run_folder"], "export")
    found = {
        "pyfunc": by_pyfunc(place, model, kind.data),
        **{name: by_export(folder / name, predictor, kind.data) for name in formats},
        **by_http(place, model, kind),
    }
    for name, probabilities in found.items():
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5, err_msg=name)
    return expected


@pytest.mark.long
@pytest.mark.parametrize("make", [digits, table, texts, images])
def test_every_way_to_ask_a_model_gives_the_same_probabilities(place: Place, make: Any) -> None:
    kind: Kind = make(place.path)
    model = trained(place, kind)
    expected = assert_same_everywhere(place, kind, model)
    classes = list(Predictor.load_own(weights_of(model)).transform.label.classes)
    measured = place.run("evaluate", model, f"data.source={kind.source}")
    assert measured.code == 0, measured.out + measured.err
    right = [[str(one) for one in classes].index(label) for label in kind.labels]
    loss = torch.nn.functional.nll_loss(torch.tensor(expected).log(), torch.tensor(right)).item()
    results = json.dumps(measured.result)
    assert measured.result["metrics"]["loss"] == pytest.approx(loss, rel=1e-4), results
    accuracy = float(np.mean(expected.argmax(1) == np.array(right)))
    assert measured.result["metrics"]["accuracy"] == pytest.approx(accuracy), results


@pytest.mark.long
@pytest.mark.parametrize("make", [digits, table, texts, images])
def test_every_way_to_ask_a_variant_gives_the_same_probabilities(place: Place, make: Any) -> None:
    kind: Kind = make(place.path)
    wide = {digits: "64", table: "64", texts: "32", images: "16"}[make]
    model = trained(place, kind, f"model.width={wide}")
    settings = (
        f"compress.distill={{width: {int(wide) // 2}}}",
        "compress.prune=0.5",
        "compress.quantize=[int8, bf16]",
    )
    done = place.run("compress", model, *settings, "compress.max_loss_of=10")
    assert done.code == 0, done.out + done.err
    variants = done.result["variants"]
    assert len(variants) == 4
    for one in variants.values():
        assert one["variant"]["bytes"] == (Path(one["run_folder"]) / one["file"]).stat().st_size
    exact = {}
    for name in ("prune-0.5", "prune-0.5-bf16"):
        (one,) = [one for found, one in variants.items() if found.endswith(name)]
        exact[name] = assert_same_everywhere(place, kind, one["run_folder"])
        measured = place.run("evaluate", one["run_folder"])
        assert measured.result["metrics"] == pytest.approx(one["variant"]["metrics"], rel=1e-6)
    (int8,) = [one for name, one in variants.items() if name.endswith("int8")]
    assert_same_everywhere(place, kind, int8["run_folder"], ("onnx",))
    measured = place.run("evaluate", int8["run_folder"])
    assert measured.result["metrics"] == pytest.approx(int8["variant"]["metrics"], rel=1e-6)
    predictor = Predictor.load_own(weights_of(int8["run_folder"]))
    # The scale of 8 bits is that of the batch: beside a row of 1e30 all others would be 0.
    usual = np.array([row != HUGE for row in range(ROWS)] if make is table else [True] * ROWS)
    rounded = np.stack(predictor.predict(kind.data[usual])["probabilities"])
    np.testing.assert_allclose(rounded, exact["prune-0.5"][usual], rtol=0, atol=0.1)
    np.testing.assert_allclose(exact["prune-0.5-bf16"], exact["prune-0.5"], rtol=0, atol=0.02)
