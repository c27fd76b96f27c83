"""Export a model: shoal export MODEL [export.formats=onnx,torch_export,safetensors]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import export_report, result_line, unsynced_warning
from shoal.workflows.export import ExportConfig, export


def main(arguments: list[str], program: str = "shoal export") -> int:
    """Write the model in each format, compare it with the model, report and log it."""
    parser = JobParser(
        f"{program} MODEL [dotted.key=value ...]",
        "Write a trained model in forms that need no Shoal, once they answer as the model does.",
        ExportConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(ExportConfig, None, options.settings)
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    uri = hide(options.model)
    name = job_name("export", uri)
    result = export(uri, name, config, tracking_uri)
    print(export_report(result))
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(result_line(result.run_folder))
    return 0
