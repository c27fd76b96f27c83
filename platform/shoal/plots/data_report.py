"""The data of a run as a picture: class balance of each split, and columns with missing cells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shoal.plots.figure import new_panels, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 30
MAX_COLUMNS = 20


def data_picture(
    rows: Mapping[str, int],
    class_counts: Mapping[str, Mapping[str, int]],
    missing: Mapping[str, float],
    title: str,
) -> bytes:
    """Return the PNG of `data_figure`."""
    return to_png(data_figure(rows, class_counts, missing, title))


def data_figure(
    rows: Mapping[str, int],
    class_counts: Mapping[str, Mapping[str, int]],
    missing: Mapping[str, float],
    title: str,
) -> "Figure":
    """Draw the share of each class by split (rows by split where there are no classes), and missing cells by column.

    Args:
        rows: of each split.
        class_counts: rows of each class, by split.
        missing: share of cells that are missing or unreadable, by column; those without any are left out.
    """
    gaps = dict(
        sorted(((name, share) for name, share in missing.items() if share), key=lambda pair: -pair[1])
    )
    figure, panels = new_panels(title, 1, 2 if gaps else 1, shared="none")
    axes = panels[0][0]
    if class_counts:
        classes = list(dict.fromkeys(name for counts in class_counts.values() for name in counts))[
            :MAX_CLASSES
        ]
        width = 0.8 / len(class_counts)
        for number, (split, counts) in enumerate(class_counts.items()):
            total = max(1, sum(counts.values()))
            places = [place + number * width for place in range(len(classes))]
            axes.bar(
                places, [counts.get(name, 0) / total for name in classes], width, label=f"{split} ({total:,})"
            )
        middle = 0.4 - width / 2
        axes.set_xticks([place + middle for place in range(len(classes))], classes, rotation=45, ha="right")
        axes.set_ylabel("share of the split's rows")
        axes.legend(loc="upper right")
    else:
        axes.bar(list(rows), list(rows.values()))
        axes.set_ylabel("rows")
    if gaps:
        names = list(gaps)[:MAX_COLUMNS][::-1]
        panels[0][1].barh(names, [gaps[name] for name in names])
        panels[0][1].set_xlabel("share of missing or unreadable cells")
    return figure
