"""Whatever happens to a job at whatever moment, it ends like its twin, by itself or on the same command again."""

import random

import pytest

from disturbances import DISTURBANCES, Disturbance
from object_store import ObjectStore
from rounds import STRATEGIES, Rounds
from running import Server

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore):
    path = tmp_path_factory.mktemp("rounds")
    server = Server(path)
    server.start()
    try:
        yield Rounds(path, server, object_store)
    finally:
        server.kill()


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda one: one.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_disturbed_job_ends_like_its_twin(rounds: Rounds, strategy: str, disturbance: Disturbance) -> None:
    """`make chaos` draws other moments."""
    report = rounds.run(strategy, disturbance, random.Random(f"{strategy} {disturbance.name}"))
    assert report.has_survived, report
