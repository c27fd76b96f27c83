"""Sweep over learning rate, width or any other key: python jobs/tune.py [CONFIG.yaml] [key=value | key=range ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.cluster import session
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import resolve_run_folder
from shoal.runs.validate import check_tracking
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.errors import leave, on_interrupt, run
from shoal.terminal.forecast_report import forecast_report
from shoal.terminal.progress import SweepTable
from shoal.terminal.reports import sweep_report
from shoal.tune.config import SweepConfig, load_sweep
from shoal.tune.validate import validate_sweep
from shoal.workflows.tune.forecast import forecast
from shoal.workflows.tune.result import covers, finished_sweep
from shoal.workflows.tune.sweep import run_sweep

RANGES = """ranges, in Ray Tune's words; with colons they need no quotes in a shell:
  key=a,b,c                     each of a list (also grid:a:b:c)
  key=choice:a:b:c              one of a list at random
  key=uniform:0:1               key=loguniform:1e-4:1e-1    key=quniform:0:1:0.1    key=randint:1:10
  'key=loguniform(1e-4, 1e-1)'  the same with brackets, as in the space: block of a file
  'key=by(package.module:fn)'   a range that depends on the values chosen so far, which fn receives as a dict
"""


def main(arguments: list[str]) -> int:
    """Check, sweep, report."""
    parser = JobParser(
        usage="python jobs/tune.py [CONFIG.yaml] [dotted.key=value | dotted.key=range ...]",
        description="Sweep over ranges of a config on a Ray cluster, recorded in MLflow.",
        schema=SweepConfig,
        notes=f"{RANGES}\n",
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value | key=range")
    options = parser.parse_intermixed_args(arguments)
    config = load_sweep(*file_and_settings(options.settings))

    plan = validate_sweep(config, session.connect)
    print(f"space   {', '.join(f'{key}: {text}' for key, text in config.space.items())}")
    if config.dry_run:
        print(forecast_report(forecast(plan)))
        return 0
    folder = resolve_run_folder(config, lambda folder: covers(finished_sweep(folder), plan.total))
    done = finished_sweep(folder)
    if done and covers(done, plan.total):
        print(f"sweep {done.run_name} is finished; set if_exists=new to run it again")
        print(sweep_report(done))
        return 0
    check_tracking(config.track)
    print(f"sweep   {folder.uri}: {plan.total} trials")
    print(f"mlflow  {resolve_tracking_uri(config.track)}", flush=True)

    on_interrupt(folder.request_stop)
    with SweepTable() as progress:
        result = run_sweep(plan, folder, progress)
    print(sweep_report(result))
    return 0


if __name__ == "__main__":
    leave(run(main))
