"""Writes a sweep's report into its folder: tables, pictures, one HTML page. It draws nothing itself."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.storage.records import TrialRow
from shoal.storage.run_folder import PICTURES, REPORTS, RunFolder
from shoal.tune.analysis.importance import importance
from shoal.tune.analysis.scaling_law import ScalingReport, scaling_picture, scaling_report
from shoal.tune.analysis.width import WidthReport, width_picture, width_report
from shoal.tune.report import plots
from shoal.tune.report.html import html_report
from shoal.tune.trials import Mode, points, ranked, to_table

LR, WIDTH = "optim.lr", "model.width"


@dataclass(frozen=True)
class Findings:
    """What a sweep found out, as text.

    Attributes:
        lines: text by label, for the terminal and the page.
        width: the width report, where learning rate and width were swept.
        scaling: how the best loss falls with size, where width was swept.
        note: `lines` as Markdown, for MLflow.
    """

    lines: dict[str, str]
    width: WidthReport | None
    scaling: ScalingReport | None
    note: str


def write_report(
    folder: RunFolder, rows: Sequence[TrialRow], title: str, metric: str, mode: Mode, seconds: float
) -> Findings:
    """Write `report/` (CSV, parquet, HTML) and `pictures/`, and return the findings."""
    shares = importance(rows, mode)
    width, scaling = width_report(rows, LR, WIDTH, mode), scaling_report(rows, WIDTH, mode)
    drawn = _draw(rows, metric, mode, shares, width, scaling)
    for name, png in drawn.items():
        folder.write(f"{PICTURES}/{name.replace(' ', '_')}.png", png)
    table = to_table(rows)
    folder.write(f"{REPORTS}/trials.csv", table.to_csv(index=False).encode())
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    folder.write(f"{REPORTS}/trials.parquet", stream.getvalue())
    lines = _lines(rows, metric, mode, shares, width, scaling, seconds)
    page = html_report(title, lines, rows, mode, metric, drawn)
    folder.write(f"{REPORTS}/report.html", page.encode())
    note = "\n".join(f"- **{label}**: {text}" for label, text in lines.items())
    return Findings(lines, width, scaling, f"{note}\n\nSee `{REPORTS}/report.html` among the artifacts.")


def show_params(params: dict[str, object]) -> str:
    """Write a point as `optim.lr=0.00123  model.width=64`."""
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    )


def _draw(
    rows: Sequence[TrialRow],
    metric: str,
    mode: Mode,
    shares: dict[str, float],
    width: WidthReport | None,
    scaling: ScalingReport | None,
) -> dict[str, bytes]:
    drawings: dict[str, Callable[[], bytes | None]] = {
        "heatmap of lr and width": lambda: plots.heatmap(rows, LR, WIDTH, metric, mode),
        "learning curves": lambda: plots.learning_curves(rows, metric, mode),
        "parallel coordinates": lambda: plots.parallel_coordinates(rows, metric, mode),
        "parameter importance": lambda: plots.importance_bars(shares, metric),
        "best over trials": lambda: plots.best_over_trials(rows, metric, mode),
        "best over time": lambda: plots.best_over_time(rows, metric, mode),
        "best lr by width": lambda: width_picture(width, rows, metric) if width else None,
        "loss by size": lambda: scaling_picture(scaling, metric) if scaling else None,
    }
    return {name: png for name, draw in drawings.items() if (png := draw()) is not None}


def _lines(
    rows: Sequence[TrialRow],
    metric: str,
    mode: Mode,
    shares: dict[str, float],
    width: WidthReport | None,
    scaling: ScalingReport | None,
    seconds: float,
) -> dict[str, str]:
    won = ranked(rows, mode)[0]
    counts = {
        status: sum(row.status == status for row in rows)
        for status in dict.fromkeys(row.status for row in rows)
    }
    lines = {
        "best": f"{won.name}  {metric} {won.metric:.6g}  {show_params(won.params)}",
        "trials": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "work": f"{sum(row.seconds for row in rows):.1f} s of training in {seconds:.1f} s",
    }
    repeated = points(rows, mode)
    if repeated and repeated[0].count > 1:
        top = repeated[0]
        lines["best point"] = (
            f"{metric} {top.mean:.6g} +- {top.std:.2g} over {top.count} seeds  {show_params(top.params)}"
        )
    if shares:
        lines["importance"] = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
    if width:
        lines["width"] = width.summary
    if scaling:
        names = [f"scaling {law.symbol}" for law in scaling.laws] or ["scaling"]
        lines |= dict(zip(names, scaling.text().splitlines(), strict=True))
    return lines
