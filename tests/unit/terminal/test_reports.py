"""What jobs print at their end: the figures of a result in words, and the same text wherever it goes."""

from pathlib import Path

import pytest

from shoal.storage.records import (
    AttemptBegun,
    BestTrial,
    Comparison,
    Goodput,
    SweepResult,
    TrainResult,
    TransferResult,
    TrialRow,
)
from shoal.terminal.reports import (
    efficiency,
    goodput_lines,
    look_at_it,
    sweep_report,
    train_report,
    transfer_report,
)
from shoal.terminal.tables import duration, table, trial_table

WHERE = {"status": "FINISHED", "run_name": "run-1", "run_folder": "/runs/e/run-1"}
TRAINED = TrainResult(
    **WHERE,
    metrics={"val/loss": 0.199167, "test/accuracy": 0.977401},
    best={"best/step": 360.0},
    test_loss=0.0752947,
    samples_per_second=12282.4,
    peak_memory_bytes=512 * 2**20,
    shares={"data": 0.04, "compute": 0.49},
    bottleneck="compute",
)


def test_a_trainings_report_has_metrics_speed_test_loss_and_places():
    lines = train_report(TRAINED).splitlines()
    assert lines[:3] == [
        "  best/step           360",
        "  test/accuracy  0.977401",
        "  val/loss       0.199167",
    ]
    assert lines[3] == "12,282 samples/s; bottleneck: compute (data 4%, compute 49%)"
    assert lines[4] == "peak memory of a worker 512 MiB"
    assert lines[5] == "test loss 0.0753, accuracy 0.9774"
    assert lines[6].startswith("look at it: make ui")
    assert lines[7:] == ["result: /runs/e/run-1/result.json"]


def test_the_command_that_opens_mlflow_names_the_store_that_the_job_used(monkeypatch, tmp_path):
    root = Path(__file__).resolve().parents[3]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SHOAL_HOME", raising=False)
    monkeypatch.chdir(root)
    assert look_at_it(f"sqlite:///{root}/mlflow.db") == "look at it: make ui"
    assert (
        look_at_it("sqlite:////else where/x.db")
        == f"look at it: make -C {root} ui STORE='sqlite:////else where/x.db'"
    )
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert look_at_it(store) == f"look at it: make -C {root} ui STORE={store}"
    assert look_at_it("https://me:word@host:5000/mlflow") == "look at it: MLflow at https://host:5000/mlflow"
    page = "#/experiments/1/runs?workflowType=machine_learning"
    assert look_at_it("https://me:word@host/mlflow", page) == f"look at it: https://host/mlflow/{page}"
    assert look_at_it(store, page).splitlines()[1] == f"  then http://127.0.0.1:5000/{page}"


def test_what_was_not_measured_is_left_out_and_a_sample_is_set_off():
    bare = TrainResult(**WHERE, metrics={"val/loss": None}, sample="\ndef f():\n    pass\n")
    assert train_report(bare).splitlines()[:4] == [
        "  val/loss  nan",
        "it writes:",
        "  | def f():",
        "  |     pass",
    ]


def test_efficiency_names_tokens_flops_mfu_memory_and_micro_batches():
    changes = {"tokens_per_second": 16555.0, "flops_per_second": 4e12, "mfu": 0.4512, "micro_batch_size": 8}
    assert efficiency(TRAINED.model_copy(update=changes)) == (
        "16,555 tokens/s; 4e+03 GFLOP/s (45.1% of the devices' peak); peak memory of a worker 512 MiB; "
        "8 samples at a time"
    )


ROWS = [
    TrialRow(1, "t0001", "finished", {"optim.lr": 0.0123456, "optim.name": "sgd"}, 0.25, 90, 1.25),
    TrialRow(
        0,
        "t0000",
        "failed",
        {"optim.lr": 0.1},
        None,
        0,
        0.5,
        node="host",
        error="ValueError: x",
        log="file:/e",
    ),
]


