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
