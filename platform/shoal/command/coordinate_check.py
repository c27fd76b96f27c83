"""Check that training depends on no width: shoal coordinate-check [CONFIG.yaml] [dotted.key=value ...]"""

from shoal.config.loading import load
from shoal.errors import VerificationError
from shoal.runs.resolve import resolve_run_folder
from shoal.runs.validate import check_tracking
from shoal.terminal.arguments import JobParser, file_and_settings
from shoal.terminal.reports import coordinate_report, result_line, unsynced_warning
from shoal.workflows.coordinate_check import CoordinateConfig, check_coordinates, log_check


def main(arguments: list[str], program: str = "shoal coordinate-check") -> int:
    """Train a few steps at every width, report how far activations moved, log it."""
    parser = JobParser(
        f"{program} [CONFIG.yaml] [dotted.key=value ...]",
        "Train a few steps at several widths and check that activations move equally at all of them, "
        "as they do under model.parametrization=mup. Exit code: 0 if they do, 1 if they do not.",
        CoordinateConfig,
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    options = parser.parse_args(arguments)
    config = load(CoordinateConfig, *file_and_settings(options.settings))
    folder = resolve_run_folder(config)
    check_tracking(config.track)
    print(f"widths  {', '.join(map(str, config.widths))}: {config.check.steps} steps each", flush=True)
    checked = check_coordinates(config, lambda width: print(f"  width {width} is trained", flush=True))
    print(coordinate_report(checked))
    result = log_check(checked, folder)
    if not result.is_delivered:
        print(unsynced_warning(str(result.tracking_uri), folder.uri))
    print(result_line(folder.uri), flush=True)
    verdict = checked.verdict
    if not verdict.passes:
        raise VerificationError(
            f"the output of {verdict.module} changes by width^{verdict.exponent:.2f}, and one learning rate serves "
            f"every width only if |k| is at most {config.check.tolerance:g}: {checked.remedy}"
        )
    return 0
