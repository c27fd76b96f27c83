"""What MLflow's pages say at first glance, as text; `tests/jobs/test_cockpit.py` reads the pages."""

import json

import pytest

from shoal.storage.records import Environment, Identity, RunsTable
from shoal.tracking import cockpit
from shoal.tracking.journal import MetricPoint


def title(point, **changes):
    return cockpit.run_title(
        Identity(key="k", start_ms=0, name="t0002", experiment="e", point=point, **changes)
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.2183e-4, "2.2e-4"), (1e-4, "1e-4"), (0.0123, "0.012"), (0.0, "0"), (128, "128"), (1234.5, "1234")],
)
def test_a_number_has_two_digits(value, text):
    assert cockpit.value_text(value) == text


def test_a_trial_is_named_by_what_varies():
    assert title({"optim.lr": 2.2183e-4, "model.width": 128}) == "t0002 lr=2.2e-4 width=128"
    assert title({"optim.name": "adam", "model.name": "mlp"}) == "t0002 optim.name=adam model.name=mlp"
    assert title({"optim.lr": 0.1}, repeat=1) == "t0002 lr=0.1 repeat=1"
    assert title(None) == "t0002"


def test_losses_are_copied_to_where_charts_come_first():
    points = [
        MetricPoint(key, 1.0, 5, 7) for key in ("train/loss", "val/loss", "val/accuracy", "best/val_loss")
    ]
    keys = [point.key for point in cockpit.shown_points(points)]
    assert keys == [
        "train/loss",
        "val/loss",
        "val/accuracy",
        "best/val_loss",
        "Loss/train",
        "Loss/validation",
    ]
    assert sorted(keys)[:2] == ["Loss/train", "Loss/validation"]


def test_the_view_begins_with_params_and_the_compared_metric():
    table = RunsTable(params=["optim.lr"], metrics=["val/accuracy", "val/loss"], is_ascending=False)
    state = json.loads(cockpit.view_state(table))
    assert state["selectedColumns"][:2] == ["params.`optim.lr`", "metrics.`val/accuracy`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/accuracy`", False)
    assert cockpit.table_path(table, "3").startswith("#/experiments/3/runs?workflowType=machine_learning&")


def test_the_command_is_that_of_the_job():
    def command(*argv):
        fields = {"python": "", "platform": "", "processor": "", "gpus": [], "git": None, "packages": {}}
        return Environment(argv=list(argv), **fields).command

    assert command("jobs/tune.py", "a=choice(1, 2)") == "python jobs/tune.py 'a=choice(1, 2)'"
    assert command("/usr/bin/shoal", "train", "a=1") == "shoal train a=1"
    assert command("/lib/shoal/__main__.py", "tune") == "python -m shoal tune"
    assert command("mine.py") == "python mine.py"
    assert command("-c") == command("/x/ipykernel_launcher.py", "-f") == ""
