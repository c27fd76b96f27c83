"""What `--check` finds by doing once, on a few rows, what a run does."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from shoal.cluster import session
from shoal.config.loading import load
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.runs.mlflow_metadata import model_record
from shoal.runs.row_counts import rows_at_a_time
from shoal.runs.validate import validate


class Sound(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x):
        return self.leave(F.relu(self.enter(x)))


class Tuple(Sound):
    def forward(self, x):
        return super().forward(x), x


class Dict(Sound):
    def forward(self, x):
        return {"logits": super().forward(x)}


class TwoTensors(Sound):
    def forward(self, x):
        return {"mean": super().forward(x), "variance": super().forward(x)}


class Frozen(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.requires_grad_(False)


class Detached(Sound):
    def forward(self, x):
        return super().forward(x).detach()


class RandomInside(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class Random(Sound):
    def forward(self, x):
        return self.leave(F.dropout(self.enter(x), 0.5))


class RandomModule(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.noise = RandomInside()

    def forward(self, x):
        return self.leave(self.noise(self.enter(x)))


class Counting(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


class Wide(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs + 1)


class SqueezesOne(Sound):
    def forward(self, x):
        return super().forward(x).squeeze(0)


class NotANumber(Sound):
    def forward(self, x):
        return super().forward(x) * torch.log(torch.tensor(-1.0))


class Classes(Sound):
    def forward(self, x):
        return super().forward(x).argmax(1)


class Double(Sound):
    def forward(self, x):
        return self.leave(self.enter(x.double()))


class FailsInTraining(Sound):
    def forward(self, x):
        if self.training:
            raise KeyError("mask")
        return super().forward(x)


class ExtraState(Sound):
    def get_extra_state(self):
        return {"epoch": 1}

    def set_extra_state(self, state):
        pass


BUILT = []


class OtherEachTime(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        BUILT.append(self)
        self.more = nn.Linear(len(BUILT), 1)


class Normed(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.leave(self.norm(self.enter(x)))


class Sometimes(Sound):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.extra = nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.enter(x)
        return self.leave(self.extra(hidden) if x[0, 0] > 0 else hidden)


class WritesOnItsInputs(Sound):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.5))


def frame(**extra):
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    return pd.DataFrame(x, columns=list("abc")).assign(target=(x[:, 0] > 0).astype(int), **extra)


def blank_name():
    return frame().rename(columns={"b": " "})


def of_odd_types():
    import datetime
    import decimal

    every = range(300)
    return frame(
        time=[datetime.time(n % 24) for n in every],
        decimal=[decimal.Decimal(n) for n in every],
        span=pd.to_timedelta(np.arange(300), unit="s"),
        large=np.arange(300, dtype=np.uint64),
        half=np.arange(300, dtype=np.float16),
        missing=[None if n % 3 else "x" for n in every],
    )


def check(model, *settings, source="frame"):
    here = __name__
    given = [f"data.source={here}:{source}", f"model.name={here}:{model.__name__}", "scale.num_workers=0"]
    return validate(load(RunConfig, None, [*given, *settings]), session.connect)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TwoTensors, ["a dict of 'mean', 'variance'", "'logits'", "train.loss"]),
        (Frozen, ["no parameter to train", "all 4", "requires_grad"]),
        (Detached, ["depends on none of its 4 parameters"]),
        (Random, ["draws random numbers in eval mode", "forward of Random)", "training=self.training"]),
        (RandomModule, ["forward of RandomInside, module 'noise'"]),
        (Counting, ["other outputs for the same rows", "keep no state"]),
        (Wide, ["returned (8, 3)", "must return (8, 2)"]),
        (SqueezesOne, ["returned (2,) for 1 samples", "must return (1, 2)"]),
        (NotANumber, ["the loss is nan before the first step", "8 rows whose inputs are finite"]),
        (Classes, ["numbers of type int64", "logits"]),
        (Double, ["shape (1, 3) and type float32", "must have the same dtype"]),
        (FailsInTraining, ["KeyError when training on rows of shape (8, 3) and type float32", "mask"]),
        (ExtraState, ["'_extra_state'", "is a dict"]),
        (OtherEachTime, ["another model the second time", "more.weight"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_model_that_would_fail_later_is_refused_in_one_line(model, words):
    with pytest.raises(UserError) as refused:
        check(model)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize("model", [Sound, Normed, Sometimes, WritesOnItsInputs, Tuple, Dict])
def test_a_sound_model_passes_and_leaves_random_numbers_and_rows_as_they_were(model):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    plan = check(model)
    assert torch.equal(torch.rand(3), expected)
    assert plan.size.parameters > 0
    [(_, block)] = plan.source.blocks()
    assert np.array_equal(block["a"], frame()["a"])


class Pairs(Dataset):
    """Items ((x [3], size), class)."""

    def __len__(self):
        return 200

    def __getitem__(self, row):
        return (torch.full((3,), float(row)), float(row)), row % 2


class OfPairs(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(4, outputs)

    def forward(self, x, size):
        return self.layer(torch.cat([x, size[:, None].float()], dim=1))


def stacked(samples):
    (xs, sizes), targets = zip(*(inputs for inputs, _ in samples), strict=True), [t for _, t in samples]
    return (torch.stack(xs), torch.stack(sizes)), torch.stack(targets)


def noisy(samples):
    (x, size), targets = stacked(samples)
    return (x + torch.randn_like(x), size), targets


def shuffled(samples):
    inputs, targets = stacked(samples)
    return inputs, targets[torch.randperm(len(targets))]


@pytest.mark.parametrize(("collate", "part"), [(noisy, "inputs"), (shuffled, "targets")])
def test_a_collate_function_that_returns_something_else_the_second_time_is_refused(collate, part):
    with pytest.raises(
        UserError, match=f"collate='.*' returned other {part} when it was called again.*forward"
    ):
        check(OfPairs, f"data.collate={__name__}:{collate.__name__}", source="Pairs")


def test_a_collate_function_of_its_samples_alone_passes():
    assert check(OfPairs, f"data.collate={__name__}:stacked", source="Pairs").size.parameters == 10


def test_a_column_with_a_blank_name_is_refused_by_its_place():
    with pytest.raises(UserError, match=r"feature column 2 of 3 has a blank name \(' '\)"):
        check(Sound, source="blank_name")


def test_rows_of_types_that_mlflow_cannot_describe_are_described_and_predicted_from(tmp_path):
    from mlflow.models import infer_signature

    from shoal.inference.rows import as_rows
    from shoal.runs.probe import training_rows

    plan = check(Sound, source="of_odd_types")
    block, transform = training_rows(plan.source, plan.preprocessing), plan.dataset_info.transform
    rows = as_rows(block, transform)
    assert infer_signature(rows).inputs.input_names() == [column.name for column in transform.columns]
    again = {name: rows[name].to_numpy() for name in rows}
    assert np.array_equal(transform.features(again), transform.features(block))


def test_a_layer_for_some_rows_alone_is_refused_where_workers_gather_layers_together():
    settings = ("scale.num_workers=2", "scale.strategy=fsdp")
    with pytest.raises(UserError, match=r"'extra\.\w+' .* is used for some rows alone"):
        check(Sometimes, *settings)
    check(Sound, *settings)


# Rows at a time.


@pytest.mark.parametrize(
    ("rows", "workers", "micro", "expected"),
    [
        (59, 1, None, {59}),
        (59, 2, None, {29, 30}),
        (3, 2, None, {1, 2}),
        (1, 2, None, {1}),
        (48, 1, 47, {47, 1}),
        (48, 2, 16, {16, 8}),
        (33, 2, 16, {16, 1}),  # 17 rows, and 16 and a filler
    ],
)
def test_rows_that_a_worker_computes_on_at_a_time(rows, workers, micro, expected):
    assert rows_at_a_time(rows, workers, micro) == expected


def last_of_one(**scale):
    rows = check(Sound).dataset_info.rows["train"]
    return rows, next(size for size in range(40, 300) if rows % size == 1)


def test_a_last_batch_of_one_row_is_refused_with_a_batch_size_that_fits_if_the_model_needs_two():
    rows, size = last_of_one()
    with pytest.raises(
        UserError, match=f"of {rows} training rows in batches of .*={size} the last has 1"
    ) as refused:
        check(Normed, f"data.global_batch_size={size}")
    fits = str(refused.value).partition("set data.global_batch_size=")[2].partition(",")[0]
    check(Normed, f"data.global_batch_size={fits}")
    check(Sound, f"data.global_batch_size={size}")
    check(Normed, f"data.global_batch_size={size}", f"train.max_steps={rows // size}")  # it is never reached


def test_workers_that_normalize_together_take_one_row_each_and_others_do_not():
    _, size = last_of_one()
    settings = (f"data.global_batch_size={size}", "scale.num_workers=2")
    check(Normed, *settings)
    with pytest.raises(UserError, match="divided among 2 workers"):
        check(Normed, *settings, "scale.sync_batchnorm=false")


# What trains, and hardly as it was meant.

ENOUGH = ("data.validation_fraction=0.4", "data.test_fraction=0.4", "data.global_batch_size=8")


def test_a_warmup_longer_than_the_run_is_said_with_the_share_of_the_rate(caplog):
    with caplog.at_level(logging.WARNING):
        check(Sound, *ENOUGH, "optim.warmup_steps=5000", "train.max_steps=10", "optim.lr=0.1")
    assert [record.getMessage() for record in caplog.records] == [
        "optim.warmup_steps=5000 is longer than the training of 10 steps: the learning rate reaches 0.2% of "
        "optim.lr=0.1; set optim.warmup_steps to less than 10, or train longer"
    ]


def test_that_nothing_is_held_out_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        check(Sound, "data.validation_fraction=0", "data.test_fraction=0")
    assert len(caplog.records) == 1
    assert "nothing is held out" in caplog.text


def test_that_few_rows_are_held_out_is_said_once_with_a_remedy(caplog):
    with caplog.at_level(logging.WARNING):
        check(Sound)
        check(Sound, *ENOUGH)
    (note,) = [record.getMessage() for record in caplog.records]
    assert re.match(
        r"\d\d validation rows and \d\d test rows of 300 are held out: metrics of fewer than 100 ", note
    )
    assert "raise data.validation_fraction and data.test_fraction, or add rows" in note


def test_only_the_split_with_few_rows_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        check(Sound, *ENOUGH, "data.validation_fraction=0.1")
    (note,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"\d\d validation rows of 300 are held out", note)


class Loses(torch.optim.SGD):
    """Counts its steps where no checkpoint sees it."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.clock = np.float64(0.0)

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["clock"] = self.clock


