"""Of all tests: which share a process; places to run jobs in, one small Ray cluster, a real MLflow server."""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from object_store import ObjectStore
from running import Place, Server, ray_cluster

# Unit tests that share something costly run in one process, and first, as they take the longest together: an MLflow
# server, the imports of ONNX's exporter, and the waits for a store that is away, which take no CPU.
TOGETHER = {
    "the server": (
        "registry/test_publish.py",
        "tracking/test_background.py",
        "tracking/test_sweep_sync.py",
        "tracking/test_sync.py",
        "registry/test_model_card.py",
        "registry/test_preflight.py",
        "runs/test_lifecycle.py",
    ),
    "the exports": ("export/test_folder.py", "export/test_formats.py"),
    "the waits": ("storage/test_parts.py", "storage/test_run_folder.py", "training/test_checkpoint.py"),
}
UNIT = "tests/unit/"
GROUP_OF = {UNIT + file: group for group, files in TOGETHER.items() for file in files}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without garbage collections, and leave what they imported out of later ones.

    Each would look through all modules, which takes 0.3 s.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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


@pytest.fixture(scope="session")
def s3(object_store: ObjectStore) -> str:
    """A bucket of a real S3 server in this process; returns `s3://bucket`."""
    return object_store.uri


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """The server, whose requests are counted and which can be away for a while."""
    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.env.items():
            patch.setenv(name, value)
        yield store
    store.close()
