"""The pictures of an explanation; one whose checks failed says so in its title, in red."""

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shoal.data.tokenizer import PAD
from shoal.explain.explanation import Explanation, LocalRow
from shoal.explain.language import Language
from shoal.plots.figure import new_figure, new_panels, to_png
from shoal.storage.records import ColumnImportance, ExplanationCheck

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 20
NAME_LENGTH = 30
UNITS = {"table": "columns", "image": "pixels", "text": "tokens"}
TOWARDS, AGAINST = "tab:red", "tab:blue"
TOKENS_A_LINE, MOST_TOKENS, TOKEN_LENGTH = 16, 256, 8


class Picture(NamedTuple):
    """A picture, what it shows, and which checks of it failed; empty: none did."""

    caption: str
    png: bytes
    failed: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


def draw(explanation: Explanation) -> dict[str, Picture]:
    """Return all pictures by name."""
    found = {}
    if explanation.subject.kind == "image":
        found["importance"] = _mean_heatmap(explanation)
    else:
        found["importance"] = _importance(explanation.importance, "attribution", explanation.failed)
    if explanation.subject.kind == "table":
        failed = [check for check in explanation.failed if check.name == "learned"]
        found["permutation"] = _importance(explanation.importance, "permutation", failed)
    for row in explanation.local:
        found[f"row-{row.record.row}"] = _LOCAL[explanation.subject.kind](explanation, row)
    found["faithfulness"] = _curves(explanation)
    return found


def draw_language(language: Language) -> dict[str, Picture]:
    """Return what was written for each row, each token coloured by its probability."""
    from matplotlib import colormaps

    failed = [] if language.check.is_passed else [language.check]
    found = {}
    for text in language.texts:
        colors = colormaps["Greens"]([0.7 * token.probability for token in text.tokens])
        tokens = [f"{_visible(token.token)[:TOKEN_LENGTH]}\n{token.probability:.0%}" for token in text.tokens]
        end = _visible(text.prompt[-NAME_LENGTH:])
        where = f"After row {text.row} ({text.why}), ...{end}"
        if language.is_masked:
            where = f"At each [MASK] of row {text.row} ({text.why})"
        title = f"{where}: each token and its probability"
        found[f"row-{text.row}"] = _draw_tokens(tokens, colors, title, failed)
    return found


def failure(failed: Sequence[ExplanationCheck]) -> str:
    """Return which checks failed, by how much; empty: none did."""
    return ", ".join(f"{check.name} {check.value:.3g} (at most {check.limit:g})" for check in failed)


def _finish(figure: "Figure", title: str, failed: Sequence[ExplanationCheck]) -> Picture:
    """Write the title over a figure; of failed checks in red, with a red frame."""
    for axes in figure.axes[:1]:
        axes.set_title("")
    if failed:
        title = f"FAILED: {failure(failed)}\n{title}"
        figure.patch.set(edgecolor="red", linewidth=6)
    figure.suptitle(title, color="red" if failed else "black", fontsize=11)
    return Picture(title.rpartition("\n")[2], to_png(figure), failure(failed))


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # which would begin a formula
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."


def _importance(
    importance: Sequence[ColumnImportance], what: str, failed: Sequence[ExplanationCheck]
) -> Picture:
    """Draw the largest as bars with their intervals."""
    ranked = sorted(importance, key=lambda one: -getattr(one, what))[:BARS][::-1]
    figure, axes = new_figure("")
    figure.set_size_inches(8, max(2.5, 0.3 * len(ranked) + 1.4))
    means = np.array([getattr(one, what) for one in ranked])
    ends = [[getattr(one, f"{what}_{end}") for one in ranked] for end in ("low", "high")]
    errors = np.abs(np.array(ends) - means)
    axes.barh(
        [_short(one.name) for one in ranked], means, xerr=errors, color="tab:blue", ecolor="black", capsize=2
    )
    axes.set_xlabel(
        "mean |attribution|, 95% interval"
        if what == "attribution"
        else "rise of the loss when the column is shuffled, 95% interval"
    )
    axes.grid(axis="x", alpha=0.3)
    return _finish(figure, "Importance" if what == "attribution" else "Permutation importance", failed)


def _mean_heatmap(explanation: Explanation) -> Picture:
    figure, axes = new_figure("", side=5.0)
    shown = axes.imshow(explanation.pixels, cmap="Blues")
    figure.colorbar(shown, ax=axes, label="mean |attribution|")
    axes.set_axis_off()
    return _finish(figure, "Importance of pixels", explanation.failed)


def _title_of(row: LocalRow) -> str:
    """Return number, target, prediction and label of a row."""
    record = row.record
    return f"Row {record.row} ({record.why}): why {record.target}; predicted {record.predicted}, true {record.label}"


