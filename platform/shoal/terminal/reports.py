"""What jobs print at their end, as text: of a run's result record or of what was measured.

It returns text and prints nothing.
"""

import math
import shlex
import socket
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shoal.runs.locations import is_upload, resolve_tracking_uri, sync_command
from shoal.storage.records import (
    ExplainResult,
    ExportResult,
    Goodput,
    SweepResult,
    TrainResult,
    TransferResult,
)
from shoal.terminal.tables import duration, table, trial_table
from shoal.tracking.config import StoreConfig
from shoal.tune.report.text import params_text

if TYPE_CHECKING:  # a job imports only its own workflow
    from shoal.data.dataset_info import DatasetInfo
    from shoal.models.size import ModelSize
    from shoal.runs.config import RunConfig
    from shoal.workflows.coordinate_check import CoordinateCheck
    from shoal.workflows.evaluate import Evaluation
    from shoal.workflows.promote import Promotion

MOST_MODULES = 30
MOST_LISTED, MOST_NAME = 10, 40  # columns that matter most, and characters of their names
LEAST_SHARE = 0.005  # of the time, that is shown
LOCAL_UI = "http://127.0.0.1:5000"  # of `make ui`
MOST_COLUMNS, MOST_CLASSES = 30, 10  # that --check shows


def look_at_it(tracking_uri: str | None, runs_table: str | None = None) -> str:
    """Return how to open MLflow on a run's store, whatever the directory it is called from, and the page to look at.

    Args:
        tracking_uri: of the run.
        runs_table: the page of the experiment's runs, best first.
    """
    if tracking_uri and not tracking_uri.startswith("sqlite:"):
        parts = urlsplit(tracking_uri)  # a user and a password before the @ are not shown
        server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return (
            f"look at it: {server.rstrip('/')}/{runs_table}"
            if runs_table
            else f"look at it: MLflow at {server}"
        )
    page = f"\n  then {LOCAL_UI}/{runs_table}" if runs_table else ""
    return f"look at it: {_ui_command(tracking_uri)}{page}"


def _ui_command(tracking_uri: str | None) -> str:
    root = Path(__file__).resolve().parents[3]
    if is_upload(root) and tracking_uri:  # which Ray deletes; the store stays on the host that the job ran on
        return f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}  (on {socket.gethostname()})"
    is_default = tracking_uri is None or tracking_uri == resolve_tracking_uri(StoreConfig())
    if not (root / "Makefile").is_file():  # it was installed by pip
        return "shoal ui" if is_default else f"shoal ui {shlex.quote(str(tracking_uri))}"
    if tracking_uri is None or (is_default and Path.cwd() == root):
        return "make ui"
    return f"make -C {shlex.quote(str(root))} ui STORE={shlex.quote(tracking_uri)}"


def plan_report(
    config: "RunConfig", dataset_info: "DatasetInfo", size: "ModelSize", notes: Sequence[str]
) -> str:
    """Return rows by split, what is worth knowing of them, and model size, before anything starts."""
    rows = ", ".join(f"{count} {split}" for split, count in dataset_info.rows.items())
    lines = [f"data    {config.data.source}: {rows} rows", *(f"note    {note}" for note in notes)]
    return "\n".join([*lines, f"model   {config.model.name}: {size}"])


def schema_report(dataset_info: "DatasetInfo") -> str:
    """Return what each column was understood as, and the classes."""
    from shoal.data.report import COLUMN_HEADER, column_cells

    shown = dataset_info.columns[:MOST_COLUMNS]
    lines = [table([COLUMN_HEADER, *map(column_cells, shown)])] if shown else []
    if len(dataset_info.columns) > MOST_COLUMNS:
        lines.append(f"  and {len(dataset_info.columns) - MOST_COLUMNS} more columns")
    for split, counts in dataset_info.class_counts.items():
        classes = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:MOST_CLASSES])
        lines.append(f"  {split}: {classes}" + (", ..." if len(counts) > MOST_CLASSES else ""))
    return "\n".join(lines)


