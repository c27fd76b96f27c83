"""A job's arguments, and the answers to mistyped ones."""

import pytest

from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.tune.config import SweepConfig


@pytest.fixture
def parser():
    parser = JobParser("train", "trains", RunConfig)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("settings", nargs="*")
    return parser


@pytest.fixture
def sweep_parser():
    parser = JobParser("tune", "sweeps", SweepConfig)
    parser.add_argument("settings", nargs="*")
    return parser


def read(parser, *arguments):
    return file_and_settings(parser.parse_intermixed_args(list(arguments)).settings)


def test_arguments_are_a_config_file_at_most_and_settings(parser):
    assert read(parser, "a=1", "run.yaml", "--check", "b=2") == ("run.yaml", ["a=1", "b=2"])
    assert read(parser, "a=1", "b=", "c=3") == (None, ["a=1", "b=", "c=3"])
    assert read(parser, "a=", "run.yaml") == ("run.yaml", ["a="])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["one.yaml", "two.yaml"], "one config file at most, not one.yaml and two.yaml"),
        (["one.yaml", "optim.lr"], "'optim.lr' is no key=value setting"),
        (
            ["--lr", "0.01"],
            "'--lr' is no option: settings are key=value, without dashes: write optim.lr=0.01",
        ),
        (["--lr=0.01"], "write optim.lr=0.01"),
        (["--optim.lr", "0.01", "run.yaml"], "write optim.lr=0.01"),
        (["--batch-size", "run.yaml"], "write data.global_batch_size=..."),
        (["-lr", "0.01"], "write optim.lr=0.01"),
        (["--zzz"], "'--zzz' is no option: settings are key=value, without dashes: see --help"),
        (["optim.lr", "=", "0.01"], "'optim.lr = 0.01' has spaces: write optim.lr=0.01"),
        (["run.yaml", "optim.lr=", "0.01"], "'optim.lr= 0.01' has spaces: write optim.lr=0.01"),
        (["optim.lr", "=0.01"], "'optim.lr =0.01' has spaces: write optim.lr=0.01"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistyped_arguments_are_answered_with_the_right_ones(parser, arguments, answer):
    with pytest.raises(ConfigError) as caught:
        read(parser, *arguments)
    assert answer in str(caught.value)


@pytest.mark.parametrize("option", ["--check", "--plan", "--dry-run"])
def test_what_trains_option_is_called_in_a_sweep(sweep_parser, option):
    with pytest.raises(ConfigError, match="write dry_run=true"):
        read(sweep_parser, option, "optim.lr=0.1,0.2")
