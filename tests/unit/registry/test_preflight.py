"""Tracking URIs that can never work are refused in seconds; a server that is away is a warning."""

import socket
import time

import pytest

from faulty_proxy import FaultyProxy, blackholed, denied, each_first_call_fails
from shoal.errors import ConfigError
from shoal.registry.preflight import check_tracking_uri

REFUSED = {
    "htp://host:5000": "did you mean 'http'",
    "host:5000": "write http://host:5000",
    "127.0.0.1:5000/mlflow": "write http://127.0.0.1:5000/mlflow",
    "runs/mlflow": "write sqlite:///runs/mlflow/mlflow.db",
    "file:///runs": "write sqlite:////runs/mlflow.db",
    "http://": "no host",
    "http://host:port": "a port that is no number",
    "sqlite:////": "it names a folder",
    "sqlite:////dev/null/mlflow.db": "cannot be written",
    "mssql://user@host/runs": "pip install pyodbc",
    "postgresql+nothing://user@host/runs": "it is no address of a database",
}


@pytest.mark.parametrize("uri", REFUSED)
def test_what_can_never_work_is_refused_with_a_remedy(uri):
    with pytest.raises(ConfigError) as caught:
        check_tracking_uri(uri)
    assert str(caught.value).startswith(f"track.tracking_uri='{uri}': ")
    assert REFUSED[uri] in str(caught.value)


def test_a_file_below_a_folder_that_mlflow_makes_is_accepted(tmp_path):
    check_tracking_uri(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_asked(mlflow_server, caplog, monkeypatch):
    with FaultyProxy(mlflow_server.uri) as proxy:
        check_tracking_uri(proxy.uri)
        assert proxy.count() == {"GET /api/2.0/mlflow/experiments/search": 1}
        assert caplog.text == ""
        with pytest.raises(ConfigError, match=r"no MLflow server is there \(404"):
            check_tracking_uri(f"{proxy.uri}/elsewhere")
        proxy.fault = denied
        with pytest.raises(ConfigError, match=r"refuses this user .401.*set MLFLOW_TRACKING_USERNAME"):
            check_tracking_uri(proxy.uri)


def test_a_server_that_fails_some_calls_is_asked_again(mlflow_server, caplog):
    with FaultyProxy(mlflow_server.uri, each_first_call_fails("error")) as proxy:
        check_tracking_uri(proxy.uri)
        assert proxy.count() == {"GET /api/2.0/mlflow/experiments/search": 2}
    assert caplog.text == ""


def test_a_server_that_does_not_answer_is_a_warning_within_seconds(caplog):
    with FaultyProxy("http://127.0.0.1:1", blackholed) as proxy:
        since = time.monotonic()
        check_tracking_uri(proxy.uri)
        assert time.monotonic() - since < 10
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    check_tracking_uri(f"http://127.0.0.1:{port}")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "does not answer (timed out)" in caplog.records[0].message
    assert "Connection refused" in caplog.records[1].message