def _bars_of_row(explanation: Explanation, row: LocalRow) -> Picture:
    """Draw what the columns add to the output, the largest on top."""
    order = np.argsort(-np.abs(row.values))[:BARS][::-1]
    units = explanation.subject.units
    figure, axes = new_figure("")
    figure.set_size_inches(8, max(2.5, 0.3 * len(order) + 1.4))
    values = row.values[order]
    names = [_short(f"{units[unit]} = {row.cells[unit]}") for unit in order]
    places = np.arange(len(order))
    axes.barh(places, values, color=[TOWARDS if value > 0 else AGAINST for value in values])
    axes.set_yticks(places, names)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("attribution: red raises the output, blue lowers it")
    axes.grid(axis="x", alpha=0.3)
    return _finish(figure, _title_of(row), row.failed)


def _heatmap_of_row(explanation: Explanation, row: LocalRow) -> Picture:
    """Draw an image, and its attributions over it."""
    shape = explanation.subject.baseline.shape
    image = row.inputs.reshape(-1, *shape[-2:])
    image = (image - image.min()) / max(float(np.ptp(image)), 1e-12)
    values = row.values.reshape(shape[-2:])
    most = float(np.abs(values).max()) or 1.0
    figure, panels = new_panels("", 1, 2, shared="none")
    color = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    panels[0, 0].imshow(color, cmap="gray")
    panels[0, 1].imshow(image.mean(axis=0), cmap="gray", alpha=0.35)
    shown = panels[0, 1].imshow(values, cmap="seismic", vmin=-most, vmax=most, alpha=0.75)
    figure.colorbar(shown, ax=panels[0, 1], label="attribution")
    for axes in panels.flat:
        axes.set_axis_off()
    return _finish(figure, _title_of(row), row.failed)


def _tokens_of_row(explanation: Explanation, row: LocalRow) -> Picture:
    """Draw the tokens of a text, coloured by what each adds to the output."""
    count = min(MOST_TOKENS, int((row.inputs != PAD).sum()))
    most = float(np.abs(row.values).max()) or 1.0
    from matplotlib import colormaps

    colors = colormaps["seismic"](0.5 + 0.5 * row.values[:count] / most)
    return _draw_tokens(
        [_visible(cell)[:TOKEN_LENGTH] for cell in row.cells[:count]], colors, _title_of(row), row.failed
    )


def _draw_tokens(
    tokens: Sequence[str], colors: Any, title: str, failed: Sequence[ExplanationCheck]
) -> Picture:
    """Draw tokens in lines, each on its colour [tokens, 4]."""
    lines = -(-len(tokens) // TOKENS_A_LINE)
    figure, axes = new_figure("")
    figure.set_size_inches(9, 1.0 + 0.4 * lines)
    axes.set(xlim=(0, TOKENS_A_LINE), ylim=(lines, 0))
    axes.set_axis_off()
    for place, (token, color) in enumerate(zip(tokens, colors, strict=True)):
        x, y = place % TOKENS_A_LINE, place // TOKENS_A_LINE
        axes.fill(
            [x, x + 0.96, x + 0.96, x], [y + 0.05, y + 0.05, y + 0.95, y + 0.95], color=tuple(color[:3])
        )
        is_dark = float(np.dot(color[:3], (0.299, 0.587, 0.114))) < 0.5
        shown = token.replace("$", r"\$")
        axes.text(
            x + 0.48,
            y + 0.5,
            shown,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if is_dark else "black",
        )
    return _finish(figure, title, failed)


def _visible(token: str) -> str:
    """Return a token whose spaces and ends of lines are seen; what no font can draw is U+FFFD."""
    plain = token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in plain)


def _curves(explanation: Explanation) -> Picture:
    """Draw deletion and insertion beside random orders."""
    curves, kind = explanation.curves, explanation.subject.kind
    figure, panels = new_panels("", 1, 2)
    for axes, (name, done) in zip(
        panels[0], (("deletion", "deleted"), ("insertion", "inserted")), strict=True
    ):
        axes.plot(curves.shares, getattr(curves, name), label="by attribution")
        axes.plot(curves.shares, getattr(curves, f"random_{name}"), "--", label="in random order")
        axes.set_xlabel(f"share of {UNITS[kind]} {done}")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    panels[0, 0].set_ylabel(explanation.subject.answers.shown_as)
    return _finish(
        figure, "Faithfulness: deletion should fall, insertion rise sooner than random", explanation.failed
    )


_LOCAL: dict[str, Callable[[Explanation, LocalRow], Picture]] = {
    "table": _bars_of_row,
    "image": _heatmap_of_row,
    "text": _tokens_of_row,
}
