"""Where runs and their records are kept."""

from pathlib import Path

import pytest

from shoal.runs.locations import artifact_location, resolve_tracking_uri
from shoal.tracking.config import TrackConfig


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SHOAL_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_the_path_of_a_store_is_absolute_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    def resolved(uri: str | None) -> str:
        return resolve_tracking_uri(TrackConfig(tracking_uri=uri))

    assert resolved(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolved("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert resolved("sqlite:////abs/x.db") == "sqlite:////abs/x.db"
    assert resolved("sqlite:///~/x.db") == f"sqlite:///{tmp_path}/home/x.db"
    assert artifact_location(resolved("sqlite:///~/x.db")) == f"file://{tmp_path}/home/mlartifacts"
    assert resolved("http://host:5000") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/y.db")
    assert resolved(None) == f"sqlite:///{tmp_path}/home/y.db"
