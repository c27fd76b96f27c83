"""A saved model is compared with the one that was trained."""

import numpy as np
import pytest
import torch

from shoal.data.labels import Label
from shoal.data.preprocessing import Column, Transform
from shoal.errors import VerificationError
from shoal.runs.finalize import check_measured, note_resizes
from shoal.runs.mlflow_metadata import resize_tags
from shoal.runs.timeline import Timeline, WorkerTimeline, worker_file
from shoal.storage.records import Metadata, Resize
from shoal.storage.run_folder import RunFolder
from shoal.training.clock import Clock


class Predictor:
    """Its outputs are its rows, minus their mean where they depend on the rows beside them; its loss is their sum."""

    transform = Transform(columns=(Column(name="x", kind="number"),), label=Label(name="y"))

    def __init__(self, depends):
        self.depends = depends

    def outputs(self, block):
        rows = torch.from_numpy(block["x"])
        return rows - rows.mean() if self.depends else rows

    def accumulator(self):
        return Accumulated()

    def evaluate(self, block, added):
        added.rows += len(block["x"])
        added.total += float(self.outputs(block).sum())


class Accumulated:
    """What it measured."""

    rows, total = 0, 0.0

    def results(self):
        return {"loss": self.total + 5.0}


def check(depends, found, measured):
    blocks = [{"x": np.arange(6.0)}]
    check_measured({"loss": found}, {"loss": measured}, lambda: Predictor(depends), lambda: iter(blocks))


def test_equal_metrics_pass_and_others_do_not():
    check(depends=False, found=20.0, measured=20.0)
    with pytest.raises(VerificationError, match=r"measures loss=20 in a clean process; training measured 19"):
        check(depends=False, found=20.0, measured=19.0)


def test_a_model_whose_outputs_depend_on_the_rows_beside_is_compared_with_itself_on_the_same_rows(caplog):
    check(depends=True, found=5.0, measured=4.0)
    assert "depend on the rows beside it" in caplog.text
    with pytest.raises(VerificationError):
        check(depends=True, found=7.0, measured=4.0)


def test_resizes_are_returned_and_named_by_a_tag(place):
    folder = RunFolder(place).of_attempt(1)
    folder.save(Metadata(tags={"other": "kept"}))
    driver = Timeline(folder, 1)
    assert note_resizes(folder) == []
    assert folder.load(Metadata).tags == {"other": "kept"}
    for number, (size, step) in enumerate([(2, 0), (1, 120), (1, 130), (3, 300)]):
        driver.mark("start", workers=number, size=size, why=f"start {number}")
        worker = WorkerTimeline(Clock(), folder, worker_file(1, number))
        worker.enter("restore")
        worker.enter("steps", step)
        worker.sync()
    found = note_resizes(folder)
    assert [(one.step, one.before, one.workers, one.why) for one in found] == [
        (120, 2, 1, "start 1"),
        (300, 1, 3, "start 3"),
    ]
    assert folder.load(Metadata).tags == {
        "other": "kept",
        "shoal.resizes": "2 to 1 at step 120, 1 to 3 at step 300",
    }


def test_a_tag_names_the_last_resizes_of_many():
    many = [Resize(at_ms=0, step=step, before=1, workers=2, why="") for step in range(1000)]
    (text,) = resize_tags(many).values()
    assert text.startswith("..., 1 to 2 at step 950, ")
    assert len(text) < 5000  # MLflow's limit
