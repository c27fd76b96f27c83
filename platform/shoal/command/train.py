"""Train a model: shoal train [--check | --plan] [CONFIG.yaml] [dotted.key=value ...]"""

from shoal.api.train import check_run, open_run, train_checked
from shoal.config.loading import load
from shoal.models.memory_estimate import MFU
from shoal.processes import began_ms
from shoal.runs.config import RunConfig
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.estimate_report import estimate_report
from shoal.terminal.reports import schema_report, train_report
from shoal.terminal.transcript import kept_output


def main(arguments: list[str], program: str = "shoal train") -> int:
    """Check, train, report."""
    parser = JobParser(
        f"{program} [--check | --plan [--mfu SHARE]] [CONFIG.yaml] [dotted.key=value ...]",
        "Train a PyTorch model on a Ray cluster, recorded in MLflow.",
        RunConfig,
    )
    parser.add_argument("--check", action="store_true", help="check everything and train nothing")
    parser.add_argument("--plan", action="store_true", help="estimate memory and time, on any hardware")
    parser.add_argument("--mfu", type=float, default=MFU, help="share of a device's peak for --plan's times")
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    options = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, *file_and_settings(options.settings))

    if options.plan:
        print(estimate_report(config, options.mfu))
        return 0
    folder, done = open_run(config)
    if done:
        print(train_report(done))
        return 0
    plan = check_run(config, trains=not options.check, submitted_ms=began_ms())
    if options.check:
        assert plan.dataset_info is not None
        print(schema_report(plan.dataset_info))
        print("the config is sound; nothing was trained")
        return 0
    with kept_output(folder):
        print(train_report(train_checked(plan, folder)))
    return 0
