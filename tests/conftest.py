"""Of all tests: which share a process; places to run jobs in, one small Ray cluster, a real MLflow server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running import Place, Server, ray_cluster

# Unit tests that share something costly run in one process, and first, as they take the longest together: an MLflow
# server, and the imports of what trains in several processes.
TOGETHER = {
    "the server": (
        "tracking/test_background.py",
        "tracking/test_sweep_sync.py",
        "tracking/test_sync.py",
        "registry/test_preflight.py",
        "runs/test_lifecycle.py",
    ),
    "the imports": ("distributed/test_parallelism.py", "distributed/test_process_group.py"),
}
UNIT = "tests/unit/"
GROUP_OF = {UNIT + file: group for group, files in TOGETHER.items() for file in files}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = list(TOGETHER)

    def place_of(item: pytest.Item) -> tuple[bool, int]:
        group = GROUP_OF.get(item.nodeid.split("::")[0])
        is_unit = item.nodeid.startswith(UNIT)
        return is_unit, groups.index(group) if group else len(groups)

    items.sort(key=place_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class TogetherScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return GROUP_OF.get(file, file)

    return TogetherScheduling(config, log)


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
