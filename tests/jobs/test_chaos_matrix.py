"""Whatever happens to a job at whatever moment, it ends like its twin, by itself or on the same command again."""

import contextlib
import random
from collections.abc import Iterator

import pytest

from chaos import open_sites
from disturbances import DISTURBANCES, Disturbance
from host_site import HOST_DISTURBANCES, HostSite
from rounds import STRATEGIES, Rounds

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rounds() -> Iterator[Rounds]:
    pytest.importorskip("moto")
    with contextlib.ExitStack() as stack:
        yield Rounds(open_sites(stack))


@pytest.mark.parametrize("disturbance", DISTURBANCES + HOST_DISTURBANCES, ids=lambda one: one.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_disturbed_job_ends_like_its_twin(rounds: Rounds, strategy: str, disturbance: Disturbance) -> None:
    """`make chaos` draws other moments."""
    if disturbance in HOST_DISTURBANCES and (why := HostSite.reason()):
        pytest.skip(why)
    report = rounds.run(strategy, disturbance, random.Random(f"{strategy} {disturbance.name}"))
    assert report.has_survived, report
