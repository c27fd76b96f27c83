"""Writes a sweep's report into its folder: tables, pictures, one HTML page. It draws nothing itself."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.plots.figure import to_png
from shoal.storage.records import TrialRow
from shoal.storage.run_folder import PICTURES, REPORTS, RunFolder
from shoal.tune.analysis.importance import importance
from shoal.tune.analysis.scaling_law import ScalingReport, scaling_figure, scaling_report
from shoal.tune.analysis.width import WidthReport, width_figure, width_report
from shoal.tune.report import plots
from shoal.tune.report.html import html_report
from shoal.tune.report.text import params_text
from shoal.tune.trials import Mode, points, ranked, to_table

MOST_NAMED = 8
LR, WIDTH = "optim.lr", "model.width"


@dataclass(frozen=True)
class Findings:
    """The findings of a sweep as text.

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
    return Findings(lines, width, scaling, note)


def _draw(
    rows: Sequence[TrialRow],
    metric: str,
    mode: Mode,
    shares: dict[str, float],
    width: WidthReport | None,
    scaling: ScalingReport | None,
) -> dict[str, bytes]:
    figures = {
        "heatmap of lr and width": plots.heatmap(rows, LR, WIDTH, metric, mode),
        "learning curves": plots.learning_curves(rows, metric, mode),
        "parallel coordinates": plots.parallel_coordinates(rows, metric, mode),
        "parameter importance": plots.importance_bars(shares, metric),
        "best over trials": plots.best_over_trials(rows, metric, mode),
        "best over time": plots.best_over_time(rows, metric, mode),
    }
    if width:
        figures["best lr by width"] = width_figure(width, rows, metric)
    if scaling:
        figures["loss by size"] = scaling_figure(scaling, metric)
    return {name: to_png(figure) for name, figure in figures.items() if figure is not None}


def _lines(
    rows: Sequence[TrialRow],
    metric: str,
    mode: Mode,
    shares: dict[str, float],
    width: WidthReport | None,
    scaling: ScalingReport | None,
    seconds: float,
) -> dict[str, str]:
    best = ranked(rows, mode)[0]
    counts = {
        status: sum(row.status == status for row in rows)
        for status in dict.fromkeys(row.status for row in rows)
    }
    lines = {
        "best": f"{best.name}  {metric} {best.metric:.6g}  {params_text(best.params)}",
        "trials": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "work": f"{sum(row.seconds for row in rows):.1f} s of training in {seconds:.1f} s",
    }
    reused = [f"{row.name} as {row.same_as}" for row in rows if row.same_as]
    if reused:
        more = f" and {len(reused) - MOST_NAMED} more" if len(reused) > MOST_NAMED else ""
        lines["reused"] = f"at a point that was drawn before: {', '.join(reused[:MOST_NAMED])}{more}"
    repeated = points(rows, mode)
    if repeated and repeated[0].count > 1:
        top = repeated[0]
        lines["best point"] = (
            f"{metric} {top.mean:.6g} +- {top.std:.2g} over {top.count} seeds  {params_text(top.params)}"
        )
    if shares:
        lines["importance"] = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
    if width:
        lines["width"] = width.summary
    if scaling:
        lines |= {f"scaling {law.symbol}": law.text() for law in scaling.laws if law.is_known}
    return lines
