"""What a user does first: train, look into MLflow, evaluate, bring own data and own model."""

from pathlib import Path

import pytest

from running import ROOT, Place, mlflow_record

MINE = """
import numpy as np
import pandas as pd
import torch
from torch import nn


class Net(nn.Module):
    '''Batch norm, dropout, a parameter that takes no part, and no `depth`.'''

    def __init__(self, inputs, outputs, width, dropout=0.1):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, outputs)
        )

    def forward(self, x):
        return self.layers(x)


def prices(rows=600):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"area": random.uniform(20, 200, rows), "town": random.choice(["Oslo", "Rome"], rows)})
    frame["target"] = 3 * frame.area + 40 * (frame.town == "Oslo")
    return {"train": frame[:400], "validation": frame[400:500], "test": frame[500:]}


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], int(self.x[row].sum() > 0)
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`make train`, in a place of its own."""
    place = Place(tmp_path_factory.mktemp("digits"), {})
    place.first = place.train(str(ROOT / "jobs/configs/digits.yaml"))  # type: ignore[attr-defined]
    return place


def test_digits_are_learnt_and_everything_is_in_mlflow(digits: Place) -> None:
    result = digits.first  # type: ignore[attr-defined]
    assert result["metrics"]["test/accuracy"] >= 0.95
    assert result["is_verified"]
    run, history = mlflow_record(result["tracking_uri"], result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert len([key for key, _ in history if key == "train/loss"]) == result["steps"]
    assert {"best/val_loss", "best/step", "test/loss", "val/accuracy"} <= set(run.data.metrics)
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert 5 <= len(run.data.params) <= 20
    assert run.inputs.dataset_inputs[0].dataset.name == "sklearn:digits"
    from mlflow import MlflowClient

    client = MlflowClient(result["tracking_uri"], result["tracking_uri"])
    assert {"config.yaml", "metadata.json", "pictures", "result.json"} <= {
        item.path for item in client.list_artifacts(run.info.run_id)
    }
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "pictures")}
    names = ("loss_curve", "confusion_matrix", "data")
    assert pictures == {f"pictures/{name}.png" for name in names}
    assert {item.path for item in client.list_artifacts(run.info.run_id, "report")} == {"report/data.md"}
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == run.info.run_id


def test_the_registered_model_predicts_raw_rows_in_a_plain_process(digits: Place) -> None:
    import mlflow
    from sklearn.datasets import load_digits

    result = digits.first  # type: ignore[attr-defined]
    mlflow.set_tracking_uri(result["tracking_uri"])
    mlflow.set_registry_uri(result["tracking_uri"])
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    frame = load_digits(as_frame=True).frame
    assert set(model.metadata.get_input_schema().input_names()) == set(frame.columns) - {"target"}
    predicted = model.predict(frame.drop(columns="target"))["prediction"]
    assert (predicted == frame.target).mean() > 0.95
    assert not list(Path(digits.path).rglob("*.pkl"))


def test_evaluation_of_a_run_folder_a_run_and_a_registered_model_agree(digits: Place) -> None:
    result = digits.first  # type: ignore[attr-defined]
    found = []
    for model in (result["run_folder"], f"runs:/{result['mlflow_run_id']}", "models:/digits@champion"):
        done = digits.run_in_process("evaluate", model)
        assert done.code == 0, done.err
        assert "precision" in done.out
        found.append(done.result)
    for one in found:
        assert one["metrics"]["accuracy"] == pytest.approx(result["metrics"]["test/accuracy"])
        assert one["metrics"]["loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-6)
        assert sum(row["support"] for row in one["per_class"].values()) == one["rows"]
        run, _ = mlflow_record(one["tracking_uri"], one["mlflow_run_id"])
        assert run.data.metrics["test/accuracy"] == pytest.approx(one["metrics"]["accuracy"])


@pytest.mark.long
def test_a_worse_model_does_not_become_champion(digits: Place) -> None:
    from mlflow import MlflowClient

    first = digits.first  # type: ignore[attr-defined]
    done = digits.run(
        "train", str(ROOT / "jobs/configs/digits.yaml"), "train.epochs=1", "scale.num_workers=0"
    )
    assert done.code == 0, done.err
    assert "digits version 2 does not become champion: val/loss" in done.err
    client = MlflowClient(first["tracking_uri"], first["tracking_uri"])
    assert client.get_model_version_by_alias("digits", "champion").run_id == first["mlflow_run_id"]
    assert len(client.search_model_versions("name='digits'")) == 2


def test_a_saved_model_that_measures_otherwise_is_not_verified(digits: Place) -> None:
    from shoal.errors import VerificationError
    from shoal.registry.verify import Verifier, difference

    result = digits.first  # type: ignore[attr-defined]
    model = Path(result["run_folder"]) / "model"
    measured = {"loss": result["metrics"]["val/loss"], "accuracy": result["metrics"]["val/accuracy"]}
    with Verifier() as verifier, Verifier() as other:  # both import at the same time
        found = verifier.measure(model, "validation")
        with pytest.raises(VerificationError, match="does not load"):
            other.measure(model / "nothing", "validation")
    assert difference(found, measured) is None
    assert "measures accuracy=" in difference(found, measured | {"accuracy": 0.5})


@pytest.mark.long
def test_training_stops_at_the_target(digits: Place) -> None:
    result = digits.train(
        "train.epochs=200", "train.target={val/accuracy: 0.9}", "scale.num_workers=0", "run_name=target"
    )
    assert result["reached_target"]
    assert result["steps"] < 200 * 23
    assert result["metrics"]["val/accuracy"] >= 0.9


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        ("data.source=mine:prices?rows=700", "task=regression", "model.args={dropout: 0.0}"),
        ("data.source=mine:Images", "scale.num_workers=0"),
    ],
)
def test_own_model_and_own_data_by_import_path(shared: Place, settings: tuple[str, ...]) -> None:
    (shared.path / "mine.py").write_text(MINE)
    result = shared.train(*settings, "model.name=mine:Net", "train.epochs=4")
    assert result["is_verified"]
    assert result["world_size"] == (1 if "scale.num_workers=0" in settings else 2)
    refused = shared.run_in_process("evaluate", result["run_folder"])
    assert refused.code == 2
    assert "description.json' names the model's own code, 'mine:Net'" in refused.errors[0]
    assert "trust_code=true" in refused.errors[0]
    done = shared.run_in_process("evaluate", result["run_folder"], "trust_code=true")
    assert done.code == 0, done.err
    assert done.result["metrics"]["loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-6)


def test_a_csv_with_categories_and_missing_values(place: Place) -> None:
    rows = ["age,town,member,target"]
    for number in range(400):
        age = "" if number % 7 == 0 else str(20 + number % 50)
        town = ("Oslo", "Rome", "")[number % 3]
        rows.append(f"{age},{town},{'true' if number % 2 else 'false'},{'yes' if number % 3 == 0 else 'no'}")
    (place.path / "people.csv").write_text("\n".join(rows) + "\n")
    result = place.train("data.source=csv:people.csv", "train.epochs=20", "scale.num_workers=0")
    assert result["metrics"]["test/accuracy"] > 0.95
