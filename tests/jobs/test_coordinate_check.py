"""The coordinate check as a user runs it: it passes under muP, shows that the standard way fails, and is kept."""

from pathlib import Path

import pytest

from running import Place, mlflow_record

DIGITS = (
    "check.widths=[32,64,128,256]",
    "check.seeds=1",
    "data.global_batch_size=32",
    "experiment_name=digits",
)
MUP = ("model.parametrization=mup", "model.base_width=32")


@pytest.mark.long
def test_an_mlp_on_the_digits_passes_under_mup_and_all_is_in_mlflow(place: Place) -> None:
    from mlflow import MlflowClient

    done = place.run("coordinate_check", *DIGITS, *MUP)
    assert done.code == 0, done.out + done.err
    assert "PASS: training keeps its scale" in done.out
    result = done.result
    assert result["passes"]
    assert result["widths"] == [32, 64, 128, 256]
    assert abs(result["worst_exponent"]) == max(map(abs, result["exponents"].values())) <= 0.35
    assert {"layers.0", "layers.2", "layers.4", "model"} <= set(result["exponents"])
    assert (Path(result["run_folder"]) / "pictures" / "coordinate_check.png").stat().st_size > 10_000
    client = MlflowClient(result["tracking_uri"], result["tracking_uri"])
    run, _ = mlflow_record(result["tracking_uri"], result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["shoal.coordinate_check"] == "PASS"
    assert run.data.params["model.parametrization"] == "mup"
    assert run.data.metrics["exponent/layers.4"] == pytest.approx(result["exponents"]["layers.4"])
    pictures = [item.path for item in client.list_artifacts(run.info.run_id, "pictures")]
    assert pictures == ["pictures/coordinate_check.png"]


@pytest.mark.long
def test_the_standard_parametrization_fails_with_the_module_the_exponent_and_the_remedy(place: Place) -> None:
    done = place.run("coordinate_check", *DIGITS, "model.width=32")
    assert done.code == 1
    assert "FAIL: training depends on the width: the output of layers.4" in done.out
    assert not done.result["passes"]
    assert done.result["exponents"]["layers.4"] == pytest.approx(
        1.0, abs=0.3
    )  # Adam: fan_in terms of size lr each
    assert abs(done.result["exponents"]["layers.0"]) < 0.1
    (error,) = done.errors
    assert "set model.parametrization=mup and model.base_width=32" in error


def test_what_cannot_be_checked_is_refused_before_anything_is_written(place: Place) -> None:
    done = place.run_in_process("coordinate_check", "check.widths=[64]")
    assert done.code == 2
    assert "check.widths" in done.errors[0]
    assert "two different widths" in done.errors[0]
    assert list(place.path.iterdir()) == []
