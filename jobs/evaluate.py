"""Evaluate a model: python jobs/evaluate.py MODEL [data.source=...]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

import re
import tempfile

import _path  # noqa: F401  (first: it finds shoal)
from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.errors import leave, run
from shoal.terminal.reports import evaluation_report, result_line, unsynced_warning
from shoal.workflows.evaluate import EvaluateConfig, evaluate, log_evaluation


def main(arguments: list[str]) -> int:
    """Resolve the model, evaluate it, report and log the metrics."""
    parser = JobParser(
        usage="python jobs/evaluate.py MODEL [dotted.key=value ...]",
        description="Evaluate a model on its held-out rows, or on all rows of another source.",
        schema=EvaluateConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(EvaluateConfig, None, options.settings)
    model = hide(options.model)
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    with tempfile.TemporaryDirectory() as scratch:
        found = resolve_model(model, tracking_uri, scratch)
        predictor = Predictor.load(found, trust_code=config.trust_code)
        evaluation = evaluate(predictor, config)
    print(f"{model} on {evaluation.source}, {evaluation.split} rows: {evaluation.rows}")
    print(evaluation_report(evaluation))
    name = "evaluate-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2])
    result = log_evaluation(evaluation, model, name, config, tracking_uri)
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(result_line(result.run_folder))
    return 0


if __name__ == "__main__":
    leave(run(main))
