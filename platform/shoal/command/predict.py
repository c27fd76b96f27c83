"""Predict rows in bulk: shoal predict MODEL INPUT OUTPUT [key=value ...]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS. INPUT is a source as `data.source`, OUTPUT a folder.
"""

import tempfile
import time

from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.inference.batch_output import REJECTED, Done
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import result_line, unsynced_warning
from shoal.workflows import predict as workflow
from shoal.workflows.predict import PredictConfig

EVERY_S = 5.0  # between two lines of progress


def main(arguments: list[str], program: str = "shoal predict") -> int:
    """Resolve the model, check input and output, predict, report and log."""
    parser = JobParser(
        f"{program} MODEL INPUT OUTPUT [dotted.key=value ...]",
        "Predict all rows of a source and write them, with the predictions, to files in a folder.",
        PredictConfig,
    )
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument(
        "input", metavar="INPUT", help="rows as data.source: csv:PATH, parquet:PATH, images:DIR, ..."
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="a folder, e.g. scores.parquet, scores.csv, scores.jsonl"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(PredictConfig, None, options.settings)
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    uri = hide(options.model)
    with tempfile.TemporaryDirectory(prefix="shoal-models-") as scratch:
        weights = resolve_model(uri, tracking_uri, scratch)
        predictor = Predictor.load(weights, trust_code=config.trust_code)
        checked = workflow.check_prediction(predictor, weights, hide(options.input), options.output, config)
        started = time.monotonic()
        done = workflow.predict(checked, config, _Progress())
        seconds = time.monotonic() - started
    name = job_name("predict", uri)
    result = workflow.log_prediction(checked, done, seconds, uri, name, config, tracking_uri)
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(f"{uri} on {checked.source.uri}: {done.rows} rows in {done.parts} files of {checked.output}")
    if done.rejected:
        print(
            f"rejected: {done.rejected} of {done.rows} rows, with the reason in {checked.output}/{REJECTED}"
        )
    print(result_line(result.run_folder))
    return 0


class _Progress:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._started = self._printed = time.monotonic()

    def __call__(self, fragments: int, of: int, done: Done) -> None:
        now = time.monotonic()
        if now - self._printed >= EVERY_S:
            self._printed = now
            print(f"fragment {fragments}/{of}  rows {done.rows}  rejected {done.rejected}", flush=True)
