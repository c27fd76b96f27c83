"""What the pictures of a run show, read back from the axes of their figures."""

import io

import numpy as np
import pytest
from PIL import Image

from shoal.plots.confusion_matrix import confusion_figure, confusion_matrix
from shoal.plots.loss_curve import loss_curve, loss_figure


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_each_loss_is_a_curve_of_its_points_named_in_the_legend():
    curves = {"train/loss": [(1, 2.0), (2, 1.5)], "val/loss": [(2, 1.75)]}
    (axes,) = loss_figure(curves, "run 1").axes
    assert labels(axes.get_legend().get_texts()) == ["train/loss", "val/loss"]
    assert [list(zip(*line.get_data(), strict=True)) for line in axes.lines] == list(curves.values())
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("run 1", "optimizer step", "loss")
    assert axes.get_yscale() == "linear"


def test_a_dense_training_loss_is_faint_with_its_running_mean_over_it():
    values = np.random.default_rng(0).uniform(1, 2, 1000)
    (axes,) = loss_figure({"train/loss": list(enumerate(values, 1))}, "run").axes
    faint, mean = axes.lines
    assert faint.get_alpha() < 0.5
    np.testing.assert_array_equal(faint.get_ydata(), values)
    assert labels(axes.get_legend().get_texts()) == ["train/loss (mean of 20)"]
    assert mean.get_xdata()[0] == 20
    assert mean.get_ydata()[0] == pytest.approx(values[:20].mean())
    assert len(mean.get_ydata()) == 981


def test_losses_over_a_long_span_are_on_a_log_axis():
    (axes,) = loss_figure({"val/loss": [(1, 2.0), (2, 0.05)]}, "run").axes
    assert axes.get_yscale() == "log"


def test_a_confusion_matrix_shows_counts_shaded_by_the_share_of_the_true_class():
    counts = np.array([[8, 2], [0, 4]])
    (axes,) = confusion_figure(counts, ["cat", "dog"], "run").axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), [[0.8, 0.2], [0, 1]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "8",
        (1, 0): "2",
        (1, 1): "4",
    }
    assert labels(axes.get_xticklabels()) == labels(axes.get_yticklabels()) == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize(
    ("classes", "is_named", "has_counts"), [(25, True, True), (26, True, False), (51, False, False)]
)
def test_names_and_counts_are_left_out_where_they_would_overlap(classes, is_named, has_counts):
    (axes,) = confusion_figure(np.eye(classes, dtype=int), range(1000, 1000 + classes), "run").axes
    assert ("1000" in labels(axes.get_xticklabels())) == is_named
    assert len(axes.texts) == (classes if has_counts else 0)


def test_a_class_without_rows_is_drawn_empty():
    (axes,) = confusion_figure(np.array([[1, 0], [0, 0]]), ["a", "b"], "run").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 0], [0, 0]])


def test_pictures_are_png():
    for png in (
        loss_curve({"val/loss": [(1, 2.0)]}, "run"),
        confusion_matrix(np.eye(2, dtype=int), "ab", "run"),
    ):
        assert Image.open(io.BytesIO(png)).format == "PNG"


def test_a_line_marks_each_change_of_the_number_of_workers():
    workers = [(0, 2.0), (50, 2.0), (60, 1.0), (90, 1.0), (95, 2.0)]
    (axes,) = loss_figure({"val/loss": [(1, 2.0), (100, 1.0)]}, "run", workers).axes
    assert [text.get_text() for text in axes.texts] == ["1 worker", "2 workers"]
    assert [text.xy[0] for text in axes.texts] == [60, 95]
    (axes,) = loss_figure({"val/loss": [(1, 2.0)]}, "run").axes
    assert not axes.texts
