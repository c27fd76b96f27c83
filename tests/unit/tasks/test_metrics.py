import pytest

from shoal.tasks.metrics import is_better, is_higher_better, reaches, update_best


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/accuracy", True),
        ("test/accuracy", True),
        ("val/r2", True),
        ("val/f1", True),
        ("val/f1_macro", True),
        ("val/loss", False),
        ("val/rmse", False),
        ("val/mae", False),
    ],
)
def test_which_way_is_better_follows_from_the_name(name, expected):
    assert is_higher_better(name) is expected
    assert is_better(name, 2.0, 1.0) is expected
    assert is_better(name, 1.0, 2.0) is not expected
    assert reaches(name, 2.0, 1.0) is expected
    assert reaches(name, 1.0, 1.0)


def test_an_equal_value_is_no_better():
    assert not is_better("val/loss", 1.0, 1.0)
    assert not is_better("val/accuracy", 1.0, 1.0)


def test_nan_is_never_better_and_anything_is_better_than_nan_or_nothing():
    nan = float("nan")
    assert not is_better("val/loss", nan, None)
    assert not is_better("val/loss", nan, 1.0)
    assert is_better("val/loss", 1e9, nan)
    assert is_better("val/loss", 1e9, None)
    assert not reaches("val/loss", nan, 1.0)


def test_each_metric_keeps_its_own_best_and_the_step_is_that_of_the_best_loss():
    best = update_best({}, {"val/loss": 1.0, "val/accuracy": 0.5}, 10)
    assert best == {"best/val_loss": 1.0, "best/val_accuracy": 0.5, "best/step": 10.0}
    best = update_best(best, {"val/loss": 2.0, "val/accuracy": 0.7}, 20)
    assert best == {"best/val_loss": 1.0, "best/val_accuracy": 0.7, "best/step": 10.0}
    best = update_best(best, {"val/loss": 0.5, "val/accuracy": 0.6}, 30)
    assert best == {"best/val_loss": 0.5, "best/val_accuracy": 0.7, "best/step": 30.0}


def test_the_step_is_that_of_the_metric_that_selects_in_its_own_direction():
    said, best = {"auroc": True}, {}
    for step, value in enumerate((0.6, 0.9, 0.7), 1):
        best = update_best(best, {"val/loss": 3.0 - step, "val/auroc": value}, step, said, "val/auroc")
    assert best == {"best/val_loss": 0.0, "best/val_auroc": 0.9, "best/step": 2.0}


def test_updating_leaves_the_earlier_best_as_it_was():
    earlier = {"best/val_loss": 1.0}
    update_best(earlier, {"val/loss": 0.5}, 1)
    assert earlier == {"best/val_loss": 1.0}