def test_a_sweeps_report_has_trials_findings_the_width_report_and_the_best_metrics():
    best = BestTrial(
        trial="t0001", params={}, value=0.25, metrics={"val/loss": 0.25, "test/loss": None}, run_folder="/r"
    )
    result = SweepResult(
        **WHERE,
        metric="val/loss",
        mode="min",
        best=best,
        rows=ROWS,
        findings={"best": "t0001", "width": "drifts"},
        width_report="width table\ndrifts",
    )
    lines = sweep_report(result).splitlines()
    assert "\n".join(lines[:5]) == trial_table(ROWS, "val/loss")
    assert lines[5:10] == [
        "best        t0001",
        "width table",
        "drifts",
        "  test/loss   nan",
        "  val/loss   0.25",
    ]
    assert lines[-3] == "report: /runs/e/run-1/report/report.html"
    assert lines[-1] == "result: /runs/e/run-1/result.json"


def test_the_trial_table_ranks_what_ended_and_gives_the_error_and_its_place_of_what_failed():
    assert trial_table(ROWS, "val/loss").splitlines() == [
        "  trial  rank    status  val/loss  steps  seconds  optim.lr  optim.name",
        "  t0001     1  finished      0.25     90      1.2   0.01235         sgd",
        "  t0000          failed                0      0.5       0.1",
        "  t0000 on host: ValueError: x",
        "    file:/e",
    ]


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_transfers_report_sets_the_cost_beside_that_of_a_direct_search(is_measured):
    comparison = Comparison(
        params={"optim.lr": 0.01},
        value=0.2,
        transferred_value=0.21,
        gap=0.01,
        width_report="stable",
        run_folder="runs/compare",
    )
    cost = {"flops": 1.26e8, "seconds": 0.7}
    result = TransferResult(
        **WHERE,
        metric="val/loss",
        mode="min",
        base_width=16,
        target_width=64,
        trials=4,
        params={"optim.lr": 0.02},
        base_value=0.22656,
        target_value=0.21,
        metrics={},
        comparison=comparison if is_measured else None,
        cost=dict.fromkeys(("search", "training", "whole", "direct_search"), cost),
        is_measured=is_measured,
        flops_factor=2.3,
        seconds_factor=0.92,
        sweep_folder="/s",
        train_folder="/t",
    )
    text = transfer_report(result)
    lines = text.splitlines()
    assert lines[1] == "  best at width 16       0.22656  optim.lr=0.02"
    assert ("gap     0.01 (5.0%) worse than the best at width 64" in lines) == is_measured
    assert f"the trials at width 64, {'run' if is_measured else 'predicted'}" in text
    assert "cost    tuning at width 64 takes 2.3 times the FLOPs, 0.92 times the seconds" in lines
    assert lines[-1] == "result: /runs/e/run-1/result.json"


def test_a_table_aligns_its_first_column_left_and_the_others_right_without_trailing_blanks():
    assert (
        table([("", "loss"), ("a long name", "1"), ("b", "")])
        == "               loss\n  a long name     1\n  b"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (65, "1:05"), (3725, "1:02:05")])
def test_durations_are_written_as_clocks_show_them(seconds, text):
    assert duration(seconds) == text


def test_goodput_has_what_took_most_first_and_the_reasons_of_later_attempts():
    seconds = {"kept_steps": 70.0, "down": 20.0, "start": 9.7, "tracking": 0.3}
    begun = [
        AttemptBegun(at_ms=0, why="submitted", step=0),
        AttemptBegun(at_ms=9, why="the driver died", step=40),
        AttemptBegun(at_ms=99, why="hang: worker 1"),
    ]
    goodput = Goodput(share=0.7, wall_s=100.0, seconds=seconds, attempts=begun)
    assert goodput_lines(goodput) == [
        "goodput 70% of 1:40 since the submission (kept steps 70%, down 20%, start 10%)",
        "  attempt 2, from step 40: the driver died",
        "  attempt 3: hang: worker 1",
    ]
