"""What a machine holds is checked before Ray starts, with the arithmetic in the message."""

import os
import socket
import threading

import pytest

from shoal.errors import ConfigError
from shoal.runs import machine
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import check_cluster, check_local, check_resources, cluster_address, submission_id


@pytest.mark.parametrize(
    ("scale", "cpus", "gpus"),
    [
        ({"num_workers": 4}, 4, 0),
        ({"num_workers": 4, "cpus_per_worker": 0.5}, 2, 0),
        ({"num_workers": 3, "cpus_per_worker": 0.1}, 0.3, 0),  # 0.30000000000000004 needed
        ({"num_workers": 2, "use_gpu": True}, 2, 2),
        ({"num_workers": 2, "use_gpu": "auto"}, 2, 0),
        ({"num_workers": 0}, 0, 0),
    ],
)
def test_what_fits_is_accepted(scale, cpus, gpus):
    check_resources(ScaleConfig(**scale), cpus, gpus, "this machine")


@pytest.mark.parametrize(
    ("scale", "cpus", "message"),
    [
        (
            {"num_workers": 8},
            4,
            "scale.num_workers=8 x scale.cpus_per_worker=1 needs 8 CPUs and this machine has 4: "
            "set scale.cpus_per_worker=0.5 or lower scale.num_workers",
        ),
        (
            {"num_workers": 2, "use_gpu": True},
            4,
            "scale.num_workers=2 with scale.use_gpu=true needs 2 GPUs and this machine has 1: "
            "lower scale.num_workers, or set scale.use_gpu=auto",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic_and_a_remedy(scale, cpus, message):
    with pytest.raises(ConfigError) as caught:
        check_resources(ScaleConfig(**scale), cpus, 1, "this machine")
    assert str(caught.value) == message


def test_the_remedy_fits():
    with pytest.raises(ConfigError, match=r"cpus_per_worker=0\.43 or") as caught:
        check_resources(ScaleConfig(num_workers=7), 3, 0, "the cluster")
    share = float(str(caught.value).partition("set scale.cpus_per_worker=")[2].partition(" ")[0])
    check_resources(ScaleConfig(num_workers=7, cpus_per_worker=round(share - 0.005, 2)), 3, 0, "the cluster")


def test_cpus_that_are_kept_for_reading_are_said():
    with pytest.raises(ConfigError, match=r"the cluster has 3 \(1 are kept for Ray Data, which streams\)"):
        check_resources(ScaleConfig(num_workers=4), 3, 0, "the cluster", spare=1)


def test_this_machine_is_checked_only_where_it_is_the_cluster():
    scale = ScaleConfig(num_workers=10 * (os.cpu_count() or 1))
    check_local(scale, cluster_address="10.0.0.1:6379")
    check_local(scale.model_copy(update={"num_workers": 0}), cluster_address=None)
    with pytest.raises(ConfigError, match="this machine has"):
        check_local(scale, cluster_address=None)


@pytest.fixture
def cluster_file(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "CLUSTER_FILE", tmp_path / "ray_current_cluster")
    return tmp_path / "ray_current_cluster"


def test_a_cluster_of_this_machine_counts_while_it_answers(cluster_file):
    assert cluster_address() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        cluster_file.write_text(f"{address}\n")
        assert cluster_address() == address
    assert cluster_address() is None


@pytest.mark.parametrize("text", ["", "nonsense", "127.0.0.1:port"])
def test_a_file_that_names_no_cluster_is_ignored(cluster_file, text):
    cluster_file.write_text(text)
    assert cluster_address() is None


def test_a_named_cluster_comes_first(cluster_file, monkeypatch):
    cluster_file.write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address() == "10.0.0.1:6379"


def test_the_address_of_a_cluster_that_is_gone_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for named in (address, f"ray://{address}"):
        with pytest.raises(
            ConfigError, match=f"the Ray cluster at '{named}' cannot be used .*: start it, or unset RAY_"
        ):
            check_cluster(named)


def test_a_port_that_takes_connections_and_says_nothing_is_refused_within_seconds(monkeypatch):
    monkeypatch.setattr(machine, "PROBE_S", 0.2)
    silent = pytest.raises(ConfigError, match=r"no answer within 0\.2 s")
    with socket.create_server(("127.0.0.1", 0)) as server, silent:
        check_cluster(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_server_of_another_kind_is_no_cluster():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n"))
        thread.start()
        with pytest.raises(ConfigError, match="it answers, and not as Ray does"):
            check_cluster(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("address", ["here:port", "127.0.0.1:99999999"])
def test_a_port_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="cannot be used"):
        check_cluster(address)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (None, None),
        ('{"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}', "raysubmit_1"),
        ('{"runtime_env": {}}', None),
        ("not json", None),
        ("[]", None),
    ],
)
def test_the_id_of_a_submitted_job_is_that_of_ray(monkeypatch, config, found):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if config is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
    assert submission_id() == found


def test_an_elastic_run_needs_room_for_its_fewest_workers():
    check_resources(ScaleConfig(num_workers=[2, 64]), 2, 0, "the cluster")
    says = r"scale.num_workers=\[3, 64\] \(at least 3\) x scale.cpus_per_worker=1 needs 3 CPUs and the cluster has 2"
    with pytest.raises(ConfigError, match=says):
        check_resources(ScaleConfig(num_workers=[3, 64]), 2, 0, "the cluster")
    with pytest.raises(ConfigError, match=r"\(at least 3\) with scale.use_gpu=true needs 3 GPUs"):
        check_resources(ScaleConfig(num_workers=[3, 64], use_gpu=True), 9, 2, "the cluster")
