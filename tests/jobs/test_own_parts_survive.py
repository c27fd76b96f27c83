"""A run with a loss, metrics, a callback and early stopping of the user's own is killed, and ends like its twin."""

from pathlib import Path
from typing import Any

import pytest
import torch

from running import Place, Trace, assert_equal, mlflow_record
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader
from shoal.training.checkpoint.contents import checkpoint_name
from shoal.training.checkpoint.store import CheckpointStore

pytestmark = pytest.mark.long

PARTS = '''
import random
import time

import torch
import torch.nn.functional as F


def fit_and_size(outputs, targets):
    """Two named losses of each sample."""
    return {"fit": F.cross_entropy(outputs, targets, reduction="none"), "size": 1e-4 * outputs.pow(2).sum(1)}


def margin(outputs, targets):
    """How far the right class is above the mean of all."""
    return outputs.gather(1, targets[:, None])[:, 0] - outputs.mean(1)


margin.higher_is_better = True


class Draws:
    """Counts, draws random numbers, and takes its time, so that a kill hits a run."""

    def __init__(self):
        self.seen, self.total = [], torch.zeros(1)

    def on_step_end(self, context):
        self.total += torch.rand(1)
        time.sleep(0.002)

    def on_evaluate_end(self, context, metrics):
        self.seen.append([context.step, metrics["val/auroc"], random.random()])
        context.log("own/evaluations", len(self.seen))
        context.log("own/total", self.total.item())

    def state_dict(self):
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state):
        self.seen, self.total = state["seen"], state["total"]
'''

SETTINGS = (
    "train.loss=own_parts:fit_and_size",
    "train.metrics=[auroc, 'own_parts:margin']",
    "train.callbacks=[own_parts:Draws]",
    "train.early_stopping={metric: val/auroc, patience: 8}",
    "train.epochs=200",
    "data.global_batch_size=32",
    "model.args={dropout: 0.1}",
    "checkpoint.every_steps=70",
)
SAME = (
    "metrics",
    "best",
    "steps",
    "samples_seen",
    "ended",
    "stopped_early",
    "selected_step",
    "steps_planned",
    "is_verified",
)


def logged_by_the_callback(folder: RunFolder) -> dict[tuple[str, int], float]:
    points = JournalReader(folder).read()
    return {(point.key, point.step): point.value for point in points if point.key.startswith("own/")}


def callback_state(folder: RunFolder, step: int) -> dict[str, Any]:
    states = CheckpointStore(folder).open(checkpoint_name(step)).optimizer()["callbacks"]
    return dict(states["own_parts:Draws"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_with_parts_of_its_own_ends_like_its_twin(place: Place, workers: int) -> None:
    (place.path / "own_parts.py").write_text(PARTS)
    settings = (*SETTINGS, f"scale.num_workers={workers}")
    twin = place.train(*settings, "run_name=twin")
    assert twin["ended"] == "early_stopping"
    assert twin["selected_step"] < twin["steps"] < twin["steps_planned"]

    process = place.start("train", *settings, "run_name=killed")
    place.wait_for_step(process, "killed", twin["steps"] // 2)
    process.kill()
    process.communicate()
    killed = place.train(*settings, "run_name=killed")

    assert killed["attempt"] == 2
    assert {key: killed[key] for key in SAME} == {key: twin[key] for key in SAME}
    one, other = place.folder("killed"), place.folder("twin")
    assert_equal(Trace.of(one), Trace.of(other))
    run, history = mlflow_record(killed["tracking_uri"], killed["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert history == Trace.of(other).points
    assert {"val/auroc", "val/margin", "val/fit", "val/size", "test/auroc"} <= {key for key, _ in history}
    values = {step: value for (key, step), value in history.items() if key == "val/auroc"}
    assert values[twin["selected_step"]] == max(values.values())

    found = logged_by_the_callback(one)
    assert found == logged_by_the_callback(other)
    assert len(found) == 2 * len(values)
    mine, its = (callback_state(folder, twin["steps"]) for folder in (one, other))
    assert mine["seen"] == its["seen"]
    assert len(mine["seen"]) == len(values)
    assert torch.equal(mine["total"], its["total"])

    best = checkpoint_name(twin["selected_step"])
    ours, theirs = (CheckpointStore(folder).open(best).weights() for folder in (one, other))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert (Path(killed["run_folder"]) / "model").is_dir()
