"""Tune narrow, train wide: python jobs/transfer.py [CONFIG.yaml] --to model.width=N [--verify] [key=value ...]"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

import _path  # noqa: F401  (first: it finds shoal)
from shoal.config.loading import describe
from shoal.errors import Interrupted
from shoal.runs.lifecycle import request_stop
from shoal.runs.locations import home, resolve_tracking_uri
from shoal.runs.resolve import resolve_run_folder
from shoal.storage.run_folder import RunFolder
from shoal.terminal.errors import file_and_settings, on_interrupt, run
from shoal.terminal.progress import ProgressLine, SweepTable
from shoal.terminal.tables import table
from shoal.tune.report.write import show_params
from shoal.workflows.transfer import (
    TransferConfig,
    finished_transfer,
    load_transfer,
    run_transfer,
    validate_transfer,
)


def main(arguments: list[str]) -> int:
    """Check at both widths, sweep, train, and say what was saved."""
    parser = argparse.ArgumentParser(
        usage="python jobs/transfer.py [CONFIG.yaml] --to model.width=N [--verify] [key=value | key=range ...]",
        description="Sweep at the config's width under muP, train once at a larger one with what was best.",
        epilog="ranges are those of jobs/tune.py; without any, optim.lr is swept by factors of 2 about its value\n\n"
        "keys (type, default, meaning):\n" + describe(TransferConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", required=True, metavar="model.width=N", help="the width to train at")
    parser.add_argument("--verify", action="store_true", help="sweep at that width too, and tell the gap")
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value | key=range")
    given = parser.parse_intermixed_args(arguments)
    config = load_transfer(*file_and_settings(parser, given.settings), given.to, given.verify)

    plan = validate_transfer(config)
    folder = resolve_run_folder(config, lambda folder: bool(finished_transfer(config, folder)))
    done = finished_transfer(config, folder)
    if done:
        print(f"transfer {done['run_name']} is finished; set if_exists=new to run it again")
        return report(done)
    print(f"widths  tune at {plan.widths[0]}, train at {plan.widths[1]}, {config.model.parametrization}")
    print(f"space   {', '.join(f'{key}: {text}' for key, text in config.space.items())}")
    print(f"mlflow  {resolve_tracking_uri(config.track)}", flush=True)
    return report(run_transfer(plan, folder, Stages()))


class Stages:
    """Shows one stage after another, and stops the one in progress."""

    def __init__(self) -> None:
        self._folder: RunFolder | None = None
        self._heard: str | None = None
        on_interrupt(self._stop)

    @contextlib.contextmanager
    def __call__(self, kind: str, folder: RunFolder) -> Iterator[SweepTable | ProgressLine]:
        self._folder = folder
        if self._heard:
            raise Interrupted(f"interrupted by {self._heard} between two stages; the same command goes on")
        print(f"{kind:<8}{folder.uri}", flush=True)
        view = SweepTable() if kind == "sweep" else ProgressLine()
        try:
            yield view
        finally:
            view.close()

    def _stop(self, name: str) -> None:
        self._heard = name
        if self._folder:
            request_stop(self._folder, name)


def report(result: dict) -> int:
    """Print what a person wants to know of a transfer."""
    base, target, compared = result["base_width"], result["target_width"], result["comparison"]
    rows = [
        ("", result["metric"], ""),
        (f"best at width {base}", f"{result['base_value']:.5g}", show_params(result["params"])),
        (f"the same at width {target}", f"{result['target_value']:.5g}", ""),
    ]
    if compared:
        rows.append((f"best at width {target}", f"{compared['value']:.5g}", show_params(compared["params"])))
    print(table(rows))
    if compared:
        share = compared["gap"] / abs(compared["value"]) if compared["value"] else 0.0
        print(f"gap     {compared['gap']:.4g} ({share:.1%}) worse than the best at width {target}")
        print(compared["width_report"] or "")
    names = {
        "search": f"{result['trials']} trials at width {base}",
        "training": f"a run at width {target}",
        "whole": "both",
        "direct_search": f"the trials at width {target}, {'run' if result['is_measured'] else 'foreseen'}",
    }
    costs = [(text, result["cost"][name]) for name, text in names.items()]
    cells = [(text, f"{cost['flops']:.3g}", f"{cost['seconds']:.1f}") for text, cost in costs]
    print(table([("", "FLOPs", "seconds"), *cells]))
    flops, seconds = result["flops_factor"], result["seconds_factor"]
    print(
        f"cost    tuning at width {target} takes {flops:.2g} times the FLOPs, {seconds:.2g} times the seconds"
    )
    print(f"look at it: make ui  (from {home()}); the wide model: {result['train_folder']}")
    print(f"result: {result['run_folder']}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
