"""The tracking server, room for the workers and the upload: each fault is found, with its remedy."""

import pytest

from shoal.ops.cluster_checks import check_failed_hosts, check_room, check_store, check_upload
from shoal.ops.node_checks import MIB
from shoal.runs.config import ScaleConfig
from shoal.storage.records import Finding, HostFailure
from shoal.tracking.store_probe import StoreProbe, probe_store

URI = "http://mlflow.example:5000"


@pytest.mark.parametrize(
    ("probe", "level", "words"),
    [
        (StoreProbe(URI, version="3.17.2"), "ok", "mlflow 3.17.2"),
        (StoreProbe(URI), "ok", "writable"),
        (StoreProbe(URI, error="it refuses this user", remedy="set a password"), "fatal", "refuses"),
        (StoreProbe(URI, version="3.10.0"), "fatal", "mlflow 3.10.0 there, 3.17.2 here"),
        (StoreProbe(URI, seconds_per_call=4.0), "warning", "4.00 s a call"),
    ],
)
def test_a_tracking_server(probe, level, words):
    (finding,) = check_store(probe, "3.17.2")
    assert (finding.level, finding.where) == (level, URI)
    assert words in finding.value
    assert bool(finding.remedy) == (level != "ok")


def test_a_probe_run_goes_into_a_real_store_and_is_deleted(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    probe = probe_store(uri, "shoal", (tmp_path / "mlartifacts").as_uri())
    assert probe.error is None
    assert probe.seconds_per_call > 0
    client = MlflowClient(uri, uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "shoal"]
    assert client.search_runs([experiment.experiment_id]) == []


def test_a_store_that_takes_nothing_is_an_error_in_words(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    probe = probe_store(f"sqlite:///{tmp_path}/mlflow.db", "shoal", None)
    assert "it names a folder" in str(probe.error)
    assert probe.remedy


def test_artifacts_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "file").touch()
    probe = probe_store(f"sqlite:///{tmp_path}/mlflow.db", "shoal", (tmp_path / "file" / "inner").as_uri())
    assert "Not a directory" in str(probe.error)


@pytest.mark.parametrize(("workers", "level"), [(2, "ok"), (5, "fatal"), ([2, 9], "ok")])
def test_room_for_the_workers(workers, level):
    (finding,) = check_room(ScaleConfig(num_workers=workers), cpus=4, gpus=0, nodes=2)
    assert finding.level == level
    assert ("needs 5 CPUs and the cluster has 4" in finding.value) == (level == "fatal")


@pytest.mark.parametrize(("size", "level"), [(1, "ok"), (200, "warning"), (600, "fatal")])
def test_an_upload(size, level):
    (finding,) = check_upload("here", size * MIB, 500 * MIB)
    assert finding.level == level
    assert (".rayignore" in finding.remedy) == (level != "ok")


@pytest.mark.parametrize(
    ("where", "level", "cleared", "words"),
    [
        ("w2", "ok", ["w1"], "let back"),
        ("w1-1", "warning", [], "repair"),
        ("all", "warning", [], "repair"),
    ],
)
def test_a_host_that_failed_runs_is_let_back_once_it_passes(where, level, cleared, words):
    recent = {
        "w1": [
            HostFailure(host="w1", run=f"shoal/r{n}", kind="hang", message="", at_ms=n) for n in (3, 2, 1)
        ],
        "w2": [HostFailure(host="w2", run="shoal/r1", kind="hang", message="", at_ms=1)],
    }
    others = [Finding(check="disk", level="fatal", where=where, value="full")]
    others += [Finding(check="disk", level="warning", where="w1-1", value="nearly full")]
    [finding], back = check_failed_hosts(recent, {"w1-1": "w1", "w1-2": "w1", "w2": "w2"}, others)
    assert (finding.where, finding.level, back) == ("w1", level, cleared)
    assert finding.value == "failed 3 runs in a week, the last of them shoal/r3 (hang)"
    assert words in finding.remedy
    [away], back = check_failed_hosts(recent, {"w2": "w2"}, [])
    assert (away.level, back) == ("warning", [])
    assert check_failed_hosts({}, {"w1": "w1"}, others)[0][0].level == "ok"
