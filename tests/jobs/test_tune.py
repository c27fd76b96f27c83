"""Sweeps as users run them: the best registered, all trials comparable in MLflow, bad input refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
from sweeps import CONFIG, QUICK, children, points, sweep

from running import Place


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`make tune`, in a place and a Ray cluster of its own."""
    place = Place(tmp_path_factory.mktemp("tune"), {})
    place.first = place.run("tune", CONFIG)  # type: ignore[attr-defined]
    return place


def test_the_default_sweep_ends_with_its_best_model_registered_and_all_in_mlflow(twin: Place) -> None:
    from mlflow import MlflowClient

    done = twin.first  # type: ignore[attr-defined]
    assert done.code == 0, done.out + done.err
    result = done.result
    assert result["trials"]["ended"] == 16
    assert {"finished", "stopped"} <= set(result["trials"])
    assert result["best"]["metrics"]["test/accuracy"] > 0.93
    assert result["best"]["is_verified"]
    assert "(16/16 trials" in done.out
    found = children(result)
    assert len(found) == 16
    for row in result["rows"]:
        status, history = found[row["name"]]
        assert status == "FINISHED"
        assert [history["val/loss", step] for step, _ in row["curve"]] == [value for _, value in row["curve"]]
        assert max(step for key, step in history if key == "train/loss") == row["steps"]
    uri = result["tracking_uri"]
    client = MlflowClient(uri, uri)
    parent = client.get_run(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optim.lr"] == "loguniform(0.0001, 0.1)"
    assert parent.data.tags["best.trial"] == result["best"]["trial"]
    assert float(parent.data.metrics["trials/best_val_loss"]) == pytest.approx(result["best"]["value"])
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "trials.csv", "trials.parquet", "pictures", "result.json"} <= artifacts
    pictures = {item.path for item in client.list_artifacts(parent.info.run_id, "pictures")}
    assert len(pictures) == 8
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == result["best"]["mlflow_run_id"]


def test_only_the_best_trials_checkpoints_are_kept_and_the_table_has_every_trial(twin: Place) -> None:
    result = twin.first.result  # type: ignore[attr-defined]
    folder = Path(result["run_folder"])
    kept = [path.parent.name for path in folder.glob("trials/*/checkpoints")]
    assert kept == [result["best"]["trial"]]
    table = pd.read_csv(folder / "report" / "trials.csv")
    assert len(table) == 16
    assert set(table["model.width"]) == {32, 64, 128, 256}
    assert pd.read_parquet(folder / "report" / "trials.parquet")["optim.lr"].between(1e-4, 1e-1).all()


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        ("tune.scheduler=pbt", "optim.lr=loguniform(1e-5,1e-1)", "tune.num_samples=4"),
        (
            "tune.scheduler=hyperband",
            "optim.lr=loguniform(1e-5,1e-1)",
            "model.width=32",
            "tune.num_samples=8",
        ),
        (
            "tune.search=optuna",
            "optim.lr=loguniform(1e-5,1e-1)",
            "tune.num_samples=4",
            "tune.repeat=2",
            "tune.scheduler=median",
        ),
    ],
    ids=lambda settings: settings[0],
)
def test_schedulers_and_searches_come_to_an_end(shared: Place, settings: tuple[str, ...]) -> None:
    result = sweep(shared, *QUICK, *settings)
    assert result["trials"]["planned"] == len(result["rows"]) == len(children(result))
    assert all(row["metric"] is not None for row in result["rows"])
    assert {row["status"] for row in result["rows"]} <= {"finished", "stopped"}
    assert [path.parent.name for path in Path(result["run_folder"]).glob("trials/*/checkpoints")] == [
        result["best"]["trial"]
    ]
    if "tune.scheduler=hyperband" in settings:
        assert result["trials"]["stopped"] >= 3  # of a bracket of 5, among them some that were paused
    if "tune.repeat=2" in settings:
        numbers = [row["point"] for row in sorted(result["rows"], key=lambda row: row["number"])]
        assert numbers == [0, 0, 1, 1, 2, 2, 3, 3]
        assert "over 2 seeds" in result["findings"]["best point"]
    if "tune.scheduler=pbt" in settings:
        lineages = list(Path(result["run_folder"]).glob("trials/*/lineage.json"))
        assert lineages
        entry = json.loads(lineages[0].read_text())["entries"][0]
        assert entry["from"] != lineages[0].parent.name


