"""Fixtures of all tests: places to run jobs in, one small Ray cluster for the session, a real MLflow server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from running import Place, Server, ray_cluster


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A fresh working directory; jobs start a Ray cluster of their own when they need one."""
    return Place(tmp_path, {})


@pytest.fixture
def shared(tmp_path: Path, cluster: dict[str, str]) -> Place:
    """A fresh working directory; jobs join the session's cluster."""
    return Place(tmp_path, {"RAY_ADDRESS": cluster["address"]})


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """One small Ray cluster for the session."""
    with ray_cluster() as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    try:
        yield running
    finally:
        running.kill()
