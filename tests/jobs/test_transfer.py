"""Tuning narrow and training wide as a user does it: the savings are reported, and the gap with --verify."""

from pathlib import Path
from typing import Any

import pytest

from running import Place, mlflow_record
from shoal.models.flops import training_flops

pytestmark = pytest.mark.long

WIDEN = ("--to", "model.width=64", "model.width=16", "optim.lr=0.001,0.003,0.01,0.03")
QUICK = ("data.global_batch_size=32", "train.epochs=3", "track.registered_model_name=wide")
PLANNED = 4


@pytest.fixture(scope="module")
def widened(
    tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]
) -> tuple[Place, dict[str, Any]]:
    """A transfer, and what its `result.json` held then: verifying it later writes it anew."""
    place = Place(tmp_path_factory.mktemp("transfer"), {"RAY_ADDRESS": cluster["address"]})
    done = place.run("transfer", *WIDEN, *QUICK)
    assert done.code == 0, done.out + done.err
    return place, done.result


def test_the_best_rate_of_a_narrow_sweep_trains_the_wide_model_which_is_registered(
    widened: tuple[Place, dict[str, Any]],
) -> None:
    from mlflow import MlflowClient

    _, result = widened
    assert (result["base_width"], result["target_width"], result["trials"]) == (16, 64, PLANNED)
    assert result["target_value"] < result["base_value"]
    assert result["comparison"] is None
    client = MlflowClient(result["tracking_uri"], result["tracking_uri"])
    run, _ = mlflow_record(result["tracking_uri"], result["mlflow_run_id"])
    assert float(run.data.tags["best.optim.lr"]) == result["params"]["optim.lr"]
    assert run.data.metrics["target_value"] == pytest.approx(result["target_value"])
    assert [item.path for item in client.list_artifacts(run.info.run_id, "pictures")] == [
        "pictures/transfer.png"
    ]
    champion = client.get_model_version_by_alias("wide", "champion")
    assert champion.run_id == run.data.tags["shoal.transfer.train_run_id"]
    wide, _ = mlflow_record(result["tracking_uri"], champion.run_id)
    assert (wide.data.params["model.width"], float(wide.data.params["optim.lr"])) == (
        "64",
        result["params"]["optim.lr"],
    )


def test_the_cost_is_that_of_the_layers_multiply_adds_over_all_trials(
    widened: tuple[Place, dict[str, Any]],
) -> None:
    cost, rows = widened[1]["cost"], 3 * 1426  # 3 epochs of the training split
    narrow, wide = (2 * (64 * width + width * width // 2 + width // 2 * 10) for width in (16, 64))
    assert cost["search"]["flops"] == PLANNED * training_flops(narrow, rows)
    assert cost["training"]["flops"] == training_flops(wide, rows)
    assert cost["direct_search"]["flops"] == pytest.approx(PLANNED * training_flops(wide, rows))
    assert cost["direct_search"]["seconds"] == pytest.approx(PLANNED * cost["training"]["seconds"])


def test_a_later_verify_trains_nothing_again_and_reports_the_gap_to_the_best_at_the_target_width(
    widened: tuple[Place, dict[str, Any]],
) -> None:
    place, before = widened
    done = place.run("transfer", *WIDEN, *QUICK, "--verify")
    assert done.code == 0, done.out + done.err
    result = done.result
    assert "-compare" in done.out
    assert "-tune\n" not in done.out
    assert "-train\n" not in done.out.partition("best at width")[0]
    assert result["run_folder"] == before["run_folder"]
    assert result["target_value"] == before["target_value"]
    found = result["comparison"]
    # The transferred run is one of the trials there, to the bit: the gap is what another rate would have gained.
    assert found["gap"] == found["transferred_value"] - found["value"] >= 0
    assert found["transferred_value"] == result["target_value"]
    assert found["gap"] < 0.1
    assert result["cost"]["direct_search"]["flops"] == before["cost"]["direct_search"]["flops"]
    assert result["is_measured"]
    assert not before["is_measured"]
    assert (Path(result["run_folder"]) / "pictures" / "transfer.png").exists()
    run, _ = mlflow_record(result["tracking_uri"], result["mlflow_run_id"])
    assert run.data.metrics["gap"] == pytest.approx(found["gap"])