@pytest.mark.long
def test_a_point_that_is_drawn_twice_is_trained_once_also_when_the_sweep_is_extended(shared: Place) -> None:
    from mlflow import MlflowClient

    settings = (*QUICK, "model.width=randint(16,18)", "optim.lr=0.01", "train.epochs=2", "run_name=twice")
    first = sweep(shared, *settings, "tune.num_samples=5")
    assert first["trials"] == {"planned": 5, "ended": 5, "finished": 2, "reused": 3}
    extended = sweep(shared, *settings, "tune.num_samples=7")
    assert extended["trials"] == {"planned": 7, "ended": 7, "finished": 2, "reused": 5}
    rows = {row["name"]: row for row in extended["rows"]}
    assert {name: row["metric"] for name, row in rows.items() if row["status"] == "finished"} == {
        row["name"]: row["metric"] for row in first["rows"] if row["status"] == "finished"
    }
    reused = {name: row for name, row in rows.items() if row["status"] == "reused"}
    for row in reused.values():
        source = rows[row["same_as"]]
        assert (row["params"], row["metric"], row["steps"]) == (
            source["params"],
            source["metric"],
            source["steps"],
        )
    assert extended["findings"]["trials"] == "2 finished, 5 reused"
    assert all(
        f"{name} as {row['same_as']}" in extended["findings"]["reused"] for name, row in reused.items()
    )
    found = children(extended)
    assert {status for status, _ in found.values()} == {"FINISHED"}
    assert all(found[name][1] == {("val/loss", row["steps"]): row["metric"]} for name, row in reused.items())
    client = MlflowClient(extended["tracking_uri"], extended["tracking_uri"])
    parent = client.get_run(extended["mlflow_run_id"])
    runs = client.search_runs([parent.info.experiment_id], "tags.`shoal.same_as` != ''")
    assert {run.info.run_name.split()[0]: run.data.tags["shoal.same_as"] for run in runs} == {
        name: row["same_as"] for name, row in reused.items()
    }
    table = pd.read_csv(Path(extended["run_folder"]) / "report" / "trials.csv")
    assert dict(zip(table["name"], table["same_as"], strict=True)).items() >= {
        (name, row["same_as"]) for name, row in reused.items()
    }


@pytest.mark.long
def test_an_optuna_sweep_is_the_same_with_one_trial_at_a_time_and_with_two(shared: Place) -> None:
    settings = (
        *QUICK,
        "tune.search=optuna",
        "tune.num_samples=12",
        "tune.lag=2",
        "optim.lr=loguniform(1e-4,1e-1)",
    )
    settings += ("model.width=16,32", "train.epochs=2")
    one, two = (
        sweep(shared, *settings, f"tune.max_concurrent_trials={slots}", f"experiment_name=at-{slots}")
        for slots in (1, 2)
    )
    assert points(one) == points(two)


@pytest.mark.long
def test_a_dry_run_predicts_the_cost_and_starts_nothing(twin: Place, tmp_path: Path) -> None:
    place = Place(tmp_path, {})
    done = place.run("tune", CONFIG, "dry_run=true")
    assert done.code == 0, done.err
    lines = dict(line.split(None, 1) for line in done.out.splitlines() if line[:1].isalpha())
    result = twin.first.result  # type: ignore[attr-defined]
    assert int(lines["trials"]) == 16
    # Other tests run beside either of them and slow it by up to 12 times. A wrong unit is wrong by 60 or 3,600.
    assert 1 / 30 < float(lines["worker-hours"].split()[0]) / result["worker_hours"] < 30
    assert "by chance: the scheduler leaves" in lines["worker-hours"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_dry_run_predicts_the_cost_although_a_trial_diverges(place: Place) -> None:
    done = place.run("tune", "optim.lr=0.001,1e6", "optim.name=sgd", "train.epochs=3", "dry_run=true")
    assert done.code == 0, done.out + done.err
    assert "trials         2" in done.out


BAD = {
    "unknown key": (["optim.lrr=0.1,0.2"], ["'optim.lrr'", "did you mean 'optim.lr'"]),
    "zero in a logarithmic range": (["optim.lr=loguniform(0,0.1)"], ["optim.lr", "zero"]),
    "empty choice": (["optim.name=choice()"], ["optim.name", "empty"]),
    "unknown metric": (["tune.metric=val/auc"], ["val/auc", "never reported", "val/accuracy"]),
    "too many workers": (["scale.num_workers=64"], ["64", "scale.cpus_per_worker"]),
    "negative samples": (["tune.num_samples=-3"], ["tune.num_samples=-3"]),
    "value out of bounds": (["optim.lr=0.1,-0.1"], ["optim.lr=-0.1", "greater than 0"]),
    "fractions of a width": (["model.width=uniform(32,256)"], ["model.width", "randint(32, 257)"]),
    "a compression": (["it", "compress.prune=0.3,0.5"], ["jobs/compress.py it compress.prune=0.3,0.5"]),
    "several data sets": (["data.source=sklearn:digits,sklearn:wine"], ["data.source", "other rows"]),
}


@pytest.mark.parametrize("case", BAD)
def test_tuning_refuses(place: Place, case: str) -> None:
    arguments, words = BAD[case]
    done = place.run_in_process("tune", *arguments)
    assert done.code == 2, done.out + done.err
    assert len(done.err.splitlines()) == len(done.errors) == 1, done.err
    for word in words:
        assert word in done.errors[0]
    assert list(place.path.iterdir()) == []
