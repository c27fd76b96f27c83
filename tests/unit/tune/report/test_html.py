"""The report is one well-formed page that needs no other, whatever the trials hold."""

import os
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shoal.storage.records import TrialRow
from shoal.tune.report.html import html_report

ROOT = Path(__file__).resolve().parents[4]
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0dIHDR" + (800).to_bytes(4, "big") + b"\x00" * 8
EVIL = "</td><script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells, self.buttons = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "button":
            self.buttons.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data
        if "button" in self.open:
            self.buttons[-1] += data


@pytest.fixture
def rows():
    params = {"optim.lr": 0.01, "model.act": EVIL}
    done = TrialRow(0, "t0000", "finished", params, 0.25, 40, 2.5, 0.0, 2.5, ())
    worse = TrialRow(1, "t0001", "stopped", {"optim.lr": 0.1}, 0.5, 20, 1.0, 0.0, 1.0, (), reason="halved")
    failed = {"node": "10.0.0.7", "error": f"ValueError: {EVIL}", "log": "https://logs/t0002"}
    lost = TrialRow(2, "t0002", "failed", params | {EVIL: 1}, None, 5, 1.0, 0.0, 1.0, (), **failed)
    return [lost, worse, done]


def report(rows, pictures=None):
    return html_report(f"Sweep {EVIL}", {"Stopped": EVIL}, rows, "min", "val/loss", pictures or {})


def test_the_page_parses_and_nothing_of_a_trial_becomes_markup(rows):
    text = report(rows, {EVIL: PNG})
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    assert EVIL in page.cells
    assert f"ValueError: {EVIL}" in page.cells


def test_the_page_refers_to_nothing_outside_itself_and_its_policy_lets_it_load_nothing(rows):
    page = Page(report(rows, {"curves": PNG}))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    sources = [value for name, value in page.attributes if name in ("src", "href", "action", "srcset")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,iVBOR")
    assert not {"link", "a", "iframe", "object"} & set(page.tags)
    style = re.search("<style>(.*)</style>", report(rows), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_without_trials_that_name_an_address_the_page_holds_none(rows):
    assert not re.search("https?://", report(rows[1:], {"curves": PNG}))


def test_the_best_trial_heads_the_page_and_the_table_is_in_order_of_rank(rows):
    text = report(rows)
    assert "Best: <b>t0000</b> with val/loss <b>0.25</b> after 40 steps" in text
    cells = Page(text).cells
    assert [cell for cell in cells if cell.startswith("t000")] == ["t0000", "t0001", "t0002", "t0002"]


def test_numbers_carry_the_exact_value_they_are_sorted_by(rows):
    rows.append(TrialRow(3, "t0003", "finished", {"optim.lr": 1 / 3}, 0.9, 1, 1.0, 0.0, 1.0, ()))
    values = [value for name, value in Page(report(rows)).attributes if name == "data-value"]
    assert repr(1 / 3) in values


def test_every_column_can_be_sorted_by_a_button_in_its_head(rows):
    page = Page(report(rows))
    heads = ["rank", "trial", "status", "val/loss", "optim.lr", "model.act", EVIL, "steps", "seconds"]
    assert page.buttons[:9] == heads
    assert page.tags.count("th") == page.tags.count("button")
    (script,) = re.findall("<script>(.*)</script>", report(rows), re.DOTALL)
    assert 'addEventListener("click"' in script


def test_a_broad_picture_takes_the_whole_width_and_long_texts_may_break(rows):
    broad = PNG.replace((800).to_bytes(4, "big"), (1200).to_bytes(4, "big"))
    assert ("class", "broad") not in Page(report(rows[1:], {"curves": PNG})).attributes
    assert ("class", "broad") in Page(report(rows[1:], {"curves": broad})).attributes
    assert ("class", "long") in Page(report(rows)).attributes


def test_every_file_of_the_package_that_is_no_module_is_installed_with_it():
    """Templates are read beside their modules, so a wheel has to hold them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "platform" / "shoal"
    files = (Path(at) / name for at, _, names in os.walk(package, followlinks=True) for name in names)
    held = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert held == {path for pattern in declared["shoal"] for path in package.glob(pattern)}


def test_failures_have_a_table_of_their_own_only_when_there_are_some(rows):
    assert "Failures" in report(rows)
    assert "https://logs/t0002" in Page(report(rows)).cells
    assert "Failures" not in report(rows[1:])


def test_a_sweep_without_a_result_is_reported_too():
    assert "No trial has ended with a metric" in report([])
    Page(report([]))
