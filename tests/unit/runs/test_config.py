import pytest
import yaml

from shoal.config.loading import describe, load, to_yaml
from shoal.config.schema import build_config
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.tune.config import SweepConfig


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


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (["scale.num_workers=3"], (3,)),
        (["scale.num_workers=0"], (0,)),
        (["scale.num_workers=[1,3]"], (1, 2, 3)),
        (["scale.num_workers=[2, 2]"], (2,)),
        (["scale.num_workers=[1,7]", "scale.strategy=fsdp+tp", "scale.tp_size=3"], (3, 6)),
        (["scale.num_workers=4", "scale.strategy=tp"], (4,)),
    ],
)
def test_the_numbers_of_workers_that_are_possible(settings, sizes):
    scale = load(RunConfig, None, settings).scale
    assert scale.sizes == sizes
    assert (scale.fewest_workers, scale.most_workers, scale.is_elastic) == (
        sizes[0],
        sizes[-1],
        len(sizes) > 1,
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["scale.num_workers=[3,1]"],
            r"scale.num_workers=\[3, 1\]: a range is two whole numbers \[min, max\]",
        ),
        (["scale.num_workers=[0,2]"], "with 1 <= min <= max"),
        (["scale.num_workers=[1,2,3]"], "two whole numbers"),
        (["scale.num_workers=[1.5,2]"], "two whole numbers"),
        (["scale.num_workers=[a,2]"], "two whole numbers"),
        (["scale.num_workers=-1"], "scale.num_workers=-1: it should be greater than or equal to 0"),
        (["scale.num_workers=two"], "scale.num_workers='two': it should be a valid integer"),
        (
            ["scale.num_workers=[1,40]"],
            r"data.global_batch_size=32 is less than scale.num_workers=\[1, 40\]: .* data.global_batch_size=40 or more",
        ),
        (
            ["scale.num_workers=[1,4]", "scale.strategy=tp"],
            r"scale.num_workers=\[1, 4\] with scale.strategy=tp, .*: set one number, or scale.strategy=fsdp\+tp",
        ),
        (
            ["scale.num_workers=[3,3]", "scale.strategy=fsdp+tp"],
            r"scale.num_workers=\[3, 3\] does not divide .* set it to a multiple of 2",
        ),
    ],
)
def test_a_number_of_workers_that_is_not_possible_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        load(RunConfig, None, [*settings, "data.global_batch_size=32"])


def test_a_range_of_workers_is_written_as_it_is_read():
    written = yaml.safe_load(to_yaml(load(RunConfig, None, ["scale.num_workers=[1,3]"])))
    assert written["scale"]["num_workers"] == [1, 3]
    assert build_config(RunConfig, written).scale.sizes == (1, 2, 3)
    assert yaml.safe_load(to_yaml(RunConfig()))["scale"]["num_workers"] == 2


def test_a_trial_has_a_worker_or_more():
    assert load(SweepConfig, None, ["scale.num_workers=[1,2]"]).is_distributed
    with pytest.raises(ConfigError, match=r"scale\.num_workers=0"):
        load(SweepConfig, None, ["scale.num_workers=0"])
