"""What follows from the ends of workers: a table of what was observed, the class, and whether they start again."""

import errno

import pytest

from shoal.data.sampler import Lanes
from shoal.errors import DataError, DivergedError, UserError
from shoal.runs.failure_policy import (
    KINDS,
    ORDER,
    PEER_ERRORS,
    RETRIED,
    Fault,
    account_of,
    after_replay,
    decide,
    fault_of,
    symptom_of,
)
from shoal.storage.records import FailedWorker, FailureRecord
from shoal.training.clock import Clock

TIMED_OUT = (
    "[../third_party/gloo/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation to complete"
)


def fault(symptom, rank=0, step=7, **more):
    worker = {"host": f"w{rank}", "type": "ValueError", "message": "a bug", "where": "shop.py:12"} | more
    return Fault(FailedWorker(rank=rank, step=step, **worker), symptom)


def earlier(failures=1, checkpoint_step=None, root=None):
    return FailureRecord(
        kind="lost worker",
        is_retried=True,
        message="",
        failures=failures,
        checkpoint_step=checkpoint_step,
        root=root,
    )


def wrapped(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "section", "symptom"),
    [
        (ValueError("a bug"), "step", "raised"),
        (ValueError("a bug"), "data", "raised"),
        (KeyError("column"), "", "raised"),
        (OSError(errno.ENOSPC, "No space left on device"), "checkpoint", "storage failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "data", "storage failed"),
        (DataError("row 7 has no label"), "data", "bad data"),
        (wrapped(UserError("item 7 raised"), ConnectionResetError("reset")), "data", "source away"),
        (wrapped(UserError("item 7 raised"), TimeoutError("no answer")), "epoch start", "source away"),
        (wrapped(UserError("item 7 raised"), TimeoutError("no answer")), "on_epoch_end", "raised"),
        (wrapped(UserError("item 7 raised"), FileNotFoundError("7.png")), "data", "raised"),
        (wrapped(UserError("item 7 raised"), KeyError("7")), "data", "raised"),
        (RuntimeError(TIMED_OUT), "step", "timed out"),
        (TimeoutError("a worker did not join the gradient sum within 600 s"), "step", "timed out"),
        *((RuntimeError(f"allreduce: {word} [127.0.0.1]"), "step", "lost its peer") for word in PEER_ERRORS),
    ],
)
def test_an_exception_of_a_worker_means(error, section, symptom):
    assert symptom_of(error, section) == symptom


def diverged(step=500, losses=("3ff0", "7ff8"), **more):
    return fault(
        "diverged", step=step, losses=list(losses), message=f"train/loss is nan at step {step}: x", **more
    )


def test_a_loss_that_is_not_finite_is_what_the_worker_with_those_samples_says():
    error = DivergedError(
        "train/loss is nan at step 9", 9, rank=1, host="w1", samples=[3, 5], losses=["7ff8"]
    )
    record = account_of(error, Clock(step=12), rank=0)
    assert (record.rank, record.host, record.step, record.samples) == (1, "w1", 9, [3, 5])
    assert fault_of(record).symptom == "diverged"


def test_its_steps_are_made_again_once():
    first = decide([diverged()], None, 480, max_failures=3)
    assert first.retries
    assert first.record.replayed == first.record.root
    assert first.record.message.endswith("resuming from the checkpoint of step 480, failure 1 of 3")


@pytest.mark.parametrize("options", [{"max_failures": 0}, {"max_failures": 3, "replays": False}])
def test_its_steps_are_not_made_again_where_nothing_is_tried_again_or_in_a_trial(options):
    decision = decide([diverged()], None, 480, **options)
    assert not decision.retries
    assert decision.record.message.endswith("not tried again: its steps are not made again")
    assert decision.record.replayed is None


@pytest.mark.parametrize(
    ("again", "says"),
    [
        ({}, "gave the same bits at step 500, so it is the data or the model"),
        ({"losses": ["7ff8"]}, "gave the same bits at step 500, so it is the data or the model"),
        (
            {"losses": ["3ff1", "7ff8"]},
            "gave no finite loss either at step 500, so it is the data or the model",
        ),
        ({"step": 490}, "it was at step 500 before"),
        ({"step": 510}, "it was at step 500 before"),
    ],
)
def test_a_second_loss_that_is_not_finite_ends_the_run_and_says_what_it_is(again, says):
    record = decide([diverged()], None, 480, max_failures=3).record
    decision = decide([diverged(**again)], record, 481, max_failures=3)
    assert not decision.retries
    assert says in decision.record.message


def test_a_worker_that_is_lost_meanwhile_does_not_hide_that_it_is_a_replay():
    record = decide([diverged()], None, 480, max_failures=3).record
    record = decide([fault("died", step=490)], record, 481, max_failures=3).record
    assert record.is_retried
    assert not decide([diverged()], record, 481, max_failures=3).retries


def test_a_loss_that_is_finite_when_its_step_is_made_again_is_the_hosts():
    first = decide([diverged(rank=1)], None, 480, max_failures=3).record
    record = after_replay(first)
    assert (record.kind, record.is_retried, record.replayed) == ("bad host", True, None)
    assert record.message.startswith(
        "bad host: worker 1 on w1: train/loss is nan at step 500, and finite when"
    )
    assert (record.root.rank, record.root.host) == (1, "w1")
    assert decide([diverged(step=900)], record, 880, max_failures=3).retries  # another one


@pytest.mark.parametrize(
    ("symptom", "is_charged"),
    [
        ("died", True),
        ("hung", True),
        ("weights differ", True),
        *((symptom, False) for symptom in ORDER if symptom not in ("died", "hung", "weights differ")),
    ],
)
def test_what_is_counted_against_a_host(symptom, is_charged):
    """Not what it was asked for, nor what its peers or the user's code did."""
    assert decide([fault(symptom, 1)], None, None, max_failures=3).host == ("w1" if is_charged else None)


