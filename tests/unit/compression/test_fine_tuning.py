"""A fine-tuning that was killed goes on from its checkpoint, to the same weights."""

import copy

import pytest
import torch

from shoal.compression import fine_tuning
from shoal.compression.fine_tuning import FineTuning, fine_tune
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.optimizer import OptimConfig

OPTIM = OptimConfig(lr=0.01)


class Killed(Exception):
    pass


def run_folder(path):
    folder = RunFolder(str(path))
    folder.create()
    folder.acquire_lease()
    return folder


def test_a_killed_fine_tuning_goes_on_to_the_same_weights(subject, table, tmp_path, monkeypatch):
    one = subject(table, label="y")
    models = [copy.deepcopy(one.predictor.model) for _ in range(3)]

    def tune(model, folder, listen=fine_tuning.ignore):
        return fine_tune(model, one.predictor, one.rows.source, FineTuning(4, OPTIM, folder, listen))

    steps = tune(models[0], run_folder(tmp_path / "whole"))

    # Due at every look, so that there is a checkpoint in the middle.
    monkeypatch.setattr(BackgroundSaver, "is_due", True)
    interrupted = run_folder(tmp_path / "killed")

    def kill(status):
        if status.step > steps // 2:
            raise Killed

    with pytest.raises(Killed):
        tune(models[1], interrupted, kill)
    [kept] = CheckpointStore(interrupted).names()
    seen = []
    assert tune(models[2], interrupted, seen.append) == steps
    assert 0 < seen[0].step < steps
    assert kept.endswith(f"{seen[0].step}")
    assert not seen[0].is_training
    assert seen[-1].step == seen[-1].steps == steps
    expected = models[0].state_dict()
    for name, value in models[2].state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(expected["layers.0.weight"], one.predictor.model.state_dict()["layers.0.weight"])
