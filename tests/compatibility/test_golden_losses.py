"""The losses of every step, and what is measured at the end, are those that the code at commit 405cdcc gave."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from compatibility.fixtures import assert_as_recorded, recorded, side_by_side, write_corpus
from running import Place

pytestmark = pytest.mark.long

NAMES = ("digits", "gpt", "resnet", "digits_two_workers")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]
) -> Iterator[dict[str, "Future[Any]"]]:
    """Each run, trained from the start."""
    places = {name: tmp_path_factory.mktemp(name) for name in NAMES}

    def train(name: str) -> dict[str, Any]:
        write_corpus(places[name] / "corpus")
        place = Place(places[name], {"RAY_ADDRESS": cluster["address"]})
        # Its weight decay was of all parameters, and its result the last weights.
        return place.train(*recorded()["runs"][name]["arguments"], "optim.decay=all", "train.select=last")

    with side_by_side(train, NAMES) as futures:
        yield futures


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_and_every_final_metric_is_the_recorded_one(
    trained: dict[str, "Future[Any]"], name: str
) -> None:
    result = trained[name].result()
    assert result["attempt"] == 1
    assert_as_recorded(recorded()["runs"][name], Path(result["run_folder"]), result)
