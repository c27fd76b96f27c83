"""Batch prediction without Ray: every row once and in order, bad ones rejected, a restart ends as if never killed."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saved_model import package, write_table
from shoal.config.loading import load
from shoal.errors import ConfigError, DataError
from shoal.inference import batch_input
from shoal.inference.batch import BatchPredictor
from shoal.inference.batch_output import Output
from shoal.inference.predictor import Predictor
from shoal.workflows.predict import PredictConfig, check_prediction, predict


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_table(folder / "rows.csv")
    return package(folder, f"csv:{folder}/rows.csv")


@pytest.fixture
def run(tmp_path):
    """Predict a source into a folder; returns the folder and the state that it ends with."""

    def make(weights, uri, output="out", *settings):
        config = load(PredictConfig, None, ["scale.num_workers=0", *settings])
        checked = check_prediction(Predictor.load(weights), weights, uri, str(tmp_path / output), config)
        return tmp_path / output, predict(checked, config, lambda *_: None)

    return make


def read(folder):
    """Read the part files, joined in the order of their names."""
    parts = sorted(folder.glob("part-*"))
    readers = {
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".jsonl": lambda path: pd.read_json(path, lines=True),
    }
    return pd.concat([readers[part.suffix](part) for part in parts], ignore_index=True)


def rejected(folder):
    path = folder / "_rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_predictions_are_those_of_the_predictor_in_order_with_all_other_columns(weights, run, tmp_path, form):
    table = write_table(tmp_path / "in.csv", rows=50, seed=1)
    table["color"] = table["color"].where(table.index % 7 > 0, "purple")  # unseen in training
    table.insert(0, "id", [f"row {number}" for number in range(50)])
    table.loc[3, "size"] = np.nan
    table.to_csv(tmp_path / "in.csv", index=False)
    folder, done = run(weights, f"csv:{tmp_path}/in.csv", f"out.{form}")
    found = read(folder)
    assert (done.rows, done.rejected, done.parts) == (50, 0, 1)
    assert found["id"].tolist() == table["id"].tolist()
    assert found["target"].tolist() == table["target"].tolist()
    assert found["size"].isna().tolist() == table["size"].isna().tolist()
    expected = Predictor.load(weights).predict(table)
    assert found["prediction"].tolist() == expected["prediction"].tolist()
    shares = (
        found[["probability_0", "probability_1"]].to_numpy()
        if form == "csv"
        else np.array(found["probabilities"].tolist())
    )
    np.testing.assert_allclose(shares, np.array(expected["probabilities"].tolist()), atol=1e-7)


def test_rows_that_hold_no_number_are_rejected_with_their_row_and_reason(weights, run, tmp_path):
    table = write_table(tmp_path / "in.csv", rows=40).astype({"size": object})
    table.loc[[5, 17], "size"] = ["unknown!", "1e400"]
    table.to_csv(tmp_path / "in.csv", index=False)
    folder, done = run(weights, f"csv:{tmp_path}/in.csv")
    assert (done.rows, done.rejected) == (40, len(rejected(folder)))
    [first, *_] = rejected(folder)
    assert first["row"] == 5
    assert first["reason"] == "column 'size' holds 'unknown!', which is no number"
    assert first["columns"]["color"] == table["color"][5]
    assert len(read(folder)) == 40 - done.rejected


def test_rows_of_many_fragments_are_numbered_as_in_the_whole_input(weights, run, tmp_path):
    table = write_table(tmp_path / "in.csv", rows=60)
    table["size"] = table["size"].map(str)
    table.loc[[0, 25, 59], "size"] = "odd"
    pq.write_table(pa.Table.from_pandas(table), tmp_path / "in.parquet", row_group_size=20)
    folder, done = run(weights, f"parquet:{tmp_path}/in.parquet")
    assert [one["row"] for one in rejected(folder)] == [0, 25, 59]
    assert sorted(path.name for path in folder.glob("part-*")) == [
        f"part-0000{number}-00000.parquet" for number in range(3)
    ]
    assert read(folder)["color"].tolist() == table["color"].drop([0, 25, 59]).tolist()


class Killed(BaseException):
    """As SIGKILL, it is caught by nothing."""


@pytest.mark.parametrize("at", range(1, 9))
def test_a_killed_prediction_goes_on_and_ends_with_the_same_files(weights, run, tmp_path, monkeypatch, at):
    table = write_table(tmp_path / "in.csv", rows=60)
    table["size"] = table["size"].map(str)
    table.loc[[7, 33], "size"] = "odd"
    pq.write_table(pa.Table.from_pandas(table), tmp_path / "in.parquet", row_group_size=20)
    uri = f"parquet:{tmp_path}/in.parquet"
    twin, _ = run(weights, uri, "twin")

    written, read_fragments = [], []
    write, go = Output._folder_write, BatchPredictor.predict_fragment

    def killing(self, name, data):
        written.append(name)
        if len(written) == at + 1:  # the first is the state
            raise Killed
        write(self, name, data)

    def counted(self, read, fragment, output):
        def reading(number):
            read_fragments.append(number)
            return read(number)

        return go(self, reading, fragment, output)

    monkeypatch.setattr(Output, "_folder_write", killing)
    monkeypatch.setattr(BatchPredictor, "predict_fragment", counted)
    with pytest.raises(Killed):
        run(weights, uri, "out")
    before = len(read_fragments)
    monkeypatch.setattr(Output, "_folder_write", write)
    folder, _ = run(weights, uri, "out")
    assert content(folder) == content(twin)
    again = read_fragments[before:]
    assert len(set(read_fragments[:before]) & set(again)) <= 1
    assert run(weights, uri, "out")[1].rows == 60  # finished: nothing is done again
    assert content(folder) == content(twin)


def test_a_csv_file_whose_samples_do_not_show_all_types_is_read_again_as_a_whole(
    weights, run, tmp_path, monkeypatch
):
    monkeypatch.setattr("shoal.data.sources.csv_files.BATCH_BYTES", 1 << 16)
    rows = 60000
    table = pd.DataFrame({"size": np.full(rows, 9.5), "count": 1, "color": "red", "code": np.arange(rows)})
    table = table.astype({"code": object})
    table.loc[31111, "code"] = "B-7"
    table.to_csv(tmp_path / "in.csv", index=False)
    folder, done = run(weights, f"csv:{tmp_path}/in.csv", "out", "predict.format=csv")
    assert (done.rows, done.rejected) == (rows, 0)
    assert done.parts > 3
    assert read(folder)["code"].astype(str).tolist() == table["code"].astype(str).tolist()


def test_a_folder_of_something_else_is_never_written_to(weights, run, tmp_path):
    write_table(tmp_path / "in.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(e.g. 'precious.txt'\)"):
        run(weights, f"csv:{tmp_path}/in.csv")
    assert content(tmp_path / "out") == {"precious.txt": b"mine"}
    with pytest.raises(DataError, match="is a file: name a folder"):
        run(weights, f"csv:{tmp_path}/in.csv", "in.csv")


@pytest.mark.parametrize("other", ["input", "model", "settings"])
def test_a_restart_with_something_else_is_refused(weights, run, tmp_path, other):
    write_table(tmp_path / "in.csv")
    run(weights, f"csv:{tmp_path}/in.csv")
    before, settings = content(tmp_path / "out"), []
    if other == "input":
        write_table(tmp_path / "in.csv", seed=5)
    if other == "model":
        weights = package(tmp_path / "other", f"csv:{tmp_path}/in.csv", seed=7)
    if other == "settings":
        settings = ["predict.format=csv"]
    with pytest.raises(DataError, match=f"holds predictions of other {other}"):
        run(weights, f"csv:{tmp_path}/in.csv", "out", *settings)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.drop(columns="color"), "column 'color' is missing"),
        (lambda table: table.assign(prediction=1), "has a column 'prediction' already"),
        (lambda table: table[:0], "no rows|empty|0 rows"),
    ],
)
def test_rows_that_no_answer_fits_are_refused_before_anything_is_written(
    weights, run, tmp_path, change, match
):
    change(write_table(tmp_path / "in.csv")).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match=match):
        run(weights, f"parquet:{tmp_path}/in.parquet")
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_in_the_way_can_be_left_out(weights, run, tmp_path):
    write_table(tmp_path / "in.csv").assign(prediction=1).to_parquet(tmp_path / "in.parquet")
    folder, _ = run(weights, f"parquet:{tmp_path}/in.parquet", "out", "data.columns={prediction: drop}")
    assert len(read(folder)) == 120


def test_a_setting_of_generated_text_is_refused_by_other_models(weights, run, tmp_path):
    write_table(tmp_path / "in.csv")
    with pytest.raises(ConfigError, match="max_new_tokens=5 is of models that generate text"):
        run(weights, f"csv:{tmp_path}/in.csv", "out", "predict.max_new_tokens=5")


def test_where_no_row_at_all_can_be_predicted_the_job_fails(weights, run, tmp_path):
    write_table(tmp_path / "in.csv").assign(size=[[1.0, 2.0]] * 120).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match="no row can be predicted: column 'size'"):
        run(weights, f"parquet:{tmp_path}/in.parquet")


def test_images_are_predicted_by_path_and_broken_ones_rejected(run, tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{number}.png")
    model = {"name": "resnet", "width": 8, "depth": 8}
    weights = package(
        tmp_path / "saved", f"images:{tmp_path}/train", "image_classification", model, shape=(3, 8, 8)
    )
    (tmp_path / "new").mkdir()
    for number in range(4):
        shutil.copy(tmp_path / "train" / "cat" / f"{number}.png", tmp_path / "new" / f"{number}.png")
    (tmp_path / "new" / "2.png").write_bytes(b"no image")
    folder, done = run(weights, f"images:{tmp_path}/new")
    found = read(folder)
    assert [path[-5:] for path in found["path"]] == ["0.png", "1.png", "3.png"]
    [bad] = rejected(folder)
    assert bad["row"] == 2
    assert bad["columns"]["path"].endswith("2.png")
    assert "no format that is known" in bad["reason"]
    pixels = np.stack([np.array(Image.open(path)).transpose(2, 0, 1) for path in found["path"]])
    expected = Predictor.load(weights).predict(pixels)
    np.testing.assert_allclose(
        np.stack(found["probabilities"]), np.array(expected["probabilities"].tolist()), atol=1e-7
    )


def test_a_language_model_continues_a_column_of_prompts(run, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_input, "SLICE_TEXTS", 2)
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 200)
    model = {"name": "gpt", "width": 16, "depth": 1}
    weights = package(
        tmp_path / "saved", f"text:{tmp_path}/text.txt", "causal_lm", model, label=None, context=16
    )
    prompts = pd.DataFrame({"prompt": ["one", "two", "six"], "id": [7, 8, 9]})
    prompts.to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    asked = ["predict.text=prompt", "predict.max_new_tokens=5", "predict.seed=3"]
    folder, done = run(weights, f"json:{tmp_path}/in.jsonl", "out.jsonl", *asked)
    found = read(folder)
    assert done.parts == 2
    assert found["id"].tolist() == [7, 8, 9]
    expected = Predictor.load(weights).predict({"text": prompts["prompt"]}, {"max_new_tokens": 5, "seed": 3})
    assert found["prediction"].astype(str).tolist() == expected["prediction"].tolist()
    with pytest.raises(DataError, match=r"set predict\.text=COLUMN"):
        run(weights, f"json:{tmp_path}/in.jsonl", "other")
