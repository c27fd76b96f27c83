"""A run that the code at commit 405cdcc left unfinished is resumed by the same command and ends as if uninterrupted.

`digits` has no run_name: it is found again by the hash of its config. The others have one, so their stored config.yaml
is read. Checkpoints: `digits` and `ema` of one process, `fsdp` and `tp` of shards by two workers.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compatibility.fixtures import (
    assert_as_recorded,
    is_same_machine,
    journals,
    last_checkpoint,
    only_run,
    points_of,
    recorded,
    run_folder,
    side_by_side,
    unpack,
)
from running import Place, mlflow_record

pytestmark = pytest.mark.long

NAMES = ("digits", "ema", "fsdp", "tp")


@dataclass
class Resumed:
    """A run that was resumed, and where it stood before."""

    place: Path
    result: dict[str, Any]
    checkpoint: int
    journals: set[Path]
    run_id: str


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]
) -> Iterator[dict[str, "Future[Resumed]"]]:
    """Each half-finished run, unpacked and then resumed by the command that began it."""
    places = {name: tmp_path_factory.mktemp(name) for name in NAMES}

    def resume(name: str) -> Resumed:
        path = places[name]
        unpack(name, path)
        folder = run_folder(path)
        before = last_checkpoint(folder), journals(folder), only_run(f"sqlite:///{path}/mlflow.db")
        place = Place(path, {"RAY_ADDRESS": cluster["address"]})
        return Resumed(path, place.train(*recorded()["runs"][name]["arguments"]), *before)

    with side_by_side(resume, NAMES) as futures:
        yield futures


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_its_checkpoint_and_ends_like_its_uninterrupted_twin(
    resumed: dict[str, "Future[Resumed]"], name: str
) -> None:
    run, recorded_run = resumed[name].result(), recorded()["half_finished"][name]
    folder = Path(run.result["run_folder"])
    assert run.result["run_name"] == recorded_run["run_name"]
    assert run.result["attempt"] == 2
    again = points_of(folder, without=run.journals)["train/loss"]
    assert min(again) == run.checkpoint + 1 == recorded_run["checkpoint"] + 1
    assert_as_recorded(recorded()["runs"][name], folder, run.result, since=run.checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_its_run_in_mlflow_is_gone_on_with_and_holds_each_step_once(
    resumed: dict[str, "Future[Resumed]"], name: str
) -> None:
    run = resumed[name].result()
    uri = f"sqlite:///{run.place}/mlflow.db"
    assert only_run(uri) == run.run_id == run.result["mlflow_run_id"]
    found, history = mlflow_record(uri, run.run_id)
    assert found.info.status == "FINISHED"
    expected = {
        (key, step): value
        for key, steps in points_of(Path(run.result["run_folder"])).items()
        for step, value in steps.items()
    }
    assert history.keys() == expected.keys()
    if is_same_machine():  # elsewhere a step that was trained twice came out twice
        assert history == expected
