"""Prune or quantize a model: shoal compress MODEL compress.prune=0.5 [compress.quantize=int8]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.compression.config import CompressConfig
from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.compression_report import compression_report
from shoal.terminal.reports import result_line, unsynced_warning
from shoal.workflows.compress import compress


def main(arguments: list[str], program: str = "shoal compress") -> int:
    """Make the variants, measure them beside the model, report and log them."""
    parser = JobParser(
        f"{program} MODEL compress.prune=0.5 [compress.quantize=int8] [dotted.key=value ...]",
        "Make a trained model smaller or faster, and measure what it loses.",
        CompressConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(CompressConfig, None, options.settings)
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    uri = hide(options.model)
    result = compress(uri, job_name("compress", uri), config, tracking_uri)
    print(compression_report(result, config.track.registered_model_name))
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(result_line(result.run_folder))
    return 0
