"""A sweep gives the rows that the code at commit 405cdcc gave, also where it is one that was killed in the middle."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from compatibility.fixtures import (
    assert_rows_as_recorded,
    journals,
    recorded,
    side_by_side,
    unpack,
    with_best_metric,
)
from running import Place

pytestmark = pytest.mark.long

Ended = tuple[dict[str, Any], set[str]]


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]
) -> Iterator[dict[str, "Future[Ended]"]]:
    """The sweep, resumed and from the start: its result, and the trials that were trained meanwhile."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("resumed", "whole")}

    def sweep(name: str) -> Ended:
        if name == "resumed":
            unpack("sweep", places[name])
            check_stored_config(places[name])
        before = journals(places[name])
        place = Place(places[name], {"RAY_ADDRESS": cluster["address"]})
        done = place.run("tune", *recorded()["sweep"]["arguments"])
        assert done.code == 0, done.out + done.err
        return done.result, {path.parent.parent.name for path in journals(places[name]) - before}

    with side_by_side(sweep, tuple(places)) as futures:
        yield futures


def check_stored_config(place: Path) -> None:
    """The stored config has a key that a later version drops."""
    (config,) = place.glob("runs/*/sweep/config.yaml")
    assert yaml.safe_load(config.read_text())["tune"]["engine"] == "auto"


def test_a_half_finished_sweep_goes_on_and_ends_with_the_same_rows(
    swept: dict[str, "Future[Ended]"],
) -> None:
    result, trained = swept["resumed"].result()
    assert result["attempt"] == 2
    assert trained
    assert not trained & set(recorded()["sweep"]["ended_before"]), "what had ended is not trained again"
    assert_rows_as_recorded(recorded()["sweep"], result)


def test_a_sweep_from_the_start_ends_with_the_same_rows(swept: dict[str, "Future[Ended]"]) -> None:
    result, _ = swept["whole"].result()
    assert result["attempt"] == 1
    assert_rows_as_recorded(with_best_metric(recorded()["sweep"]), result)
