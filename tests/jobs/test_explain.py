"""A trained model is explained by the names of its columns, checked, drawn, recorded in MLflow, as one page."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from running import Place
from shoal.storage.run_folder import MODEL, MODEL_CARD
from trained_model import train

DECIDES = ("size", "color")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 6 columns, of which two decide, and a model that was trained on it for some steps."""
    folder = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({f"noise {number}": draw.normal(0, 3, 600) for number in range(4)})
    frame["size"] = draw.normal(10, 3, 600)
    frame["color"] = draw.choice(["red", "<b>blue</b>"], 600)
    frame["sold"] = np.where((frame["size"] > 9) & (frame.color == "red"), "yes", "no")
    frame.to_csv(folder / "shop.csv", index=False)
    train(folder, f"csv:{folder}/shop.csv", steps=100, label="sold")
    return folder


@pytest.fixture
def trained(place: Place, made: Path) -> str:
    return run_of(place, made)


def run_of(place: Place, made: Path) -> str:
    """Return the folder of a run that has a model."""
    folder = place.folder("shop")
    folder.create()
    folder.create_identity(name="shop", experiment="shoal", tracking_uri="sqlite:///mlflow.db")
    shutil.copytree(made / MODEL, place.path / "copy")  # which is moved
    folder.put_folder(place.path / "copy", MODEL, last=MODEL_CARD)
    return folder.uri


@pytest.mark.long
def test_a_model_is_explained_with_nothing_but_its_name(place: Place, trained: str) -> None:
    done = place.run_in_process("explain", trained)
    assert done.code == 0, done.out + done.err
    result = done.result
    assert (result["status"], result["split"], result["kind"], result["is_delivered"]) == (
        "FINISHED",
        "test",
        "table",
        True,
    )
    assert result["is_passed"]
    assert {one["name"] for one in result["importance"][:2]} == set(DECIDES)
    assert [one["why"] for one in result["explained"]] == ["worst"] * 3 + ["random"] * 3
    assert {check["name"] for check in result["checks"]} == {"completeness", "randomised_weights", "learned"}

    folder = Path(result["run_folder"])
    page = (folder / result["page"]).read_text()
    pictures = {path.stem for path in (folder / "pictures").iterdir()}
    rows = {f"row-{one['row']}" for one in result["explained"]}
    assert pictures == rows | {"importance", "permutation", "faithfulness"}
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|<script|<b>blue", page)

    from mlflow import MlflowClient

    client = MlflowClient(result["tracking_uri"])
    run = client.get_run(result["mlflow_run_id"])
    assert run.data.params["model"] == trained
    assert run.data.tags["shoal.job"] == "explain"
    assert run.data.metrics["explain/completeness"] <= 1e-3
    listed = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "pictures")}
    assert listed == {f"pictures/{name}.png" for name in pictures}
    assert [one.path for one in client.list_artifacts(run.info.run_id, "report")] == [result["page"]]

    chosen = place.run_in_process(
        "explain", trained, "explain.rows=[3,5]", "explain.worst=0", "explain.random=0", "explain.target=yes"
    )
    assert chosen.code == 0, chosen.out + chosen.err
    explained = chosen.result["explained"]
    assert [(one["row"], one["why"], one["target"]) for one in explained] == [
        (3, "chosen", "yes"),
        (5, "chosen", "yes"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm"])
def test_an_untrained_model_of_text_is_explained_and_said_to_have_failed(
    place: Place, tmp_path: Path, task: str
) -> None:
    draw = np.random.default_rng(0)
    words = [" ".join(draw.choice(["one", "two", "three", "<i>"], 6)) for _ in range(200)]
    frame = pd.DataFrame({"text": words, "label": draw.choice(["even", "odd"], 200)})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    label = {"label": "label"} if task == "sequence_classification" else {}
    model = "bert" if label else "gpt"
    source = f"csv:{tmp_path}/texts.csv"
    train(tmp_path / "made", source, task, model=model, width=64, text="text", context=16, **label)
    done = place.run_in_process(
        "explain", run_of(place, tmp_path / "made"), "explain.worst=1", "explain.random=1"
    )
    assert done.code == 0, done.out + done.err
    assert "warning: checks failed" in done.out
    result = done.result
    assert result["kind"] == ("text" if label else "language")
    assert not result["is_passed"]
    assert [one["why"] for one in result["explained" if label else "written"]] == ["worst", "random"]
    assert '<span class="failed">FAILED: ' in (Path(result["run_folder"]) / result["page"]).read_text()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ("explain.target=maybe",),
            "explain.target=maybe is not a class of the model (did you mean 'yes'?): the classes are no, yes",
        ),
        (
            ("explain.rows=[2,100]",),
            "explain.rows names row 100, and 61 rows were read: write numbers from 0 to 60",
        ),
        (("explain.rows=-1",), "explain.rows names row -1"),
        (("explain.method=magic",), "explain.method"),
        (("explain.sample=1",), "explain.sample"),
        (("explain.row=1",), "did you mean 'explain.rows'"),
        (("data.source=csv:unlabelled.csv",), "label column 'sold'"),
        (("data.source=csv:empty.csv",), "empty.csv"),
    ],
)
def test_bad_input_is_one_line(
    place: Place, made: Path, trained: str, settings: tuple[str, ...], line: str
) -> None:
    table = (made / "shop.csv").read_text()
    (place.path / "unlabelled.csv").write_text(table.replace(",sold\n", ",bought\n"))
    (place.path / "empty.csv").write_text(table.partition("\n")[0] + "\n")
    done = place.run_in_process("explain", trained, *settings)
    assert done.code == 2, done.out + done.err
    [error] = done.errors
    assert line in error
    assert not (place.path / "runs" / "explanations").exists()


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)  # as if it were not installed
    done = place.run_in_process("explain", "run")
    assert done.code == 2
    [error] = done.errors
    assert "pip install 'shoal[explain]'" in error


def test_a_model_that_does_not_exist_is_one_line(place: Place) -> None:
    done = place.run_in_process("explain", "no-such-run")
    assert done.code == 2
    assert "model 'no-such-run' is not known" in done.errors[0]
