"""What Ray's exceptions and workers' own records mean, and which error the user gets; no cluster."""

import errno
from dataclasses import replace

import pytest
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from shoal.cluster.worker_failure import (
    add_lost_peers,
    error_of,
    faults_of_hang,
    find_faults,
    group_stacks,
    load_error,
)
from shoal.errors import StorageError, WeightsDifferError
from shoal.runs.failure_policy import PEER_ERRORS, Fault, account_of, decide
from shoal.runs.hang import Hang, WorkerStatus
from shoal.storage.records import ErrorRecord, FailedWorker
from shoal.storage.run_folder import RunFolder
from shoal.training.clock import Clock

LOSSES = [
    RayActorError(),
    NodeDiedError("node 3 died"),
    WorkerCrashedError(),
    OutOfMemoryError("the node is out of memory"),
    ObjectLostError("00" * 28, None, ""),
    ControllerError(RuntimeError("the controller died")),
    WorkerHealthCheckTimeoutError("no answer"),
    WorkerHealthCheckFailedError("no answer", RayActorError()),
    RuntimeError("Timed out waiting 600000ms for recv operation to complete"),
    *(RuntimeError(f"allreduce: {word} [127.0.0.1]") for word in PEER_ERRORS),
]
MISTAKES = [
    ValueError("a bug"),
    KeyError("column"),
    MemoryError(),
    RayTaskError("train", "Traceback", ValueError("a bug")),
]


def group_error(*failures):
    """What Ray Train raises: each failed worker's exception by its rank."""
    return WorkerGroupError("", dict(enumerate(failures)))


def status(rank, host="w1", step=7):
    return WorkerStatus(rank, host, "node", 1, "", "step", step, 0.1, 0.1)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path))


@pytest.fixture
def decided(folder):
    """What follows from an error of Ray Train: `decided(error, max_failures=3)`."""

    def decided(error, max_failures=3, statuses=None, gone_hosts=()):
        faults = find_faults(error, folder, statuses or {}, gone_hosts)
        return decide(faults, None, None, max_failures)

    return decided


def name(error):
    return type(error).__name__


@pytest.mark.parametrize("error", LOSSES, ids=name)
def test_a_lost_process_or_node_is_tried_again(decided, error):
    for raised in (error, group_error(error)):
        assert decided(raised).retries
        assert not decided(raised, max_failures=0).retries


@pytest.mark.parametrize("error", MISTAKES, ids=name)
def test_an_exception_of_user_code_is_not_tried_again(decided, error):
    assert not decided(error).retries
    assert not decided(group_error(error, error)).retries
    peer = RuntimeError(PEER_ERRORS[0])
    assert not decided(group_error(peer, error)).retries, "its peers only see it go"


def test_what_a_survivor_raises_is_a_consequence_of_a_death(decided):
    assert decided(group_error(ValueError("a consequence"), RayActorError())).record.root.rank == 1


def test_a_preempted_node_is_no_failure(decided):
    error = WorkerHealthCheckFailedError("no answer", RayActorError("a", "drained", preempted=True))
    decision = decided(group_error(error), max_failures=0)
    assert decision.retries
    assert decision.record.kind == "preemption"


def test_a_process_that_ended_by_itself_is_named_with_its_exit_code(decided):
    text = "The actor died. Worker exit type: USER_ERROR Worker exit detail: it exits with exit code 3."
    record = decided(group_error(RayActorError("00" * 16, text))).record
    assert "worker 0 was lost (its process is gone, with exit code 3)" in record.message


def test_a_loss_is_named_by_worker_host_and_step(decided):
    statuses = {0: status(0, "head"), 1: status(1)}
    error = group_error(RuntimeError(PEER_ERRORS[0]), RayActorError())
    record = decided(error, statuses=statuses, gone_hosts={"w1"}).record
    assert record.message.startswith("lost worker: worker 1 on w1 was lost at step 7 (its host is gone); ")
    assert [one.host for one in record.cascade] == ["head"]


def test_a_worker_that_only_its_peers_saw_go_is_named(decided):
    closed = RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.2]:33445.\n\nAt:\n  x.py(2)")
    statuses = {0: status(0, "head"), 1: status(1, "w1"), 2: status(2, "w2")}
    statuses[2] = replace(statuses[2], node="other")
    faults = find_faults(group_error(closed), RunFolder("/none"), statuses, ())
    by_address = add_lost_peers(faults, statuses, set(), {"node": "10.0.0.2", "other": "10.0.0.3"})
    gone = add_lost_peers(faults, statuses, {"other"}, {})
    in_memory = replace(
        faults[0], worker=faults[0].worker.model_copy(update={"message": "worker 2 (pid 1) is gone"})
    )
    for found, who in [
        (by_address, "worker 1 on w1 was lost at step 7 (its process is gone)"),
        (gone, "worker 2 on w2 was lost at step 7 (its host is gone)"),
        (add_lost_peers([in_memory], statuses, set(), {}), "worker 2 on w2 was lost at step 7 (its process"),
        (faults, "worker 0 on head lost its connection to another one at step 7 ([pair.cc:553] Connection"),
    ]:
        message = decide(found, None, None, 3).record.message
        assert message.startswith(f"lost worker: {who}")
        assert "\n" not in message
    assert add_lost_peers([Fault(FailedWorker(), "raised")], statuses, set(), {})[1:] == []


def test_the_workers_own_error_is_what_the_user_gets_with_its_exit_code(folder, decided):
    folder.save(
        ErrorRecord(
            type="DataError",
            message="row 7 has no label",
            where="shop.py:12",
            rank=1,
            host="node7",
            exit_code=2,
            symptom="bad data",
        )
    )
    error = error_of(decided(group_error(RuntimeError("buried"), RuntimeError("buried"))), folder)
    assert str(error).startswith("data: worker 1 on node7: DataError: row 7 has no label (shop.py:12); ")
    assert error.exit_code == 2


