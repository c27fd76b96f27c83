"""Sweep over learning rate, width or any other key: shoal tune [CONFIG.yaml] [key=value | key=range ...]"""

from collections.abc import Sequence

from shoal.api.tune import check_sweep, open_sweep, sweep_checked
from shoal.errors import ConfigError
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.forecast_report import forecast_report
from shoal.terminal.reports import sweep_report
from shoal.terminal.transcript import kept_output
from shoal.tune.config import SweepConfig, load_sweep
from shoal.workflows.tune.forecast import forecast

RANGES = """ranges, in Ray Tune's words; with colons they need no quotes in a shell:
  key=a,b,c                     each of a list (also grid:a:b:c)
  key=choice:a:b:c              one of a list at random
  key=uniform:0:1               key=loguniform:1e-4:1e-1    key=quniform:0:1:0.1    key=randint:1:10
  'key=loguniform(1e-4, 1e-1)'  the same with brackets, as in the space: block of a file
  'key=by(package.module:fn)'   a range that depends on the values chosen so far, which fn receives as a dict
"""


def main(arguments: list[str], program: str = "shoal tune") -> int:
    """Check, sweep, report."""
    parser = JobParser(
        f"{program} [CONFIG.yaml] [dotted.key=value | dotted.key=range ...]",
        "Sweep over ranges of a config on a Ray cluster, recorded in MLflow.",
        SweepConfig,
        f"{RANGES}\n",
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value | key=range")
    options = parser.parse_intermixed_args(arguments)
    _check_is_training(options.settings)
    config = load_sweep(*file_and_settings(options.settings))

    plan = check_sweep(config)
    if config.dry_run:
        print(forecast_report(forecast(plan)))
        return 0
    folder, done = open_sweep(config, plan)
    with kept_output(folder):
        print(sweep_report(done or sweep_checked(plan, folder)))
    return 0


def _check_is_training(settings: Sequence[str]) -> None:
    """Refuse keys of `compress`, whose values are compared beside one original, not as trials of one metric.

    Raises:
        ConfigError: with the command that takes them.
    """
    asked = [text for text in settings if text.partition("=")[0].strip().partition(".")[0] == "compress"]
    if asked:
        model = next((text for text in settings if "=" not in text), "MODEL")
        raise ConfigError(
            f"{asked[0]}: a sweep trains models, and compression makes a variant of each value by itself: run "
            f"jobs/compress.py {model} {' '.join(asked)}"
        )
