"""A sweep's config: what is swept, what is refused, and the config of each of its trials."""

import pytest

from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.tune.config import DEFAULT_SPACE, load_sweep


def test_by_default_learning_rate_and_width_are_swept_with_one_worker_per_trial():
    config = load_sweep(None, [])
    assert config.space == DEFAULT_SPACE
    assert config.scale.num_workers == 1
    assert config.mode == "min"
    assert not config.is_distributed


def test_ranges_on_the_command_line_replace_the_default_ones_and_join_those_of_a_file(tmp_path):
    assert load_sweep(None, ["optim.lr=0.1,0.01"]).space == {"optim.lr": "grid(0.1, 0.01)"}
    file = tmp_path / "sweep.yaml"
    file.write_text("space:\n  model:\n    width: [32, 64]\n  optim.lr: loguniform(1e-4, 1e-2)\n")
    assert set(load_sweep(str(file), ["model.depth=1,2"]).space) == {"model.width", "optim.lr", "model.depth"}


def test_a_key_with_a_fixed_value_is_not_swept(tmp_path):
    assert set(load_sweep(None, ["model.width=64"]).space) == {"optim.lr"}
    file = tmp_path / "sweep.yaml"
    file.write_text("model: {width: 64}\n")
    assert set(load_sweep(str(file), []).space) == {"optim.lr"}
    file.write_text("space: {model.width: [32, 64], optim.lr: [0.1, 0.2]}\n")
    assert set(load_sweep(str(file), ["model.width=64"]).space) == {"optim.lr"}


@pytest.mark.parametrize(
    ("settings", "swept"),
    [
        (["optim.lr=0.1", "optim.lr=loguniform(0.001, 0.1)"], {"optim.lr": "loguniform(0.001, 0.1)"}),
        (["optim.lr=0.1,0.2", "optim.lr=0.3,0.4"], {"optim.lr": "grid(0.3, 0.4)"}),
        (["optim={lr: 0.1}", "optim.lr=0.3,0.4"], {"optim.lr": "grid(0.3, 0.4)"}),
        (["optim.lr=0.1,0.2", "model.width=8,16", "optim.lr=0.3"], {"model.width": "grid(8, 16)"}),
        (["optim.lr=0.1,0.2", "model.width=8,16", "optim={lr: 0.3}"], {"model.width": "grid(8, 16)"}),
        (
            ["model.args={x: 1}", "model.args.x=2,3", "model.width=8,16", "model.args={x: 4}"],
            {"model.width": "grid(8, 16)"},
        ),
    ],
    ids=str,
)
def test_of_two_settings_of_a_key_the_last_one_counts(tmp_path, settings, swept):
    assert load_sweep(None, settings).space == swept
    file = tmp_path / "sweep.yaml"
    file.write_text("optim.lr: 0.5\nspace: {optim.lr: [0.6, 0.7]}\n")
    swept = {"optim.lr": "grid(0.6, 0.7)"} | swept
    if settings[-1] in ("optim.lr=0.3", "optim={lr: 0.3}"):
        del swept["optim.lr"]
    assert load_sweep(str(file), settings).space == swept


def test_a_trial_has_its_point_and_its_own_seed_and_all_trials_hold_out_the_same_rows():
    config = load_sweep(None, ["seed=7"])
    one, other = config.trial({"optim.lr": 0.1}), config.trial({"optim.lr": 0.2})
    assert type(one) is RunConfig
    assert one.optim.lr == 0.1
    assert one.seed != other.seed
    assert one.seed == config.trial({"optim.lr": 0.1}).seed != config.trial({"optim.lr": 0.1}, repeat=1).seed
    assert one.data.split_seed == other.data.split_seed == 7
    assert config.trial({"seed": 3}).seed == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optim.lrr=1,2"], ["unknown key 'optim.lrr'", "optim.lr"]),
        (["track.every_steps=1,2"], ["cannot be swept"]),
        (["optim.lr=loguniform(0, 1)"], ["optim.lr", "zero"]),
        (["optim.name=choice()"], ["optim.name", "empty"]),
        (["tune.metric=val/acc"], ["never reported", "val/accuracy"]),
        (["tune.num_samples=-1"], ["tune.num_samples=-1", "greater than or equal to 1"]),
        (["data.validation_fraction=0"], ["validation"]),
        (["tune.engine=process"], ["tune.engine", "unknown"]),
        (["tune.search=bohb"], ["tune.search", "optuna"]),
        (["tune.scheduler=hyperband", "tune.search=optuna"], ["asha"]),
        (["tune.scheduler=pbt", "model.width=32,64"], ["optim"]),
        (["tune.scheduler=pbt", "tune.search=optuna"], ["tune.search=random"]),
        (["model.width=64", "optim.lr=0.1"], ["nothing is swept"]),
        (["model.width=uniform(32, 256)"], ["model.width", "randint(32, 257)"]),
        (["optim.lr=1,1.0"], ["the same value"]),
        (["task=classification,regression"], ["'task' is swept"]),
        (["data.source=sklearn:digits,sklearn:wine"], ["data.source", "other rows"]),
        (["data.tokenizer=byte,bpe:300", "task=causal_lm"], ["tune.metric=val/bits_per_byte"]),
        (
            ["tune.metric=val/accuracy", "tune.mode=min"],
            ["tune.mode=min", "val/accuracy", "leave tune.mode out"],
        ),
        (["tune.mode=max"], ["tune.mode=max", "val/loss", "leave tune.mode out"]),
        (["seed=1,2", "tune.repeat=2"], ["seed is swept", "tune.repeat=2"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_swept_is_refused_with_a_remedy(settings, words):
    with pytest.raises(ConfigError) as refused:
        load_sweep(None, settings)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message
