"""Evaluate a model: shoal evaluate MODEL [data.source=...]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.api.evaluate import run_evaluation
from shoal.api.models import load_model
from shoal.config.loading import load
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import evaluation_report, result_line
from shoal.workflows.evaluate import EvaluateConfig


def main(arguments: list[str], program: str = "shoal evaluate") -> int:
    """Resolve the model, evaluate it, report and log the metrics."""
    parser = JobParser(
        f"{program} MODEL [dotted.key=value ...]",
        "Evaluate a model on its held-out rows, or on all rows of another source.",
        EvaluateConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(EvaluateConfig, None, options.settings)
    check_tracking_uri(resolve_tracking_uri(config.track))
    model = load_model(options.model, trust_code=config.trust_code, tracking_uri=config.track.tracking_uri)
    measured, result = run_evaluation(model.predictor, model.uri, config)
    print(f"{model.uri} on {measured.source}, {measured.split} rows: {measured.rows}")
    print(evaluation_report(measured))
    print(result_line(result.run_folder))
    return 0