def train_report(result: TrainResult) -> str:
    """Return metrics, speed, test loss, sample and places of a finished training."""
    metrics = {**result.metrics, **result.best}
    lines = [_metrics_table(metrics) if metrics else "nothing was held out: not measured, not verified"]
    lines += _how_it_ended(result)
    if result.samples_per_second:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.shares.items())
        lines.append(
            f"{result.samples_per_second:,.0f} samples/s; bottleneck: {result.bottleneck} ({shares})"
        )
        lines.append(efficiency(result))
    if result.goodput:
        lines += goodput_lines(result.goodput)
    if result.test_loss is not None:
        lines.append(_test_line(result, result.test_loss))
    if result.is_verified:
        lines.append("verified: the saved model, loaded in a process of its own, has these metrics")
    if result.sample:
        lines.append("it writes:\n" + textwrap.indent(result.sample.strip("\n"), "  | "))
    lines.append(look_at_it(result.tracking_uri, result.runs_table))
    return "\n".join([*lines, result_line(result.run_folder)])


def _how_it_ended(result: TrainResult) -> list[str]:
    """Return why training ended before its last step, and which weights are the result if not the last ones."""
    reasons = {
        "target": "train.target is reached",
        "early_stopping": "train.early_stopping.metric has not improved",
        "callback": "a callback asked for it",
    }
    lines = []
    if result.ended in reasons:
        lines.append(
            f"ended early, after {result.steps} of {result.steps_planned} steps: {reasons[result.ended]}"
        )
    if result.selected_step not in (None, result.steps):
        lines.append(
            f"the model is that of step {result.selected_step} of {result.steps}, the best by "
            "train.early_stopping.metric (train.select=best)"
        )
    return lines