def rises(step, total_steps):
    return step - 1.0


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (f"optim.name={__name__}:Loses", r"\['param_groups'\]\[0\]\['clock'\] is a float64: keep tensors"),
        (f"optim.name={__name__}:Losses", "no 'Losses' .did you mean 'Loses'"),
        (f"optim.schedule={__name__}:rises", r"returned -1.0 at step 0 of \d+: return a finite factor"),
        ("optim.groups={encoder: {lr: 0.1}}", "optim.groups names 'encoder', which matches no parameter"),
        ("model.freeze=[encoder]", "model.freeze names 'encoder', which matches no parameter"),
        ("model.freeze=['*']", "no parameter to train: all 4 .*name fewer in model.freeze"),
    ],
)
def test_an_optimizer_schedule_or_pattern_that_would_fail_later_is_refused(setting, says):
    with pytest.raises(UserError, match=says):
        check(Sound, setting)


def test_what_of_initial_weights_does_not_fit_is_said_once_and_recorded(tmp_path, caplog):
    torch.save({"enter.weight": torch.zeros(8, 3), "other": torch.zeros(1)}, tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING):
        plan = check(Sound, f"model.init={tmp_path}/weights.pt", "model.freeze=[enter]")
    (note,) = [record.getMessage() for record in caplog.records if "model.init" in record.getMessage()]
    assert "loaded 1 of 4 tensors" in note
    assert plan.size.not_loaded == model_record(plan.size).not_loaded == note
    assert (plan.size.parameters, plan.size.trained) == (50, 18)
