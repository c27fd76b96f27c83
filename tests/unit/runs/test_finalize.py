"""A saved model is compared with the one that was trained."""

import numpy as np
import pytest
import torch

from shoal.data.labels import Label
from shoal.data.preprocessing import Column, Transform
from shoal.errors import VerificationError
from shoal.runs.finalize import check_measured


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
