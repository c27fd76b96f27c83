"""Which failures of workers are tried again, and which error the user gets; with Ray's own exceptions, no cluster."""

import errno

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
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

from shoal.cluster.worker_failure import (
    PEER_ERRORS,
    as_training_error,
    decide_retry,
    failure_name,
    is_loss,
    load_error,
    storage_failure,
)
from shoal.errors import StorageError
from shoal.runs.config import ScaleConfig
from shoal.storage.records import ErrorRecord
from shoal.storage.run_folder import RunFolder

LOSSES = [
    RayActorError(),
    NodeDiedError("node 3 died"),
    WorkerCrashedError(),
    OutOfMemoryError("the node is out of memory"),
    ObjectLostError("00" * 28, None, ""),
    ControllerError(RuntimeError("the controller died")),
    WorkerHealthCheckTimeoutError("no answer"),
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


def name(error):
    return type(error).__name__


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path))


@pytest.mark.parametrize("error", LOSSES, ids=name)
def test_a_lost_process_or_node_is_tried_again_up_to_the_limit(error):
    assert is_loss(error)
    for raised in (error, group_error(error), group_error(ValueError("peer of it"), error)):
        assert [decide_retry(raised, lost, max_failures=2) for lost in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("error", MISTAKES, ids=name)
def test_an_exception_of_user_code_is_not_tried_again(error):
    assert not is_loss(error)
    assert not decide_retry(error, lost=0, max_failures=3)
    assert not decide_retry(group_error(error, error), lost=0, max_failures=3)


def test_no_failure_is_tried_again_where_none_is_allowed():
    assert not any(decide_retry(error, lost=0, max_failures=0) for error in LOSSES)


def test_a_failure_is_named_by_rank_and_class():
    assert (
        failure_name(group_error(RayActorError(), ValueError("x")))
        == "rank 0: RayActorError, rank 1: ValueError"
    )
    assert failure_name(NodeDiedError("x")) == "NodeDiedError"


def test_the_workers_own_error_is_what_the_user_gets_with_its_exit_code(folder):
    record = ErrorRecord(
        type="DataError", message="row 7 has no label", where="shop.py:12", rank=1, host="node7", exit_code=2
    )
    folder.save(record)
    error = as_training_error(group_error(RuntimeError("buried")), folder, 0, ScaleConfig())
    assert str(error) == "worker 1 on node7: DataError: row 7 has no label (shop.py:12)"
    assert error.exit_code == 2


def test_a_worker_that_only_saw_another_one_go_does_not_hide_the_loss(folder):
    folder.save(ErrorRecord(type="RuntimeError", message="Connection closed by peer [127.0.0.1]"))
    error = as_training_error(group_error(RayActorError()), folder, 3, ScaleConfig(max_failures=3))
    assert str(error).startswith(
        "workers were lost 4 times (rank 0: RayActorError), more than scale.max_failures=3: "
    )
    assert "resumes from the last checkpoint" in str(error)
    assert error.exit_code == 1


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("a bug\nin two lines"),
        RayTaskError("train", "Traceback", ValueError("a bug\nin two lines")),
    ],
)
def test_without_a_record_the_user_gets_the_error_that_ray_carried(folder, failure):
    error = as_training_error(group_error(failure, KeyError("later")), folder, 0, ScaleConfig())
    assert str(error) == "rank 0: ValueError: a bug in two lines"
    assert str(as_training_error(KeyError("x"), folder, 0, ScaleConfig())) == "KeyError: 'x'"


@pytest.mark.parametrize("damage", [b"", b'{"type": "Val', b"[]"])
def test_a_damaged_record_is_reported_and_hides_no_failure(folder, caplog, damage):
    folder.write(ErrorRecord.file, damage)
    assert load_error(folder) is None
    error = as_training_error(group_error(ValueError("a bug")), folder, 0, ScaleConfig())
    assert "rank 0: ValueError" in str(error)
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
def test_storage_that_failed_is_recognised_even_where_the_worker_could_leave_nothing(folder, error):
    """Its peers only see it go, which alone would be worth another attempt."""
    failure = storage_failure(error, folder)
    assert isinstance(failure, StorageError)
    assert failure.exit_code == 2
    assert "No space left on device" in str(failure)
    assert "free some space there" in str(failure)


def test_the_workers_own_record_of_storage_that_failed_names_worker_and_host(folder):
    folder.save(ErrorRecord.from_exception(StorageError(FULL_DISK), rank=1))
    failure = storage_failure(group_error(RuntimeError("buried")), folder)
    assert str(failure).startswith(FULL_DISK)
    assert "(worker 1 on " in str(failure)


@pytest.mark.parametrize("error", [*LOSSES, *MISTAKES], ids=name)
def test_storage_is_blamed_for_nothing_else(folder, error):
    assert storage_failure(group_error(error), folder) is None
