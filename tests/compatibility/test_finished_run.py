"""A finished run of the code at commit 405cdcc: its registered model, and its folder, are still good."""

from typing import Any

import pytest

from compatibility.fixtures import HERE, only_run, predict, recorded, run_folder, unpack
from running import Place, mlflow_record

# Here the number of threads is the machine's, and with it the order of sums.
TOLERANCE = 1e-5


@pytest.fixture
def finished(place: Place) -> Place:
    unpack("registered", place.path)
    return place


def assert_predicts_as_recorded(found: dict[str, Any]) -> None:
    expected = recorded()["model"]["predicted"]
    assert found["prediction"] == expected["prediction"]
    for row, wanted in zip(found["probabilities"], expected["probabilities"], strict=True):
        assert row == pytest.approx(wanted, rel=TOLERANCE)


def test_the_registered_model_predicts_the_same_in_a_fresh_process(finished: Place) -> None:
    """With the code that was logged with it, and no other on the path."""
    assert_predicts_as_recorded(predict(finished.path))


@pytest.mark.long
def test_the_registered_model_predicts_the_same_beside_this_shoal(finished: Place) -> None:
    """What it names as its loader is then looked for in the shoal that is there."""
    path = str(HERE.parents[1] / "platform")
    assert_predicts_as_recorded(predict(finished.path, first="import shoal", PYTHONPATH=path))


@pytest.mark.parametrize("model", ["models:/digits@champion", "runs/compatibility/registered"])
def test_an_evaluation_finds_the_recorded_metrics(finished: Place, model: str) -> None:
    done = finished.run_in_process("evaluate", model)
    assert done.code == 0, done.out + done.err
    expected = recorded()["model"]["evaluation"]
    for key, value in expected.items():
        if key != "metrics":
            assert done.result[key] == value
    assert done.result["metrics"] == pytest.approx(expected["metrics"], rel=TOLERANCE)


def test_its_command_finds_it_finished(finished: Place) -> None:
    done = finished.run("train", *recorded()["runs"]["registered"]["arguments"])
    assert done.code == 0, done.out + done.err
    assert "is finished" in done.out
    assert done.result["attempt"] == 1


def test_its_folder_is_delivered_to_an_empty_store(finished: Place) -> None:
    folder, uri = run_folder(finished.path), f"sqlite:///{finished.path}/other.db"
    done = finished.run_in_process("sync", str(folder), f"track.tracking_uri={uri}")
    assert done.code == 0, done.out + done.err
    run, history = mlflow_record(uri, only_run(uri))
    assert run.info.status == "FINISHED"
    expected = recorded()["runs"]["registered"]["points"]
    assert history == {
        (key, int(step)): value for key, steps in expected.items() for step, value in steps.items()
    }
    assert_is_registered(uri)


def assert_is_registered(uri: str) -> None:
    from mlflow import MlflowClient

    version = MlflowClient(uri, uri).get_model_version_by_alias("digits", "champion")
    assert version.tags["metric"] == "val/loss"
    summary = recorded()["runs"]["registered"]["summary"]
    assert float(version.tags["value"]) == summary["metrics"]["val/loss"]
