"""The data report: all that is known of the data, as Markdown and as a picture."""

import numpy as np

from shoal.data.dataset_info import inspect_source
from shoal.data.report import data_report
from shoal.data.sources.function import source_from_value
from shoal.plots.data_report import data_figure


def test_the_report_says_what_was_understood_and_shows_rows(rows, preprocessing):
    rows["size"][::4] = np.nan
    text = np.array(["3,5", "4,25", "?"], dtype=object)[np.arange(120) % 3]
    frame = rows | {"a|b": text, "id": np.arange(120)}
    info = inspect_source(source_from_value("mine:rows", frame), preprocessing(validation_fraction=0.2))
    report = data_report("mine:rows", info, ["d.csv: cells are divided by ';'"])
    assert report.startswith("# Data: mine:rows")
    assert "- d.csv: cells are divided by ';'" in report
    train, missing = info.rows["train"], {column.name: column.missing for column in info.columns}
    assert f"| train | {train} |" in report
    assert f"| size | number | {missing['size']} |" in report
    assert "| a\\|b | numbers with a decimal comma |" in report
    assert "| id | number |  |  | " in report
    assert "looks like an id" in report
    assert "## Classes of `target`" in report
    assert f"| 1 | {info.class_counts['train']['1']} |" in report
    [header] = [line for line in report.splitlines() if line.startswith("| size | count |")]
    assert header.count("|") == len(frame) + 2  # an escaped one among them


def test_the_picture_shows_the_classes_of_each_split_and_the_gaps():
    counts = {"train": {"a": 30, "b": 10}, "test": {"a": 5, "b": 5}}
    figure = data_figure({"train": 40, "test": 10}, counts, {"x": 0.5, "y": 0.0, "z": 0.1}, "data")
    classes, gaps = figure.axes
    assert [round(bar.get_height(), 2) for bar in classes.patches] == [0.75, 0.25, 0.5, 0.5]
    assert [text.get_text() for text in classes.get_legend().get_texts()] == ["train (40)", "test (10)"]
    assert [tick.get_text() for tick in gaps.get_yticklabels()] == ["z", "x"]
    [axes] = data_figure({"train": 40, "test": 10}, {}, {}, "data").axes
    assert [bar.get_height() for bar in axes.patches] == [40, 10]