def goodput_lines(goodput: Goodput) -> list[str]:
    """Return what the seconds since the first submission went to, and why each attempt after the first began."""
    largest = sorted(goodput.seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(
        f"{name.replace('_', ' ')} {seconds / goodput.wall_s:.0%}"
        for name, seconds in largest
        if seconds >= LEAST_SHARE * goodput.wall_s
    )
    lines = [f"goodput {goodput.share:.0%} of {duration(goodput.wall_s)} since the submission ({shares})"]
    begun = [(number, one) for number, one in enumerate(goodput.attempts, 1) if number > 1]
    if len(begun) > MOST_LISTED:
        lines.append(f"  {len(begun)} more attempts; the last ones:")
    for number, one in begun[-MOST_LISTED:]:
        place = "" if one.step is None else f", from step {one.step}"
        lines.append(f"  attempt {number}{place}: {one.why}")
    return lines


def efficiency(result: TrainResult) -> str:
    """Return tokens and FLOPs per second, MFU, memory and micro-batch size of a training."""
    parts = []
    if result.tokens_per_second:
        parts.append(f"{result.tokens_per_second:,.0f} tokens/s")
    if result.flops_per_second:
        share = f" ({result.mfu:.1%} of the devices' peak)" if result.mfu else ""
        parts.append(f"{result.flops_per_second / 1e9:,.3g} GFLOP/s{share}")
    parts.append(f"peak memory of a worker {(result.peak_memory_bytes or 0) / 2**20:,.0f} MiB")
    if result.micro_batch_size:
        parts.append(f"{result.micro_batch_size} samples at a time")
    return "; ".join(parts)


def sweep_report(result: SweepResult) -> str:
    """Return the trials, findings, the best trial's metrics and places of a finished sweep."""
    lines = [trial_table(result.rows, result.metric)]
    # The width finding is also the last line of the width report.
    lines += [f"{label:<12}{text}" for label, text in result.findings.items() if label != "width"]
    if result.width_report:
        lines.append(result.width_report)
    metrics = result.best.metrics if result.best else {}
    lines += [_metrics_table(metrics)] if metrics else []
    lines.append(f"report: {result.run_folder}/report/report.html")
    lines.append(look_at_it(result.tracking_uri, result.runs_table))
    return "\n".join([*lines, result_line(result.run_folder)])


def transfer_report(result: TransferResult) -> str:
    """Return what was tuned narrow and trained wide, the gap where it was measured, costs and places."""
    target = result.target_width
    comparison = result.comparison
    lines = [_transfer_table(result)]
    if comparison:
        share = comparison.gap / abs(comparison.value) if comparison.value else 0.0
        lines.append(f"gap     {comparison.gap:.4g} ({share:.1%}) worse than the best at width {target}")
        lines.append(comparison.width_report or "")
    flops, seconds = _number(result.flops_factor), _number(result.seconds_factor)
    lines += [
        _cost_table(result),
        f"cost    tuning at width {target} takes {flops:.2g} times the FLOPs, {seconds:.2g} times the seconds",
        f"the wide model: {result.train_folder}",
        look_at_it(result.tracking_uri, result.runs_table),
    ]
    return "\n".join([*lines, result_line(result.run_folder)])


def coordinate_report(checked: "CoordinateCheck") -> str:
    """Return each module's exponent with its change at the narrowest and the widest model, and the verdict.

    Of more than 30 modules those with the largest exponents are shown.
    """
    exponents, ends = checked.exponents, (checked.config.widths[0], checked.config.widths[-1])
    largest = set(sorted(exponents, key=lambda module: -abs(exponents[module]))[:MOST_MODULES])
    rows = [("module", f"k ({checked.config.model.parametrization})", *(f"at {width}" for width in ends))]
    for module, exponent in exponents.items():
        if module in largest:
            changes = (f"{checked.change(module, width):.3g}" for width in ends)
            rows.append((module, f"{exponent:.2f}", *changes))
    lines = ["how far each module's output moves, mean |x_t - x_0| ~ width^k", table(rows)]
    if len(exponents) > MOST_MODULES:
        lines.append(f"  and {len(exponents) - MOST_MODULES} with smaller k: see result.json")
    verdict, tolerance = checked.verdict, checked.config.check.tolerance
    lines.append(f"{'PASS' if verdict.passes else 'FAIL'}: {verdict} (at most {tolerance:g} either way)")
    return "\n".join(lines)


def evaluation_report(evaluation: "Evaluation") -> str:
    """Return the metrics, and precision, recall and support by class."""
    lines = [table([(name, f"{value:.6g}") for name, value in evaluation.metrics.items()])]
    if evaluation.classes is not None:
        columns = [evaluation.classes[key] for key in ("precision", "recall", "support")]
        rows = [("class", "precision", "recall", "support")]
        for name, precision, recall, support in zip(evaluation.names, *columns, strict=True):
            rows.append((str(name), f"{precision:.4f}", f"{recall:.4f}", f"{support:.0f}"))
        lines.append(table(rows))
    return "\n".join(lines)


def promotion_report(planned: "Promotion") -> str:
    """Return both versions' metrics, the groups of rows on which the candidate is worst, and the decision."""
    ours, theirs = planned.comparison.candidate, planned.comparison.champion
    names = (f"version {planned.candidate}", f"version {planned.champion}, the champion")
    rows = [("", *names)]
    rows += [
        (name, f"{value:.6g}", f"{theirs.metrics[name]:.6g}")
        for name, value in ours.metrics.items()
        if name in theirs.metrics
    ]
    lines = [f"{ours.rows} {ours.split} rows of {ours.source}", table(rows)]
    if planned.slices:
        cells = [
            (
                one.column,
                one.value,
                str(one.rows),
                f"{one.candidate:.4g}",
                f"{one.champion:.4g}",
                f"{one.p_value:.2g}",
            )
            for one in planned.slices
        ]
        lines.append(f"where version {planned.candidate} is worst beside the champion, by {planned.metric}")
        lines.append(table([("column", "value", "rows", *names, "p"), *cells]))
    return "\n".join([*lines, f"version {planned.candidate} {planned.outcome}: {planned.why}"])


def export_report(result: ExportResult) -> str:
    """Return size, opset and largest difference of each format, and where it is."""
    rows = [("format", "bytes", "opset", "largest difference", "file")]
    for name, one in result.formats.items():
        opset = ", ".join(f"{domain} {number}" for domain, number in (one.opset or {}).items())
        rows.append((name, f"{one.bytes:,}", opset or "-", f"{one.largest_difference:.2g}", one.file))
    sizes = ", ".join(map(str, result.batches))
    return (
        f"{result.model}, compared on {result.rows} {result.split} rows of {result.data_source} in batches of {sizes} "
        f"(at most {result.tolerance:g})\n{table(rows)}"
    )


def explain_report(result: ExplainResult) -> str:
    """Return the checks, what matters most, and where the page is."""
    rows = [("check", "value", "at most", "")]
    rows += [
        (one.name, f"{_number(one.value):.3g}", f"{one.limit:g}", "passed" if one.is_passed else "FAILED")
        for one in result.checks
    ]
    lines = [
        f"{result.model}, {_explained(result)} on {result.rows} {result.split} rows of {result.data_source}",
        table(rows),
    ]
    if result.importance:
        cells = [
            (one.name[:MOST_NAME], f"{_number(one.attribution):.4g}", _optional(one.permutation))
            for one in result.importance[:MOST_LISTED]
        ]
        lines.append(table([("matters most", "mean |attribution|", "permutation"), *cells]))
    if not result.is_passed:
        lines.append("warning: checks failed: what is marked as failed is not to be believed")
    return "\n".join([*lines, f"page: {result.run_folder}/{result.page}"])


def _explained(result: ExplainResult) -> str:
    return f"explained by {result.method}" if result.method else "shown by the tokens that it writes"


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def unsynced_warning(tracking_uri: str, run_folder: str) -> str:
    """Return the line that says how a result reaches an MLflow server that did not answer."""
    return f"warning: MLflow at {tracking_uri} does not answer; later: {sync_command()} {run_folder}"


def result_line(run_folder: str) -> str:
    """Return the last line of every job, which programs read."""
    return f"result: {run_folder}/result.json"


def _metrics_table(metrics: Mapping[str, float | None]) -> str:
    return table([(name, f"{_number(value):.6g}") for name, value in sorted(metrics.items())])


def _test_line(result: TrainResult, test_loss: float) -> str:
    line = f"test loss {test_loss:.4f}"
    for name in ("accuracy", "bits_per_byte", "wer", "map"):
        value = result.metrics.get(f"test/{name}")
        line += "" if value is None else f", {name.replace('_', ' ')} {value:.4f}"
    return line


def _transfer_table(result: TransferResult) -> str:
    base, target = result.base_width, result.target_width
    comparison = result.comparison
    rows = [
        ("", result.metric, ""),
        (f"best at width {base}", f"{_number(result.base_value):.5g}", params_text(result.params)),
        (f"the same at width {target}", f"{_number(result.target_value):.5g}", ""),
    ]
    if comparison:
        params = params_text(comparison.params)
        rows.append((f"best at width {target}", f"{comparison.value:.5g}", params))
    return table(rows)


def _cost_table(result: TransferResult) -> str:
    base, target = result.base_width, result.target_width
    names = {
        "search": f"{result.trials} trials at width {base}",
        "training": f"a run at width {target}",
        "whole": "both",
        "direct_search": f"the trials at width {target}, {'run' if result.is_measured else 'predicted'}",
    }
    costs = [(text, result.cost[name]) for name, text in names.items()]
    cells = [(text, f"{cost.flops:.3g}", f"{cost.seconds:.1f}") for text, cost in costs]
    return table([("", "FLOPs", "seconds"), *cells])


def _number(value: float | None) -> float:
    """Records hold null for what is no number."""
    return math.nan if value is None else value
