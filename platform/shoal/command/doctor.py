"""Check a cluster before a training is started on it: shoal doctor [CONFIG.yaml] [dotted.key=value ...]"""

from shoal.config.loading import load
from shoal.errors import ClusterError
from shoal.runs.config import RunConfig
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.doctor_report import doctor_report
from shoal.workflows.doctor import diagnose, write_diagnosis


def main(arguments: list[str], program: str = "shoal doctor") -> int:
    """Look, report, and write what was found."""
    parser = JobParser(
        f"{program} [CONFIG.yaml] [dotted.key=value ...]",
        "Check the cluster that a training with this config would use: versions, storage, MLflow, network, clocks, "
        "names, limits. Exit code: 0, or 1 if a training would fail.",
        RunConfig,
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    options = parser.parse_args(arguments)
    config = load(RunConfig, *file_and_settings(options.settings))
    diagnosis = diagnose(config, lambda text: print(text, flush=True))
    print(doctor_report(write_diagnosis(diagnosis, config)), flush=True)
    if diagnosis.fatal:
        first = diagnosis.fatal[0]
        raise ClusterError(
            f"{len(diagnosis.fatal)} findings are fatal, the first of {first.check} on {first.where}: {first.remedy}"
        )
    return 0
