"""Explain a model: shoal explain MODEL [explain.rows=3,17] [explain.target=CLASS]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import explain_report, result_line, unsynced_warning
from shoal.workflows.explain import ExplainConfig, explain


def main(arguments: list[str], program: str = "shoal explain") -> int:
    """Attribute what the model answers to columns, pixels or tokens, check, report and log it."""
    parser = JobParser(
        f"{program} MODEL [dotted.key=value ...]",
        "Show which columns, pixels or tokens a trained model answers by, and whether that can be believed.",
        ExplainConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(ExplainConfig, None, options.settings)
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    uri = hide(options.model)
    result = explain(uri, job_name("explain", uri), config, tracking_uri)
    print(explain_report(result))
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(result_line(result.run_folder))
    return 0
