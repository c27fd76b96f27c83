"""The private interfaces of Ray: each is there and behaves as Shoal needs, and each fallback works without it."""

import inspect
import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from shoal.cluster import ray_private, session
from shoal.errors import ConfigError, Interrupted
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import CLUSTER_FILE


def test_a_signal_that_rays_own_handler_receives_goes_to_the_process_own(monkeypatch):
    """Ray's raises SystemExit wherever its start is."""
    received = []

    def init(*_, **__):
        set_sigterm_handler(lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    from ray._private.utils import set_sigterm_handler

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.raises(Interrupted, match="interrupted while Ray started"):
            session.connect(ScaleConfig(), 0)
        assert received == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_every_variable_is_one_that_ray_reads():
    from ray._private import accelerators
    from ray.train import constants
    from ray.train.v2._internal import constants as train

    known = {
        train.V2_ENABLED_ENV_VAR,
        train.HEALTH_CHECK_INTERVAL_S_ENV_VAR,
        train.ENABLE_PREEMPTION_WATCHER_ENV_VAR,
        train.METRICS_ENABLED_ENV_VAR,
        constants.RAY_CHDIR_TO_TRIAL_DIR,
        accelerators.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR,
    }
    assert set(ray_private.TRAIN_ENV) == known


def test_the_address_of_this_machines_cluster_is_where_ray_writes_it(monkeypatch):
    from ray._common.utils import get_ray_address_file

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert Path(get_ray_address_file(None)) == CLUSTER_FILE


def test_a_cluster_that_starts_too_slowly_is_known_by_rays_words_and_started_once_more(monkeypatch, caplog):
    from ray._private import node

    assert ray_private.START_TIMED_OUT in inspect.getsource(node).replace('"\n', "")
    tries = []

    def init(*_, **__):
        tries.append(1)
        if len(tries) <= slow:
            raise Exception(f"The current node {ray_private.START_TIMED_OUT}.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    slow = 1
    session._start_here()
    assert len(tries) == 2
    assert "trying once more" in caplog.text
    tries, slow = [], 2
    with pytest.raises(ConfigError, match="too busy to start Ray within 30 s"):
        session._start_here()


def test_what_raylets_say_goes_to_the_debug_log(monkeypatch, caplog, capsys):
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_private.silence_raylet()
    with caplog.at_level(logging.DEBUG):
        # As `ray._private.worker` calls it.
        worker.print_to_stdstream({"lines": ["a worker died"], "is_err": True}, ignore_prefix=False)
    assert "a worker died" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_without_rays_printer_there_is_nothing_to_silence(monkeypatch):
    from ray._private import worker

    monkeypatch.delattr(worker, "print_to_stdstream")
    ray_private.silence_raylet()
    assert not hasattr(worker, "print_to_stdstream")


def test_an_actors_id_is_the_one_that_rays_handle_was_made_with():
    from ray._raylet import ActorID, JobID, TaskID

    made = ActorID.of(JobID.from_int(1), TaskID.for_driver_task(JobID.from_int(1)), 7)
    handle = SimpleNamespace(
        _actor_id=ray.actor.ActorHandle._actor_id.fget(SimpleNamespace(_ray_actor_id=made))
    )
    assert ray_private.actor_id(handle) == made.hex()


def test_without_an_id_a_handle_has_an_empty_one():
    assert ray_private.actor_id(SimpleNamespace()) == ""


def test_ray_trains_health_check_errors_are_recognised_and_others_are_not():
    from ray.train.v2._internal import exceptions

    kinds = [exceptions.WorkerHealthCheckFailedError, exceptions.WorkerHealthCheckTimeoutError]
    assert all(ray_private.is_health_check_error(kind.__new__(kind)) for kind in kinds)
    assert not ray_private.is_health_check_error(RuntimeError("WorkerHealthCheckFailedError"))


def test_the_memory_monitors_message_is_recognised():
    text = (
        "Task was killed due to the node running low on memory.\n"
        "Actor(0f1e2d3c4b5a) was selected, actual memory used=1.25GB\n"
    )
    assert any(words in text for words in ray_private.OUT_OF_MEMORY)
    assert ray_private.STOPPED_ACTOR.findall(text) == [("0f1e2d3c4b5a", "1.25")]
    assert ray.exceptions.OutOfMemoryError.__name__ in ray_private.OUT_OF_MEMORY


def trial(**manager):
    return SimpleNamespace(run_metadata=SimpleNamespace(checkpoint_manager=SimpleNamespace(**manager)))


def test_the_exploited_checkpoint_is_where_rays_scheduler_writes_it():
    from ray.tune.schedulers.pbt import PopulationBasedTraining

    assert "_latest_checkpoint_result" in PopulationBasedTraining._exploit.__code__.co_names
    result = SimpleNamespace(checkpoint="of t0003")
    assert ray_private.exploited_checkpoint(trial(_latest_checkpoint_result=result)) == "of t0003"


def test_without_an_exploited_checkpoint_the_error_names_rays_version_and_a_remedy():
    with pytest.raises(ConfigError, match=rf"Ray {ray.__version__}.*tune\.scheduler=asha"):
        ray_private.exploited_checkpoint(trial())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere Ray needs its own process group")
def test_what_ray_starts_can_be_in_a_session_of_its_own():
    from ray._private import services

    def session() -> int:
        started = services.start_ray_process(["sleep", "60"], "a server", fate_share=True).process
        try:
            return os.getsid(started.pid)
        finally:
            started.kill()
            started.wait()

    with ray_private.in_own_session():
        own = session()
    assert own != os.getsid(0)
    assert session() == os.getsid(0)


def test_without_rays_popen_the_session_stays(monkeypatch):
    from ray._private import services

    monkeypatch.delattr(services, "ConsolePopen")
    with ray_private.in_own_session():
        assert not hasattr(services, "ConsolePopen")


def test_an_upload_is_counted_as_ray_counts_it(tmp_path):
    for name, size in {"job.py": 10, "data/rows.csv": 1000, "data/notes.txt": 100}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert ray_private.upload_size(tmp_path)[0] == 1110
    (tmp_path / ".rayignore").write_bytes(b"*.csv\n")
    assert ray_private.upload_size(tmp_path)[0] == 116


def test_without_rays_rules_the_size_of_an_upload_is_not_known(tmp_path, monkeypatch):
    from ray._private.runtime_env import packaging

    monkeypatch.delattr(packaging, "get_excludes_from_ignore_files")
    assert ray_private.upload_size(tmp_path) is None


def test_a_folder_of_too_much_is_not_counted_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_private, "MOST_UPLOADED", 3)
    for number in range(5):
        (tmp_path / str(number)).touch()
    size, most = ray_private.upload_size(tmp_path)
    assert size > most


def test_no_node_is_drained_where_ray_does_not_tell(monkeypatch):
    import ray._private.state

    assert hasattr(ray._private.state.state, "get_draining_nodes")
    monkeypatch.setattr(ray._private.state, "state", SimpleNamespace(get_draining_nodes=lambda: {"ab": 0}))
    assert ray_private.draining_nodes() == {"ab"}
    monkeypatch.setattr(ray._private.state, "state", SimpleNamespace())
    assert ray_private.draining_nodes() == frozenset()


def test_a_job_that_ray_does_not_know_was_submitted_when_its_process_began(monkeypatch):
    """What Ray knows of a real one is asked in test_submit.py."""
    from ray._raylet import GcsClient, InnerGcsClient
    from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient

    assert callable(GcsClient)
    assert hasattr(InnerGcsClient, "internal_kv_get")
    assert "{job_id}" in JobInfoStorageClient.JOB_DATA_KEY
    assert "start_time" in JobInfo.__dataclass_fields__
    assert session.submitted_ms(7) == 7
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    monkeypatch.setenv("RAY_ADDRESS", "not an address")
    assert session.submitted_ms(7) == 7


def test_what_each_node_has_free_is_what_the_cluster_has_where_ray_does_not_tell(monkeypatch):
    import ray._private.state as state

    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"ab": {"CPU": 2.0}, "cd": {}})
    assert ray_private.free_resources() == {"ab": {"CPU": 2.0}, "cd": {}}
    monkeypatch.delattr(state, "available_resources_per_node")
    nodes = [
        {"NodeID": "ab", "Alive": False},
        {"NodeID": "cd", "Alive": True},
        {"NodeID": "ef", "Alive": True},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    assert ray_private.free_resources() == {"cd": {"CPU": 3.0}}


def test_ray_tells_what_each_node_has_free():
    from ray._private import state

    assert callable(state.available_resources_per_node)


def test_places_that_were_not_found_are_known_by_rays_exception():
    from ray.train import ControllerError
    from ray.train.v2._internal import constants
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerGroupStartupTimeoutError,
    )

    assert constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR == ray_private.START_TIMEOUT
    assert ray_private.START_TIMEOUT in constants.ENV_VARS_TO_PROPAGATE  # to the process that waits
    assert ray_private.found_no_room(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert not ray_private.found_no_room(ControllerError(WorkerGroupStartupFailedError("a worker died")))
    assert not ray_private.found_no_room(ValueError("of the user's"))
