"""Importance on trials with a metric that is a known function of their params."""

import importlib
import sys
import threading
import time

import numpy as np
import pytest

from shoal.storage.records import TrialRow
from shoal.tune.analysis.importance import importance


def trials(count, metric, **more):
    draw = np.random.default_rng(0)
    for number in range(count):
        params = {
            "optim.lr": float(10 ** draw.uniform(-4, -1)),
            "model.width": int(draw.choice([32, 64, 128])),
            "model.act": str(draw.choice(["relu", "gelu"])),
            "same": 1,
        }
        yield TrialRow(number, f"t{number}", "finished", params | more, metric(params), 1, 1.0, 0.0, 1.0, ())


def by_rate(params):
    return (np.log10(params["optim.lr"]) + 2.5) ** 2 + 0.001 * params["model.width"] / 128


def test_the_param_that_decides_is_named_first_and_shares_sum_to_one():
    shares = importance(list(trials(40, by_rate)), "min")
    assert next(iter(shares)) == "optim.lr"
    assert shares["optim.lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)
    assert "same" not in shares


def test_a_category_can_be_what_decides():
    shares = importance(list(trials(40, lambda params: float(params["model.act"] == "relu"))), "max")
    assert shares["model.act"] > 0.8


def test_importance_is_reproducible():
    rows = list(trials(20, by_rate))
    assert importance(rows, "min") == importance(rows, "min")


def test_one_diverged_trial_does_not_decide():
    rows = list(trials(40, lambda params: float(params["model.act"] == "relu") + 0.1 * by_rate(params)))
    worst = TrialRow(99, "t99", "finished", rows[0].params | {"optim.lr": 0.1}, 1e12, 1, 1.0, 0.0, 1.0, ())
    assert next(iter(importance([*rows, worst], "min"))) == "model.act"


def test_params_of_mixed_types_are_accepted_and_those_that_some_trials_lack_left_out():
    rows = list(trials(20, by_rate))
    for row in rows[:10]:
        row.params["optim.momentum"] = 0.9 if row.number % 2 else 0.5
    for row in rows:
        row.params["mixed"] = row.number % 3 or "auto"
        row.params["whole or not"] = 1 if row.number % 2 else 0.5
        row.params["list"] = [row.number % 2]
    shares = importance(rows, "min")
    assert "optim.momentum" not in shares
    assert {"mixed", "whole or not", "list"} <= set(shares)


def test_too_few_or_equal_trials_give_no_importance():
    assert importance([], "min") == {}
    assert importance(list(trials(3, by_rate)), "min") == {}
    assert importance(list(trials(10, lambda params: 1.0)), "min") == {}
    same = [TrialRow(n, f"t{n}", "finished", {"a": 1}, float(n), 1, 1.0, 0.0, 1.0, ()) for n in range(9)]
    assert importance(same, "min") == {}


def test_frames_that_another_thread_is_importing_are_waited_for(monkeypatch, tmp_path):
    """As MLflow does in a thread of its own while a sweep ends: scikit-learn would find half a module."""
    rows = list(trials(20, by_rate))
    expected = importance(rows, "min")  # and scikit-learn is imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "polars"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "polars.py").write_text(
        "import time\ntime.sleep(1.0)\nclass DataFrame: ...\nclass Series: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    thread = threading.Thread(target=importlib.import_module, args=["polars"])
    thread.start()
    try:
        while "polars" not in sys.modules:
            time.sleep(0.01)
        assert importance(rows, "min") == expected
    finally:
        thread.join()
        del sys.modules["polars"]
