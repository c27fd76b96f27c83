"""An explanation as one HTML page that needs nothing else: no network, no file beside it.

This module chooses and formats what is shown; markup and style are in `page.html.j2`, where jinja2 escapes all that is
inserted: names of columns and values of cells may be anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shoal.explain.pictures import Picture
from shoal.plots.html import page_template
from shoal.storage.records import ColumnImportance, ExplanationCheck, WrittenText

TEMPLATE = Path(__file__).with_name("page.html.j2")
MEANINGS = {
    "completeness": "sum of the attributions against the difference of the outputs at row and baseline, relative error",
    "randomised_weights": "rank correlation with the maps of the same architecture with random weights",
    "learned": "the model's loss by that of the best constant answer",
}


def html_page(
    title: str,
    summary: Mapping[str, str],
    checks: Sequence[ExplanationCheck],
    pictures: Sequence[Picture],
    importance: Sequence[ColumnImportance],
    written: Sequence[WrittenText],
) -> str:
    """Return the page: summary, checks, pictures, the table of importances, and what a language model wrote.

    Args:
        summary: text by label.
    """
    return page_template(TEMPLATE).render(
        title=title,
        summary=summary,
        checks=[(check, MEANINGS[check.name]) for check in checks],
        is_passed=all(check.is_passed for check in checks),
        pictures=pictures,
        importance=importance,
        written=written,
        has_permutation=any(one.permutation is not None for one in importance),
    )
