"""Train a model: python jobs/train.py [--check | --plan] [CONFIG.yaml] [dotted.key=value ...]"""

import argparse
import sys
import textwrap

import _path  # noqa: F401  (first: it finds shoal)
from shoal.cluster import session
from shoal.config.loading import describe, load
from shoal.models.memory_estimate import MFU
from shoal.runs.config import RunConfig
from shoal.runs.lifecycle import request_stop
from shoal.runs.locations import home, resolve_tracking_uri
from shoal.runs.resolve import finished_result, resolve_run_folder
from shoal.runs.validate import validate
from shoal.terminal import estimate_report, reports
from shoal.terminal.errors import file_and_settings, on_interrupt, run
from shoal.terminal.progress import ProgressLine
from shoal.terminal.tables import table
from shoal.workflows.train import train


def main(arguments: list[str]) -> int:
    """Check, train, and say where the result is."""
    parser = argparse.ArgumentParser(
        usage="python jobs/train.py [--check | --plan [--mfu SHARE]] [CONFIG.yaml] [dotted.key=value ...]",
        description="Train a PyTorch model on a Ray cluster, recorded in MLflow.",
        epilog="keys (type, default, meaning):\n" + describe(RunConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="check everything and start nothing")
    parser.add_argument(
        "--plan", action="store_true", help="say what memory and time it takes, on any hardware"
    )
    parser.add_argument("--mfu", type=float, default=MFU, help="share of a device's peak for --plan's times")
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    given = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, *file_and_settings(parser, given.settings))

    if given.plan:
        print(estimate_report.report(config, given.mfu))
        return 0
    folder = resolve_run_folder(config)
    done = finished_result(folder)
    if done:
        print(f"run {done['run_name']} is finished; set if_exists=new to train it again")
        return report(done)
    plan = validate(config, session.connect)
    if plan.dataset_info and plan.size:
        rows = ", ".join(f"{count} {split}" for split, count in plan.dataset_info.rows.items())
        print(f"data    {config.data.source}: {rows} rows")
        print(f"model   {config.model.name}: {plan.size}")
    if given.check:
        print("the config is sound; nothing was started")
        return 0
    print(f"run     {folder.uri}")
    print(f"mlflow  {resolve_tracking_uri(config.track)}", flush=True)

    on_interrupt(lambda name: request_stop(folder, name))
    line = ProgressLine()
    try:
        result = train(plan, folder, line)
    finally:
        line.close()
    return report(result)


def report(result: dict) -> int:
    """Print what a person wants to know of a finished run."""
    metrics = {**result["metrics"], **result["best"]}
    print(table([(name, f"{value:.6g}") for name, value in sorted(metrics.items())]))
    if result["samples_per_second"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items())
        print(f"{result['samples_per_second']:,.0f} samples/s; bottleneck: {result['bottleneck']} ({shares})")
        print(reports.achieved(result))
    if result["test_loss"] is not None:
        told = {name: result["metrics"].get(f"test/{name}") for name in ("accuracy", "bits_per_byte")}
        more = [
            f", {name.replace('_', ' ')} {value:.4f}" for name, value in told.items() if value is not None
        ]
        print(f"test loss {result['test_loss']:.4f}" + "".join(more))
    if result.get("sample"):
        print("it writes:\n" + textwrap.indent(result["sample"].strip("\n"), "  | "))
    print(f"look at it: make ui  (from {home()})")
    print(f"result: {result['run_folder']}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
