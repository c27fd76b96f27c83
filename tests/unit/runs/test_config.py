import pytest

from shoal.config.loading import describe, load
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig


@pytest.mark.parametrize(
    "setting", ["train.micro_batch_size=0", "train.ema=1.0", "train.ema=0", "train.precision=fp8"]
)
def test_values_that_mean_nothing_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0].replace(".", r"\.")):
        load(RunConfig, None, [setting])


def test_help_names_the_types_of_micro_batch_size():
    (line,) = (
        line for line in describe(RunConfig).splitlines() if line.strip().startswith("train.micro_batch_size")
    )
    assert "int|auto|null" in line


def test_what_saves_memory_or_time_may_differ_when_a_run_is_resumed():
    free = RunConfig.free_on_resume
    assert "train.micro_batch_size".startswith(free)
    assert not "train.precision".startswith(free)
    assert not "train.ema".startswith(free)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["optim.name=nadam", "model.parametrization=mup", "model.base_width=8"],
            "optim.name='nadam' with model.parametrization=mup, .*adam, adamw, sgd alone",
        ),
        (
            ["optim.name=rprop", "scale.strategy=fsdp"],
            "optim.name=rprop does not go with scale.strategy=fsdp",
        ),
        (["optim.name=Muon"], "'Muon' does not work here: it takes 2-D weights alone"),
    ],
)
def test_an_optimizer_that_does_not_go_with_the_rest_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        load(RunConfig, None, settings)
