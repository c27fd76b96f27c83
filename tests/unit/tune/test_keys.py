"""What is known of config keys: ranges that fit, values that are the same, keys that make trials incomparable."""

import pytest

from shoal.errors import ConfigError
from shoal.tune.keys import check_range, typed_point, why_incomparable
from shoal.tune.space.parsing import parse_setting
from shoal.tune.space.sampling import point_key


def test_values_are_those_that_the_config_has():
    point = {"optim.lr": 1, "model.width": 64.0, "data.flip": 1, "data.shape": (1, 8, 8), "optim.name": "sgd"}
    typed = typed_point(point)
    assert typed == {
        "optim.lr": 1.0,
        "model.width": 64,
        "data.flip": True,
        "data.shape": [1, 8, 8],
        "optim.name": "sgd",
    }
    assert [type(typed[key]) for key in ("optim.lr", "model.width", "data.flip")] == [float, int, bool]
    assert typed_point({"optim.lr": "1e-3"}) == {"optim.lr": 0.001}
    refused = {
        "optim.lr": -1,
        "model.width": 0.5,
        "model.args.x": 1.0,
    }  # refused where the config is built, or unknown
    assert typed_point(refused) == refused


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ({"model.args.x": 1}, {"model.args.x": 1.0}, True),
        ({"model.args.x": [1, {"y": 2.0}]}, {"model.args.x": [1.0, {"y": 2}]}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"model.args.x": True}, {"model.args.x": 1}, False),
        ({"model.args.x": 1}, {"model.args.x": "1"}, False),
        ({"model.args.x": 1.5}, {"model.args.x": 1}, False),
    ],
)
def test_points_are_the_same_when_their_numbers_are(one, other, are_same):
    assert (point_key(one) == point_key(other)) is are_same


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.width=uniform(32, 256)", ["model.width", "randint(32, 257)"]),
        ("model.width=loguniform(32, 256)", ["whole number", "randint(32, 257)"]),
        ("train.micro_batch_size=uniform(1, 8)", ["randint(1, 9)"]),
        ("model.width=quniform(32, 64, 0.5)", ["whole q", "randint"]),
        ("data.flip=uniform(0, 1)", ["data.flip", "takes none", "choice"]),
        ("optim.lr=1, 1.0", ["1 and 1.0 are the same value"]),
        ("optim.lr=choice(0.001, '1e-3')", ["are the same value"]),
        ("model.args.x=1, 1.0", ["are the same value"]),
        ("data.flip=true, 1", ["true and 1 are the same value"]),
    ],
)
def test_a_range_that_does_not_fit_its_key_is_refused_with_one_that_does(setting, words):
    key, text = setting.split("=")
    domain = parse_setting(key, text)
    assert domain
    with pytest.raises(ConfigError) as refused:
        check_range(key, domain)
    for word in [key, *words]:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "setting",
    [
        "optim.lr=uniform(0.1, 1)",
        "optim.clip_norm=loguniform(0.1, 1)",
        "model.width=randint(1, 9)",
        "model.width=quniform(32, 256, 32)",
        "model.args.x=uniform(0, 1)",
        "model.args.x=true, 1",
        "train.micro_batch_size=auto, 8",
    ],
)
def test_a_range_that_fits_is_taken(setting):
    key, text = setting.split("=")
    domain = parse_setting(key, text)
    assert domain
    check_range(key, domain)


@pytest.mark.parametrize(
    ("key", "task", "metric", "words"),
    [
        ("task", "classification", "val/loss", ["'task'"]),
        ("data.source", "classification", "val/accuracy", ["other rows", "val/accuracy"]),
        ("data.label", "regression", "val/rmse", ["other rows"]),
        ("data.split_seed", "classification", "val/loss", ["other rows"]),
        ("data.validation_fraction", "classification", "val/loss", ["other rows"]),
        ("data.test_fraction", "classification", "val/loss", ["other rows"]),
        ("data.text", "causal_lm", "val/loss", ["other rows"]),
        ("data.tokenizer", "causal_lm", "val/loss", ["per token", "tune.metric=val/bits_per_byte"]),
        ("train.evaluate_every_steps", "classification", "val/loss", ["tune.scheduler=none"]),
    ],
)
def test_trials_that_differ_in_what_is_measured_have_no_best(key, task, metric, words):
    reason = why_incomparable({key, "optim.lr"}, task, metric, stops_early=True)
    assert reason
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    ("key", "task", "metric"),
    [
        ("data.tokenizer", "causal_lm", "val/bits_per_byte"),
        ("data.tokenizer", "sequence_classification", "val/loss"),
        ("data.text", "sequence_classification", "val/loss"),
        ("data.context", "causal_lm", "val/loss"),
        ("data.global_batch_size", "classification", "val/loss"),
        ("data.shape", "image_classification", "val/loss"),
        ("train.evaluate_every_steps", "classification", "val/loss"),
        ("model.name", "classification", "val/loss"),
        ("seed", "classification", "val/loss"),
    ],
)
def test_trials_that_are_measured_alike_have_a_best(key, task, metric):
    assert why_incomparable({key}, task, metric, stops_early=False) is None
