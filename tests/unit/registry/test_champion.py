"""Versions of a registered model in a real MLflow store: which becomes champion, and what was compared."""

import numpy as np
import pandas as pd
import pytest

from shoal.data.dataset_info import blocks_with_splits
from shoal.data.sampler import VALIDATION, split_rows
from shoal.inference.predictor import Predictor
from shoal.registry import champion as champion_module
from shoal.registry.compare import Request, compare
from shoal.registry.versions import COMPARISON
from shoal.tasks.open_data import reopen_source
from shoal.tracking.sync import RunSync
from trained_model import publish as publish_model
from trained_model import train

pytestmark = pytest.mark.long


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Rows that are easy to classify, and rows that are hard: half of their labels are drawn."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 4))
    target = (x[:, 0] > 0).astype(int)
    frame = pd.DataFrame(x, columns=list("abcd")).assign(target=target, other=1 - target, size=100 * x[:, 1])
    frame.assign(a=10 * x[:, 0]).to_csv("easy.csv", index=False)
    drawn = np.where(draw.random(400) < 0.5, draw.integers(0, 2, 400), target)
    frame.assign(target=drawn).to_csv("hard.csv", index=False)
    (tmp_path / "text.txt").write_text("one two three four five six seven " * 3000)


@pytest.fixture
def publish(run, client, tmp_path, request):
    """Train, publish under one name, and return the version in MLflow."""
    name = f"model {abs(hash(request.node.nodeid))}"

    def make(source, is_held=False, **settings):
        number = len(list(tmp_path.glob("trained-*")))
        made = tmp_path / f"trained-{number}"
        verified = train(made, source, **settings)
        folder = run(f"run-{number}", registered_model_name=name, verified=verified)
        return client.get_model_version(name, publish_model(folder, made, is_held))

    make.champion = lambda: client.get_model_version_by_alias(name, "champion").version
    return make


def test_a_champion_of_easier_data_is_measured_on_the_candidates_rows(files, publish):
    first = publish("csv:easy.csv", steps=200)
    assert publish.champion() == first.version
    second = publish("csv:hard.csv", steps=20)
    assert float(first.tags["value"]) < float(second.tags["value"])
    assert publish.champion() == second.version
    assert "becomes champion: val/loss" in second.tags[COMPARISON]
    assert "both measured on the same" in second.tags[COMPARISON]
    assert f"{float(second.tags['value']):.6g}" in second.tags[COMPARISON]


def test_values_of_the_same_rows_are_compared_as_they_were_recorded(files, publish, monkeypatch):
    first = publish("csv:hard.csv", steps=3)
    monkeypatch.setattr(champion_module, "compare", None)
    second = publish("csv:hard.csv", steps=1)
    assert publish.champion() == first.version
    assert "does not become champion" in second.tags[COMPARISON]
    third = publish("csv:hard.csv", steps=20)
    assert publish.champion() == third.version
    assert "as its own run measured" in third.tags[COMPARISON]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"label": "other"}, "it predicts 'target', not 'other'"),
        ({"task": "regression", "label": "size"}, "it was trained for task=classification"),
    ],
)
def test_a_champion_that_cannot_be_measured_stays_and_it_is_said(files, publish, other, reason):
    first = publish("csv:easy.csv", steps=1)
    second = publish("csv:easy.csv", steps=200, **other)
    assert publish.champion() == first.version
    assert reason in second.tags[COMPARISON]
    assert "was not compared with version 1, the champion, which stays" in second.tags[COMPARISON]


def test_regressions_are_compared_in_the_unit_of_the_label(files, publish):
    """The loss is of standardized targets: the same error is a smaller loss where the labels vary more."""
    pd.read_csv("hard.csv").assign(size=lambda rows: 1000 * rows["size"]).to_csv("wide.csv", index=False)
    publish("csv:wide.csv", task="regression", label="size", steps=30)
    second = publish("csv:hard.csv", task="regression", label="size", steps=10)
    assert second.tags["metric"] == "val/rmse"
    assert publish.champion() == second.version


def test_language_models_of_other_tokenizers_are_compared_by_bits_per_byte(files, publish):
    text = {"task": "causal_lm", "model": "gpt", "context": 16}
    first = publish("text:text.txt", **text)
    second = publish("text:text.txt", tokenizer="bpe:300", **text)
    assert second.tags["metric"] == "val/bits_per_byte"
    assert publish.champion() == second.version
    assert float(second.tags["value"]) < float(first.tags["value"])
    assert "both measured" in second.tags[COMPARISON]


def test_rows_that_the_champion_was_trained_on_do_not_count(files, tmp_path):
    train(tmp_path / "one", "csv:hard.csv", seed=1, steps=1)
    train(tmp_path / "two", "csv:hard.csv", seed=2, steps=1)
    request = Request(str(tmp_path / "two/weights"), str(tmp_path / "one/weights"), [VALIDATION], "own")
    ours, theirs = (split_rows(seed, np.arange(400), 0.1, 0.1) for seed in (2, 1))
    assert compare(request).candidate.rows == ((ours == 1) & (theirs != 0)).sum() < (ours == 1).sum()


def test_a_function_of_data_is_called_by_its_own_run_alone(user_module, publish):
    module = user_module(
        "import numpy as np, pandas as pd\n"
        "def rows(n=300):\n"
        "    x = np.random.default_rng(0).normal(size=n)\n"
        "    return pd.DataFrame({'x': x, 'target': (x > 0).astype(int)})\n"
    )
    first = publish(f"{module}:rows", steps=1)
    second = publish(f"{module}:rows?n=350", steps=200)
    assert publish.champion() == first.version
    assert "is a function, which only its own run calls" in second.tags[COMPARISON]
    third = publish(f"{module}:rows?n=360", steps=200, is_held=True)
    assert publish.champion() == third.version


def test_a_version_of_an_earlier_shoal_is_measured_again(files, publish, client):
    """It does not say which rows its value was measured on."""
    first = publish("csv:hard.csv", steps=20)
    client.delete_model_version_tag(first.name, first.version, "held_out")
    client.set_model_version_tag(first.name, first.version, "value", "0.0001")
    second = publish("csv:hard.csv", steps=1)
    assert publish.champion() == first.version
    assert "both measured on the same" in second.tags[COMPARISON]
    assert "0.0001 " not in second.tags[COMPARISON]


def test_an_interrupted_registration_is_completed(files, publish, client, run, tmp_path):
    """The version was created, and the process ended before it was compared."""
    publish("csv:hard.csv", steps=1)
    second = publish("csv:hard.csv", steps=20)
    client.delete_model_version_tag(second.name, second.version, COMPARISON)
    client.set_registered_model_alias(second.name, "champion", "1")
    sync = RunSync(run("run-1"))
    sync.open()
    sync.close()
    assert publish.champion() == second.version


def test_the_rows_that_are_read_again_are_those_that_the_run_evaluated_on(files, tmp_path):
    verified = train(tmp_path / "one", "csv:hard.csv", steps=50)
    found = compare(Request(str(tmp_path / "one/weights"), str(tmp_path / "one/weights"), [VALIDATION]))
    assert found.candidate.metrics["loss"] == found.champion.metrics["loss"] == verified.value
    assert found.is_paired
    predictor = Predictor.load(tmp_path / "one/weights")
    source = reopen_source(predictor.preprocessing, "classification")
    held_out = sum(
        int((split == 1).sum()) for _, split in blocks_with_splits(source, predictor.preprocessing)
    )
    assert found.candidate.rows == held_out