def test_a_worker_that_only_saw_another_one_go_does_not_hide_the_loss(folder, decided):
    peer = ErrorRecord(
        type="RuntimeError", message="Connection closed by peer [127.0.0.1]", symptom="lost its peer"
    )
    folder.save(peer)
    for raised in (group_error(RayActorError()), group_error(RuntimeError(peer.message), RayActorError())):
        error = error_of(decided(raised, max_failures=0), folder)
        assert "was lost (its process is gone)" in str(error)
        assert "1 failures without progress, more than scale.max_failures=0" in str(error)
        assert "resumes from the last checkpoint" in str(error)
        assert error.exit_code == 1


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("a bug\nin two lines"),
        RayTaskError("train", "Traceback", ValueError("a bug\nin two lines")),
    ],
)
def test_without_a_record_the_user_gets_the_error_that_ray_carried(folder, decided, failure):
    error = error_of(decided(group_error(failure, KeyError("later"))), folder)
    assert str(error).startswith("user error: worker 0: ValueError: a bug in two lines; ")
    assert "a worker: KeyError: 'x'" in str(error_of(decided(KeyError("x")), folder))


@pytest.mark.parametrize("damage", [b"", b'{"type": "Val', b"[]"])
def test_a_damaged_record_is_reported_and_hides_no_failure(folder, decided, caplog, damage):
    folder.write(ErrorRecord.file, damage)
    assert load_error(folder) is None
    assert "worker 0: ValueError" in str(error_of(decided(group_error(ValueError("a bug"))), folder))
    assert "error.json' is damaged" in caplog.text


FULL_DISK = "'/runs/a/journal/0001.jsonl' cannot be written (No space left on device): free some space there"


@pytest.mark.parametrize(
    "error",
    [
        group_error(StorageError(FULL_DISK)),
        group_error(StorageError(FULL_DISK), RuntimeError("Connection closed by peer")),
        group_error(
            RuntimeError("Connection closed by peer"), OSError(errno.ENOSPC, "No space left on device")
        ),
        group_error(RayTaskError("train", "Traceback", OSError(errno.ENOSPC, "No space left on device"))),
        ControllerError(OSError("[Errno 28] No space left on device: '/runs/a/.ray'")),
    ],
    ids=["alone", "beside its peer", "plain", "wrapped", "of Ray itself"],
)
def test_storage_that_failed_is_recognised_even_where_the_worker_could_leave_nothing(folder, decided, error):
    """Its peers only see it go, which alone would be worth another attempt."""
    failure = error_of(decided(error), folder)
    assert isinstance(failure, StorageError)
    assert failure.exit_code == 2
    assert "No space left on device" in str(failure)
    assert "free some space there" in str(failure)


def test_the_workers_own_record_of_storage_that_failed_names_worker_and_host(folder, decided):
    record = ErrorRecord.from_exception(StorageError(FULL_DISK), rank=1)
    folder.save(record.replace(symptom="storage failed"))
    failure = error_of(decided(group_error(RuntimeError("buried"))), folder)
    assert str(failure).startswith(FULL_DISK)
    assert "(worker 1 on " in str(failure)


def test_a_hang_names_the_worker_and_why_it_does_not_answer():
    workers = (status(0), status(1))
    faults = faults_of_hang(Hang(workers[1], workers), {1: "it is stopped (SIGSTOP)"})
    record = decide(faults, None, 5, max_failures=3).record
    assert record.kind == "hang"
    assert record.root.rank == 1
    assert record.message.startswith("hang: worker 1 on w1 has been in an optimizer step at step 7 for 0 s")
    assert "it is stopped (SIGSTOP); resuming from the checkpoint of step 5, failure 1 of 3" in record.message
    unknown = decide(faults_of_hang(Hang(None, workers), {}), None, 5, max_failures=0).record
    assert "all 2 workers have been in" in unknown.message
    assert unknown.root == FailedWorker(step=7, type="Hang", message=unknown.root.message)


def test_equal_stacks_are_one_and_the_odd_one_comes_first():
    groups = group_stacks({0: "waits", 1: "waits", 2: "loops", 3: "", 4: "waits"})
    assert [(group.ranks, group.stack) for group in groups] == [([2], "loops"), ([0, 1, 4], "waits")]


def test_every_symptom_of_a_record_is_known(folder):
    folder.save(ErrorRecord(type="ValueError", message="of an earlier version"))
    [fault] = find_faults(group_error(RuntimeError("buried")), folder, {}, ())
    assert isinstance(fault, Fault)
    assert fault.symptom == "raised"


@pytest.mark.parametrize(("rank", "cascade"), [(2, [0, 1]), (None, [0, 1, 2])])
def test_of_workers_whose_weights_differ_the_odd_one_is_the_root_whoever_says_it(tmp_path, rank, cascade):
    folder = RunFolder(str(tmp_path))
    error = WeightsDifferError("weights at step 7 differ", rank, rank and "w2")
    folder.save(account_of(error, Clock(), rank=1))
    statuses = {number: status(number, f"w{number}") for number in range(3)}
    faults = find_faults(group_error(error, error, error), folder, statuses, [])
    decision = decide(faults, None, None, max_failures=1)
    record = decision.record
    assert decision.retries
    assert (record.kind, record.root.rank, record.root.host) == ("bad host", rank, rank and "w2")
    assert [worker.rank for worker in record.cascade] == cascade