def test_an_exception_in_a_step_names_its_step_and_samples():
    lanes = Lanes(rows=10, batch_size=4, seed=0, worker=1, num_workers=2)
    clock = Clock()
    clock.enter_step(2, 4)
    record = account_of(ValueError("a bug"), clock, rank=1, lanes=lanes)
    assert record.samples == lanes.rows_of(2).tolist()
    [only] = record.samples
    message = decide([fault_of(record)], None, None, max_failures=3).record.message
    assert f"at step 2, with training row {only}; not tried again" in message
    clock.enter("evaluate")
    assert account_of(ValueError("a bug"), clock, rank=1, lanes=lanes).samples == []


def test_memory_that_is_used_up_is_no_bug():
    assert symptom_of(MemoryError(), "step") == "out of memory"


@pytest.mark.parametrize(
    ("symptoms", "kind", "retries"),
    [
        (["raised"], "user error", False),
        (["bad data"], "data", False),
        (["source away"], "data", True),
        (["storage failed"], "storage", False),
        (["out of memory"], "out of memory", False),
        (["killed for memory"], "out of memory", True),
        (["diverged", "lost its peer"], "diverged", True),
        (["died"], "lost worker", True),
        (["lost its peer", "lost its peer"], "lost worker", True),
        (["hung", "lost its peer"], "hang", True),
        (["timed out", "timed out"], "hang", True),
        (["preempted"], "preemption", True),
        (["lost its peer", "raised"], "user error", False),
        (["raised", "died"], "lost worker", True),
        (["died", "storage failed"], "storage", False),
        (["died", "preempted"], "preemption", True),
        (["timed out", "raised"], "user error", False),
        (["timed out", "died"], "lost worker", True),
    ],
)
def test_the_strongest_evidence_gives_the_class(symptoms, kind, retries):
    faults = [fault(symptom, rank) for rank, symptom in enumerate(symptoms)]
    decision = decide(faults, None, None, max_failures=3)
    record = decision.record
    assert (record.kind, decision.retries, record.is_retried) == (kind, retries, retries)
    assert record.message.startswith(f"{kind}: ")
    root = min(faults, key=lambda one: ORDER.index(one.symptom))
    assert record.root == root.worker
    assert len(record.cascade) == len(faults) - 1
    assert set(KINDS) == set(ORDER)


def test_a_newer_checkpoint_before_the_place_of_the_failure_is_no_progress():
    """A resumed attempt writes its first checkpoint at once, and then hangs where the one before did."""
    record = None
    for step in (100, 101, 102):
        decision = decide([fault("hung", step=500)], record, step, max_failures=2)
        record = decision.record
    assert (record.failures, decision.retries) == (3, False)
    assert decide([fault("hung", step=900)], record, 501, max_failures=2).record.failures == 1


def test_a_dead_worker_came_as_far_as_the_checkpoint():
    """It tells its step only now and then; an exception's step is its own."""
    record = decide([fault("died", step=196)], None, 200, max_failures=3).record
    assert "was lost at step 200" in record.message
    assert (record.step, record.root.step) == (200, 200)
    assert decide([fault("died", step=204)], None, 200, max_failures=3).record.step == 204
    assert decide([fault("died", step=None)], None, 200, max_failures=3).record.step is None
    assert decide([fault("raised", step=196)], None, 200, max_failures=3).record.step == 196


def test_the_budget_counts_failures_without_progress():
    counted, record = [], None
    for step in (None, None, 100, 100, 100, 200, 200, 200, 200):
        decision = decide([fault("died")], record, step, max_failures=2)
        record = decision.record
        counted.append((record.failures, decision.retries))
    assert counted == [
        (1, True),
        (2, True),
        (1, True),
        (2, True),
        (3, False),
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]
    assert "4 failures without progress, more than scale.max_failures=2" in record.message
    assert "the same command resumes" in record.message


def test_a_preemption_uses_nothing_up():
    record = earlier(failures=3, checkpoint_step=100)
    decision = decide([fault("preempted")], record, 100, max_failures=3)
    assert decision.retries
    assert decision.record.failures == 3
    assert decision.record.message.endswith("resuming from the checkpoint of step 100, not counted")
    assert not decide([fault("died")], decision.record, 100, max_failures=3).retries


@pytest.mark.parametrize("symptom", RETRIED)
def test_nothing_that_counts_is_tried_again_where_none_is_allowed(symptom):
    assert decide([fault(symptom)], None, None, max_failures=0).retries == (symptom == "preempted")


@pytest.mark.parametrize(
    ("changes", "retries"), [({}, False), ({"step": 8}, True), ({"message": "x"}, True), ({"rank": 1}, True)]
)
def test_the_same_exception_at_the_same_step_twice_ends_the_run(changes, retries):
    first = fault("source away", type="TimeoutError")
    again = fault("source away", **({"type": "TimeoutError"} | changes))
    record = decide([first], None, 5, max_failures=3).record
    assert record.is_retried
    decision = decide([again], record, 6, max_failures=3)
    assert decision.retries == retries
    if not retries:
        assert "not tried again: the same at step 7 on worker 0 as before" in decision.record.message


def test_the_line_says_who_where_and_what_follows():
    died = fault("died", 1, step=207, message="its host is gone")
    assert decide([died], None, 200, 3).record.message == (
        "lost worker: worker 1 on w1 was lost at step 207 (its host is gone); "
        "resuming from the checkpoint of step 200, failure 1 of 3"
    )
    assert decide([fault("raised")], None, 200, 3).record.message == (
        "user error: worker 0 on w0: ValueError: a bug (shop.py:12); not tried again, since it would end alike"
    )
