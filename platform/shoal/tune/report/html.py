"""A sweep's report as one HTML page that needs nothing else: no network, no file beside it.

It knows rows and pictures, not how they came about. Whatever comes from a trial is escaped: values of params
and texts of errors may be anything.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, best, is_number, ranked

FAILED = ("failed", "infeasible")
BROAD_PX = 1000
LONG = ' class="long"'


def html_report(
    title: str,
    summary: Mapping[str, str],
    rows: Sequence[TrialRow],
    mode: Mode,
    metric: str,
    pictures: Mapping[str, bytes],
) -> str:
    """Return the page: the best trial, the summary, pictures by caption, all trials, and those that failed.

    Args:
        summary: text by label, e.g. {"trials": "14 finished, 2 infeasible"}.
        pictures: PNG bytes by caption.
    """
    sections = [
        f"<h1>{escape(title)}</h1>",
        _headline(best(rows, mode), metric),
        _definitions(summary),
        '<div class="pictures">' + "".join(_picture(*pair) for pair in pictures.items()) + "</div>",
        f"<h2>Trials</h2>{_trials(rows, mode, metric)}",
        _failures([row for row in rows if row.status in FAILED]),
    ]
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _headline(row: TrialRow | None, metric: str) -> str:
    if row is None:
        return '<p class="headline">No trial has come to its end with a metric.</p>'
    params = {key: _text(value) for key, value in row.params.items()}
    return (
        f'<p class="headline">Best: <b>{escape(row.name)}</b> with {escape(metric)} <b>{row.metric:.5g}</b> '
        f"after {row.steps} steps</p>{_definitions(params)}"
    )


def _definitions(pairs: Mapping[str, str]) -> str:
    items = (f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in pairs.items())
    return f"<dl>{''.join(items)}</dl>" if pairs else ""


def _picture(caption: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    is_broad = int.from_bytes(png[16:20], "big") > BROAD_PX  # the width, in a PNG's header
    kind = ' class="broad"' if is_broad else ""
    name = escape(caption)
    return f'<figure{kind}><img src="{source}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _trials(rows: Sequence[TrialRow], mode: Mode, metric: str) -> str:
    """All trials, the ranked ones first."""
    ranks = {row.number: rank for rank, row in enumerate(ranked(rows, mode), start=1)}
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    lines = [
        [ranks.get(row.number), row.name, row.status, row.metric]
        + [row.params.get(key) for key in keys]
        + [row.steps, row.seconds, row.node, row.reason]
        for row in sorted(rows, key=lambda row: (ranks.get(row.number, math.inf), row.number))
    ]
    return _table(["rank", "trial", "status", metric, *keys, "steps", "seconds", "node", "reason"], lines)


def _failures(rows: Sequence[TrialRow]) -> str:
    if not rows:
        return ""
    lines = [[row.name, row.status, _point(row), row.node, row.error or row.reason, row.log] for row in rows]
    return "<h2>Failures</h2>" + _table(["trial", "status", "params", "node", "error", "log"], lines)


def _table(heads: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    head = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in heads)
    body = "\n".join(f"<tr>{''.join(map(_data, line))}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _data(value: Any) -> str:
    """A cell; a number carries its exact value to be sorted by."""
    if is_number(value):
        return f'<td data-value="{float(value)!r}">{escape(_text(value))}</td>'
    text = _text(value)
    return f"<td{LONG if len(text) > 30 else ''}>{escape(text)}</td>"


def _point(row: TrialRow) -> str:
    return ", ".join(f"{key}={_text(value)}" for key, value in row.params.items())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #ffffff; --faint: #5d6878; --line: #d9dee6;
  --band: #f4f6f9; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --paper: #14181f; --faint: #97a3b4;
  --line: #303846; --band: #1d232d; --accent: #6cb0ff; } }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
main { max-width: 1320px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 12px; }
h2 { font-size: 19px; margin: 32px 0 10px; }
.headline { font-size: 18px; margin: 0 0 10px; }
.headline b { color: var(--accent); }
dl { display: flex; flex-wrap: wrap; gap: 10px 28px; margin: 0 0 16px; padding: 12px 16px;
  background: var(--band); border-radius: 8px; }
dt { font-size: 12px; color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 18px; }
figure { margin: 0; align-self: start; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.broad { grid-column: 1 / -1; }
img { display: block; width: 100%; height: auto; background: white; }
figcaption { padding: 6px 12px; font-size: 13px; color: var(--faint); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; border-bottom: 1px solid var(--line); background: var(--band); padding: 0; }
th button { all: unset; cursor: pointer; padding: 8px 12px; white-space: nowrap; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
td { padding: 5px 12px; vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.long { white-space: normal; min-width: 240px; overflow-wrap: anywhere; }
tbody tr:nth-child(even) { background: var(--band); }
"""

SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  head.querySelector("button").addEventListener("click", () => {
    const table = head.closest("table"), column = head.cellIndex;
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = line => {
      const cell = line.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      if (typeof a === typeof b) return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      return typeof a === "number" ? -1 : 1;
    };
    const lines = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)));
    table.tBodies[0].append(...lines);
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  });
}
"""
