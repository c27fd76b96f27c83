"""Scripts as people write them, in `examples/`: trained, divided among workers, killed, swept, measured and loaded."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import shoal
from running import RAY_ENV, ROOT, Place

EXAMPLES = ROOT / "examples"
# What each example learns at least: a metric of the test split, and its bound.
LEARNS = {
    "multilabel": ("test/auroc", 0.85),
    "two_tower": ("test/BinaryAUROC", 0.8),
    "autoencoder": (
        "test/loss",
        0.8,
    ),  # of which 0.4 is one pixel, 90 standard deviations from the training mean
    "vae": ("test/loss", 30.0),
    "ragged_lstm": ("test/accuracy", 0.7),
    "contrastive": ("test/is_right", 0.8),
    "unet": ("test/dice", 0.2),
    "survival": ("test/loss", 3.9),
    "fine_tuning": ("test/accuracy", 0.75),
}
LESS = {"scale.num_workers": 0, "if_exists": "resume"}
MOST_LINES = 15

RUN = """
import json, sys
sys.path.insert(0, {examples!r})
import {name}, shoal
result = shoal.train({name}.CONFIG, **json.loads({settings!r}))
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, tmp_path_factory, monkeypatch):
    """A working directory; one MLflow store for all, since its tables take seconds to make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.getbasetemp()}/examples.db")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The run whose layers `fine_tuning` takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pretrained"))
        patch.syspath_prepend(str(EXAMPLES))
        return shoal.train(importlib.import_module("fine_tuning").PRETRAINING, **LESS)


@pytest.fixture
def more(name, request):
    """What an example's CONFIG leaves to who runs it."""
    if name != "fine_tuning":
        return {}
    return {"model.init": str(request.getfixturevalue("pretrained").folder)}


def config_of(name):
    return importlib.import_module(name).CONFIG


@pytest.mark.parametrize("name", [*LEARNS, "gan"])
def test_an_example_is_short_beyond_model_data_and_loss(name):
    lines = (EXAMPLES / f"{name}.py").read_text().partition("CONFIG = ")[2].splitlines()
    assert 0 < len([line for line in lines if line.strip()]) <= MOST_LINES


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNS)
def test_an_example_learns_is_measured_and_loaded(name, more):
    result = shoal.train(config_of(name), **LESS, **more)
    metric, bound = LEARNS[name]
    found = result.metrics[metric]
    assert found >= bound if metric.endswith(("auroc", "AUROC", "accuracy", "is_right")) else found <= bound
    measured = shoal.evaluate(result.folder, trust_code=True).metrics
    assert measured[metric] == pytest.approx(found, rel=1e-5)
    assert shoal.load_model(result.folder, trust_code=True).task == config_of(name).get(
        "task", "classification"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["fine_tuning"])
def test_fine_tuning_trains_only_the_head(name, more, pretrained):
    tuned = shoal.train(config_of(name), **LESS, **more)
    before, after = (result.model.module.state_dict() for result in (pretrained, tuned))
    same = {key for key in before if np.array_equal(before[key], after[key])}
    assert same == {key for key in before if key.startswith("backbone")} != set()


def test_two_optimizers_are_refused_with_what_to_do():
    import gan

    with pytest.raises(shoal.UserError, match="configure_optimizers") as refused:
        shoal.train(gan.CONFIG, **LESS)
    assert "one optimizer" in str(refused.value)


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNS)
def test_an_example_has_the_same_losses_with_workers(name, more, shared: Place, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", shared.env["RAY_ADDRESS"])
    settings = {"train.epochs": 2, "storage_path": str(shared.path / "runs")} | more
    single, divided = (
        shoal.train(config_of(name), **settings, **{"scale.num_workers": workers}).curves
        for workers in (0, 2)
    )
    np.testing.assert_allclose(divided["train/loss"], single["train/loss"], rtol=2e-3)
    for metric in (column for column in single if column.startswith("val/")):
        np.testing.assert_allclose(divided[metric].dropna(), single[metric].dropna(), rtol=1e-2, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNS)
def test_a_killed_example_ends_as_if_nobody_had_killed_it(name, more, tmp_path):
    settings = {"run_name": "killed", "scale.num_workers": 0, "train.epochs": 4} | more
    process = start(name, tmp_path, settings)
    wait_for_checkpoint(process, tmp_path / "runs" / "shoal" / "killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = shoal.train(config_of(name), **settings)
    uninterrupted = shoal.train(config_of(name), **settings | {"run_name": "uninterrupted"})
    assert killed.record.attempt == 2
    assert killed.metrics == uninterrupted.metrics
    assert killed.curves["train/loss"].equals(uninterrupted.curves["train/loss"])


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNS)
def test_an_example_is_swept(name, more, shared: Place, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", shared.env["RAY_ADDRESS"])
    # Layers that another run has learnt have a width.
    space = {"optim.lr": [0.001, 0.01]} | ({} if more else {"model.width": [8, 16]})
    config = {key: value for key, value in config_of(name).items() if key not in space}
    settings = {"train.epochs": 1, "scale.num_workers": 1, "scale.cpus_per_worker": 0.5}
    sweep = shoal.tune(config, space=space, **settings, **more)
    assert len(sweep.trials) == 2 ** len(space)
    assert set(sweep.trials["status"]) == {"finished"}
    assert all(sweep.best.params[key] in values for key, values in space.items())
    assert sweep.best.model.task == config.get("task", "classification")


def start(name: str, folder: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    import json

    code = RUN.format(examples=str(EXAMPLES), name=name, settings=json.dumps(settings))
    env = {**os.environ, **RAY_ENV, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(EXAMPLES)])}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=env, stdout=subprocess.DEVNULL)


def wait_for_checkpoint(process: subprocess.Popen[bytes], run: Path, timeout_s: float = 300) -> None:
    """Wait until a run has a complete checkpoint."""
    until = time.monotonic() + timeout_s
    while not list(run.glob("checkpoints/step-*/*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
