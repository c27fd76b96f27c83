"""Versions of a registered model in a real store: compared by the job, promoted, and gone back from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from running import Place
from shoal.registry.client import connect
from shoal.registry.compare import Comparison, DividedColumn, Measured
from shoal.registry.versions import Versions, download_version
from shoal.workflows.promote import PromoteConfig, decide, plan_promotion
from trained_model import register

SPLITS = {"test_fraction": 0.5, "validation_fraction": 0.1}


class Registry:
    """A store of its own in a working directory of its own, in which models are trained and registered."""

    def __init__(self, path: Path) -> None:
        self.path, self.uri = path, f"sqlite:///{path}/mlflow.db"
        self.client = connect(self.uri)

    def register(self, name, source="csv:rows.csv", **settings):
        number = len(list(self.path.glob("trained-*")))
        _, version = register(self.path, f"run-{number}", name, source, **SPLITS, **settings)
        return version

    def promote(self, *arguments):
        uri = f"track.tracking_uri={self.uri}"
        return Place(self.path, {}).run_in_process("promote", *arguments, uri)

    def champion(self, name):
        return str(self.client.get_model_version_by_alias(name, "champion").version)

    def crown(self, name, version):
        self.client.set_registered_model_alias(name, "champion", version)

    def runs(self):
        experiment = self.client.get_experiment_by_name("promotions")
        return self.client.search_runs([experiment.experiment_id]) if experiment else []


def write_rows(path, rows=600):
    """Rows whose label follows a number and, in one town alone, another."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(rows, 3)), columns=list("abc"))
    frame["town"] = draw.choice(["Oslo", "Rome", "Paris"], rows)
    frame["target"] = (frame.a + np.where(frame.town == "Rome", 3 * frame.b, 0) > 0).astype(int)
    frame["size"] = 100 * frame.a + 5 * frame.b
    frame.to_csv(path / "rows.csv", index=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """`towns`: version 1 has not learnt, version 2 has; `alone`: one version without a champion."""
    made = Registry(tmp_path_factory.mktemp("registry"))
    write_rows(made.path)
    for steps in (0, 150):
        made.register("towns", steps=steps)
    made.client.create_registered_model("alone")
    made.client.create_model_version("alone", "/nowhere")
    return made


def test_a_better_version_wins_is_recorded_and_can_be_gone_back_from(registry, tmp_path):
    registry.crown("towns", "1")
    done = registry.promote("towns", "--candidate", "2")
    assert done.code == 0, done.err
    assert registry.champion("towns") == "2"
    result = done.result
    assert (result["outcome"], result["is_promoted"], result["test"]) == ("wins", True, "mcnemar")
    assert (result["split"], result["champion"], result["candidate"]) == ("test", "1", "2")
    gained = result["only_candidate_right"] - result["only_champion_right"]
    assert result["difference"] == pytest.approx(gained / result["rows"])
    assert {one["column"] for one in result["slices"]} <= {"a", "b", "c", "town", "target", "size"}
    worst = [one["worse_by"] for one in result["slices"]]
    assert worst == sorted(worst, reverse=True)

    (run,) = registry.runs()
    assert run.data.params == {"model": "models:/towns/2", "champion": "models:/towns/1"}
    assert run.data.metrics["candidate/accuracy"] == pytest.approx(result["candidate_metrics"]["accuracy"])
    assert run.inputs.dataset_inputs[0].dataset.digest == result["rows_digest"]
    entry = Versions("towns", registry.uri).ledger()[-1]
    assert (entry.by, entry.champion, entry.replaced, entry.metric) == ("promote", "2", "1", "accuracy")
    assert (entry.rows, entry.p_value, entry.run) == (result["rows"], result["p_value"], result["run_name"])
    assert entry.data == registry.client.get_model_version("towns", "2").tags["data"]

    version = registry.client.get_model_version("towns", "2")
    assert version.tags["comparison"].endswith(result["why"])
    assert f"## Compared with the champion\n\nVersion 2 wins: {result['why']}." in version.description
    card = (download_version("towns", "2", str(tmp_path)) / "README.md").read_text()
    assert ModelCard(card).data.model_name == "towns"
    assert f"Version 2 wins: {result['why']}." in card

    shown = registry.promote("towns", "--rollback", "--dry-run")
    assert (shown.code, registry.champion("towns"), len(registry.runs())) == (0, "2", 1)
    assert "version 1 would be champion again" in shown.out
    back = registry.promote("towns", "--rollback")
    assert (back.code, registry.champion("towns"), back.result["outcome"]) == (0, "1", "rollback")
    first = registry.promote("towns", "--rollback")
    assert (first.code, registry.champion("towns")) == (2, "1")
    assert "is its first champion" in first.errors[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["town"], "no model 'town' is registered"),
        (["towns", "--candidate", "7"], "has no version 7: the last versions are 1, 2"),
        (["towns", "--candidate", "new"], "has no version new"),
        (["towns", "--candidate", "1"], "version 1 of 'towns' is its champion"),
        (["alone"], "model 'alone' has no champion yet"),
        (["alone", "--rollback"], "model 'alone' has no champion yet"),
        (["towns", "--rollback", "--candidate", "1"], "leave out --candidate"),
        (["towns", "promote.margin=-1"], "promote.margin=-1"),
        (["towns", "promote.margins=1"], "did you mean"),
        ([], "NAME"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(registry, monkeypatch, arguments, error):
    monkeypatch.setattr("shoal.workflows.promote.compare", None)
    registry.crown("towns", "1")
    done = registry.promote(*arguments)
    assert done.code == 2, done.err
    (line,) = done.errors
    assert error in line


def test_a_version_that_is_not_verified_is_not_compared(registry, monkeypatch):
    monkeypatch.setattr("shoal.workflows.promote.compare", None)
    registry.client.set_registered_model_alias("alone", "champion", "1")
    registry.client.create_model_version("alone", "/nowhere")
    done = registry.promote("alone")
    registry.client.delete_registered_model_alias("alone", "champion")
    assert done.code == 2
    assert "version 2 of 'alone' is not verified" in done.errors[0]


# The decision.


def measured(is_right, digest="same", metric="accuracy"):
    terms = np.stack([is_right.astype(float), np.ones(len(is_right))], axis=1)
    return Measured(
        source="csv:rows.csv",
        split="test",
        rows=len(is_right),
        digest=digest,
        metrics={metric: float(is_right.mean())},
        terms={metric: terms},
        exponents={metric: 1.0},
        is_higher_better={metric: metric == "accuracy"},
        compared_by="loss",
        has_classes=metric == "accuracy",
        columns=[DividedColumn("half", ["low", "high"], np.arange(len(is_right)) // (len(is_right) // 2))],
    )


def rows_right(count, rows=1000):
    return np.arange(rows) < count


@pytest.mark.parametrize(
    ("candidate", "champion", "margin", "outcome"),
    [
        (960, 900, 0.0, "wins"),
        (901, 900, 0.0, "ties"),  # one row more is chance
        (900, 900, 0.0, "ties"),
        (899, 900, 0.0, "loses"),
        (899, 900, 0.005, "ties"),
        (895, 900, 0.005, "loses"),  # 0.0045 is allowed
        (0, 900, 1.0, "ties"),
    ],
)
def test_a_version_is_promoted_if_it_wins_or_ties_within_the_margin(candidate, champion, margin, outcome):
    pair = Comparison(measured(rows_right(candidate)), measured(rows_right(champion)))
    assert decide(pair, "accuracy", margin)[0] == outcome


def test_of_a_loss_less_is_better_and_what_is_no_number_never_wins():
    losses = Comparison(measured(rows_right(10), metric="loss"), measured(rows_right(300), metric="loss"))
    assert (losses.usual_metric, decide(losses, "loss", 0.0)[0]) == ("loss", "wins")
    bad = measured(rows_right(10), metric="loss")
    bad.metrics["loss"] = bad.terms["loss"][0, 0] = np.nan
    assert decide(Comparison(bad, losses.champion), "loss", 1.0)[0] == "loses"


def test_slices_say_where_a_better_version_is_worse():
    is_right = rows_right(900)
    candidate = is_right.copy()
    candidate[900:] = True
    candidate[:50] = False
    pair = Comparison(measured(candidate), measured(is_right))
    worst, best = pair.slices("accuracy", most=2)
    assert (worst.value, worst.rows, worst.candidate, worst.champion) == ("low", 500, 0.9, 1.0)
    assert (best.value, best.worse_by) == ("high", pytest.approx(-0.2))
    assert worst.p_value == pytest.approx(2 / 2**50)


# Whole comparisons, each in two processes.


@pytest.mark.long
def test_a_worse_version_loses_and_nothing_changes_but_the_record(registry):
    registry.crown("towns", "2")
    before = registry.client.get_registered_model("towns").tags
    shown = registry.promote("towns", "--candidate", "1", "--dry-run")
    assert (shown.code, len(shown.errors)) == (1, 1)
    assert "nothing was changed: version 2 would be champion" in shown.out
    runs = len(registry.runs())
    done = registry.promote("towns", "--candidate", "1")
    assert (done.code, done.result["outcome"], registry.champion("towns")) == (1, "loses", "2")
    assert len(registry.runs()) == runs + 1
    assert registry.client.get_registered_model("towns").tags == before


@pytest.mark.long
def test_an_alias_that_another_process_moves_meanwhile_is_not_moved_over(registry, monkeypatch):
    registry.crown("towns", "1")
    third = registry.register("towns", steps=100)
    registry.crown("towns", "1")
    monkeypatch.chdir(registry.path)
    versions = Versions("towns", registry.uri)
    plan = plan_promotion(versions, "2", PromoteConfig())
    monkeypatch.setattr("shoal.command.promote.plan_promotion", lambda *_: plan)
    registry.crown("towns", third)
    ledger = versions.ledger()
    done = registry.promote("towns", "--candidate", "2")
    assert done.code == 2
    assert f"another process made version {third} of 'towns' champion" in done.errors[0]
    assert (registry.champion("towns"), versions.ledger()) == (third, ledger)


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        ({}, {"label": "size", "task": "regression"}, "it was trained for task=classification"),
        ({}, {"label": "town"}, "it predicts 'target', not 'town'"),
    ],
)
def test_versions_of_other_tasks_and_labels_do_not_compare(registry, first, second, error):
    name = f"mixed {len(error)}"
    registry.register(name, **first)
    registry.register(name, **second)
    done = registry.promote(name)
    assert (done.code, len(done.errors)) == (2, 1)
    assert error in done.errors[0]


@pytest.mark.long
def test_a_metric_that_they_do_not_have_is_refused(registry):
    registry.crown("towns", "1")
    done = registry.promote("towns", "--candidate", "2", "promote.metric=accurac")
    assert done.code == 2
    assert "did you mean 'accuracy'" in done.errors[0]


@pytest.mark.long
def test_regressions_are_tested_by_drawing_rows_again(registry):
    settings = {"label": "size", "task": "regression"}
    registry.register("sizes", steps=40, **settings)
    registry.register("sizes", steps=60, **settings)
    registry.crown("sizes", "1")
    result = registry.promote("sizes", "--candidate", "2").result
    assert (result["test"], result["metric"], result["outcome"]) == ("bootstrap", "rmse", "wins")
    low, high = result["interval"]
    assert low < result["difference"] < high < 0


MODULE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)

    def forward(self, x):
        return {sign} * self.layer(x)
"""


@pytest.mark.long
def test_two_models_whose_modules_have_one_name_run_their_own_code(registry, monkeypatch):
    """The second does the opposite with the same weights: with the code of one both would measure the same."""
    import sys

    monkeypatch.syspath_prepend(str(registry.path))
    for sign in ("1", "-1"):
        (registry.path / "twin.py").write_text(MODULE.format(sign=sign))
        sys.modules.pop("twin", None)
        registry.register("twins", model="twin:Net")
    sys.modules.pop("twin", None)
    registry.crown("twins", "1")
    refused = registry.promote("twins", "--candidate", "2")
    assert refused.code == 2
    assert "trust_code=true" in refused.errors[0]
    result = registry.promote("twins", "--candidate", "2", "trust_code=true").result
    ours, theirs = (result[f"{one}_metrics"]["accuracy"] for one in ("candidate", "champion"))
    assert ours == pytest.approx(1 - theirs)
    assert result["only_candidate_right"] + result["only_champion_right"] == result["rows"]
