"""Tune narrow, train wide: shoal transfer [CONFIG.yaml] --to model.width=N [--verify] [key=value ...]"""

from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import resolve_run_folder
from shoal.runs.validate import check_tracking
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.reports import transfer_report
from shoal.terminal.stages import Stages
from shoal.workflows.transfer import (
    TransferConfig,
    finished_transfer,
    load_transfer,
    run_transfer,
    validate_transfer,
)


def main(arguments: list[str], program: str = "shoal transfer") -> int:
    """Check at both widths, sweep, train, report."""
    parser = JobParser(
        f"{program} [CONFIG.yaml] --to model.width=N [--verify] [key=value | key=range ...]",
        "Sweep at the config's width under muP, train once at a larger one with the best trial's settings.",
        TransferConfig,
        "ranges are those of `shoal tune`; without any, optim.lr is swept by factors of 2 about its value\n\n",
    )
    parser.add_argument("--to", required=True, metavar="model.width=N", help="the width to train at")
    parser.add_argument("--verify", action="store_true", help="sweep at that width too, and report the gap")
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value | key=range")
    options = parser.parse_intermixed_args(arguments)
    config = load_transfer(*file_and_settings(options.settings), options.to, options.verify)

    plan = validate_transfer(config)
    folder = resolve_run_folder(config, lambda folder: bool(finished_transfer(config, folder)))
    done = finished_transfer(config, folder)
    if done:
        print(f"transfer {done.run_name} is finished; set if_exists=new to run it again")
        print(transfer_report(done))
        return 0
    check_tracking(config.track)
    print(f"widths  tune at {plan.widths[0]}, train at {plan.widths[1]}, {config.model.parametrization}")
    print(f"space   {', '.join(f'{key}: {text}' for key, text in config.space.items())}")
    print(f"mlflow  {resolve_tracking_uri(config.track)}", flush=True)
    print(transfer_report(run_transfer(plan, folder, Stages())))
    return 0
