"""The exponential moving average of the weights."""

import contextlib

import torch
from torch import nn

from shoal.data.sampler import VALIDATION
from shoal.training.checkpoint.restore import restore
from shoal.training.ema import EMA
from shoal.training.loop import evaluate_split
from training_run import Net, TrainingRun, assert_resumes_exactly, assert_same


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)


def test_the_average_follows_its_recurrence_with_a_decay_that_rises_to_the_configured_one():
    model = Tied()
    ema, expected = EMA(model, 0.4), model.one.weight.detach().clone()
    for step in range(8):
        with torch.no_grad():
            model.one.weight.add_(1.0)
            model.norm.running_mean.fill_(step)
            model.norm.num_batches_tracked.fill_(step)
        ema.update(step)
        decay = min(0.4, (1 + step) / (10 + step))  # 0.1, 2/11, 0.25, 4/13, ...
        expected = decay * expected + (1 - decay) * model.one.weight.detach()
    found = ema.state_dict()
    torch.testing.assert_close(found["one.weight"], expected)
    assert found["other.weight"] is found["one.weight"]
    assert 5 < found["norm.running_mean"][0] < 7
    assert found["norm.num_batches_tracked"] == 7
    assert list(found) == list(model.state_dict())


def test_the_average_is_in_the_model_only_inside_the_context():
    model = Tied()
    ema = EMA(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.one.weight.zero_()
    with contextlib.suppress(KeyError), ema.in_model():
        assert torch.equal(model.one.weight, before["one.weight"])
        raise KeyError
    assert (model.one.weight == 0).all()


def test_evaluation_measures_the_average_and_training_goes_on_with_the_weights_themselves(tmp_path):
    averaged = TrainingRun(tmp_path / "a", Net(), ema=0.95).train()
    plainly = TrainingRun(tmp_path / "b", Net()).train()
    assert averaged.losses == plainly.losses
    assert_same(averaged.model, plainly.model)
    assert averaged.metric_log.of("val/loss") != plainly.metric_log.of("val/loss")
    other = Net()
    other.load_state_dict(averaged.loop.ema.state_dict())
    found = evaluate_split(TrainingRun(tmp_path / "c", other).loop, VALIDATION).results()
    assert found["loss"] == list(averaged.metric_log.of("val/loss").values())[-1]


def test_a_checkpoint_offers_the_average_and_a_resumed_run_gets_both(tmp_path):
    twin, resumed = assert_resumes_exactly(
        lambda where, **kwargs: TrainingRun(tmp_path / where, Net(), ema=0.95, **kwargs)
    )
    for name, tensor in twin.loop.ema.state_dict().items():
        assert torch.equal(tensor, resumed.loop.ema.state_dict()[name]), name
    name, _ = twin.store.latest()
    offered = Net()
    restore(twin.store.open(name), offered, None)
    for key, tensor in twin.loop.ema.state_dict().items():
        assert torch.equal(tensor, offered.state_dict()[key]), key
    assert not torch.equal(offered.enter.weight, twin.model.enter.weight)


def test_a_checkpoint_made_without_scaler_and_average_is_resumed(tmp_path):
    earlier = TrainingRun(tmp_path, Net(), epochs=1).train()
    run = TrainingRun(tmp_path, Net(), precision="fp16", ema=0.9).resume()
    assert_same(run.model, earlier.model)
    assert torch.equal(run.loop.ema.state_dict()["enter.weight"], earlier.model.enter.weight)
    assert run.loop.scaler.get_scale() == 2.0**16
