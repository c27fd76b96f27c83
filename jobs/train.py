"""Train a model: python jobs/train.py [--check | --plan] [CONFIG.yaml] [dotted.key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.cluster import session
from shoal.config.loading import load
from shoal.models.memory_estimate import MFU
from shoal.runs.config import RunConfig
from shoal.runs.data_notes import data_notes
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import finished_result, resolve_run_folder
from shoal.runs.validate import check_tracking, validate
from shoal.storage.records import TrainResult
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.errors import leave, on_interrupt, run
from shoal.terminal.estimate_report import estimate_report
from shoal.terminal.progress import ProgressLine
from shoal.terminal.reports import plan_report, schema_report, train_report
from shoal.workflows.train import train


def main(arguments: list[str]) -> int:
    """Check, train, report."""
    parser = JobParser(
        usage="python jobs/train.py [--check | --plan [--mfu SHARE]] [CONFIG.yaml] [dotted.key=value ...]",
        description="Train a PyTorch model on a Ray cluster, recorded in MLflow.",
        schema=RunConfig,
    )
    parser.add_argument("--check", action="store_true", help="check everything and start nothing")
    parser.add_argument("--plan", action="store_true", help="estimate memory and time, on any hardware")
    parser.add_argument("--mfu", type=float, default=MFU, help="share of a device's peak for --plan's times")
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    options = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, *file_and_settings(options.settings))

    if options.plan:
        print(estimate_report(config, options.mfu))
        return 0
    folder = resolve_run_folder(config)
    done = finished_result(folder, TrainResult)
    if done:
        print(f"run {done.run_name} is finished; set if_exists=new to train it again")
        print(train_report(done))
        return 0
    check_tracking(config.track)
    plan = validate(config, session.connect)
    if plan.dataset_info and plan.size:  # else the cluster reads the data
        print(plan_report(config, plan.dataset_info, plan.size, data_notes(plan.source, plan.dataset_info)))
    if options.check:
        if plan.dataset_info:
            print(schema_report(plan.dataset_info))
        print("the config is sound; nothing was started")
        return 0
    print(f"run     {folder.uri}")
    print(f"mlflow  {resolve_tracking_uri(config.track)}", flush=True)

    on_interrupt(folder.request_stop)
    with ProgressLine() as progress:
        result = train(plan, folder, progress)
    print(train_report(result))
    return 0


if __name__ == "__main__":
    leave(run(main))
