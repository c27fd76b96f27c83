"""Measure a model: python jobs/evaluate.py MODEL [data.source=...]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

import argparse
import re
import sys
import tempfile

import _path  # noqa: F401  (first: it finds shoal)
from shoal.config.loading import describe, load
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.errors import run
from shoal.terminal.tables import table
from shoal.workflows.evaluate import EvaluateConfig, Evaluation, evaluate, log_evaluation


def main(arguments: list[str]) -> int:
    """Find the model, measure it, print the table, record it."""
    parser = argparse.ArgumentParser(
        usage="python jobs/evaluate.py MODEL [dotted.key=value ...]",
        description="Measure a model on its held-out rows, or on all rows of another source.",
        epilog="keys (type, default, meaning):\n" + describe(EvaluateConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    config = load(EvaluateConfig, None, given.settings)
    tracking_uri = resolve_tracking_uri(config.track)
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor.load(resolve_model(given.model, tracking_uri, scratch))
        measured = evaluate(predictor, config)
    print(f"{given.model} on {measured.source}, {measured.split} rows: {measured.rows}")
    print(report(measured))
    name = "evaluate-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", given.model.rstrip("/").rpartition("/")[2])
    result = log_evaluation(measured, given.model, name, config, tracking_uri)
    if not result["is_delivered"]:
        print(
            f"warning: MLflow at {tracking_uri} does not answer; later: python jobs/sync.py {result['run_folder']}"
        )
    print(f"result: {result['run_folder']}/result.json")
    return 0


def report(measured: Evaluation) -> str:
    """Lay out the metrics, and precision and recall by class."""
    lines = [table([(name, f"{value:.6g}") for name, value in measured.metrics.items()])]
    if measured.classes is not None:
        columns = measured.classes
        rows = [("class", "precision", "recall", "support")]
        for number, name in enumerate(measured.names):
            values = [columns[key][number] for key in ("precision", "recall", "support")]
            rows.append((str(name), f"{values[0]:.4f}", f"{values[1]:.4f}", f"{values[2]:.0f}"))
        lines.append(table(rows))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
