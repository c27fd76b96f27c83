"""How many workers an elastic run starts with, and when they are left for more: functions of what was seen when."""

import pytest

from shoal.cluster import elastic, free_room
from shoal.cluster.elastic import PAUSE_S, ROOM_S, SETTLE_S, GroupSize, Growth, Settling, choose_size
from shoal.cluster.free_room import Room
from shoal.errors import Interrupted
from shoal.runs.config import ScaleConfig


@pytest.mark.parametrize(
    ("room", "sizes", "size"),
    [
        (0, (1, 2, 3), None),
        (1, (1, 2, 3), 1),
        (2, (1, 2, 3), 2),
        (9, (1, 2, 3), 3),
        (1, (2, 3), None),
        (5, (2, 4, 6, 8), 4),  # tensor-parallel groups of two
        (3, (4,), None),
        (64, (64,), 64),
    ],
)
def test_the_size_is_the_largest_that_there_is_room_for(room, sizes, size):
    assert choose_size(room, sizes) == size


def sizes_seen(see, rooms, every_s=0.5):
    """Return what a rule says of rooms that are looked at one after another."""
    return [see(room, 100 + number * every_s) for number, room in enumerate(rooms)]


def test_room_for_all_is_taken_at_once_and_less_when_it_has_settled():
    assert sizes_seen(Settling((1, 2, 3)).see, [3]) == [3]
    assert sizes_seen(Settling((1, 2, 3)).see, [5]) == [3]
    looks = int(SETTLE_S / 0.5)
    assert sizes_seen(Settling((1, 2, 3)).see, [2] * (looks + 1)) == [None] * looks + [2]


def test_room_that_still_comes_back_is_waited_for_before_a_start():
    """The resources of workers that ended come back one by one."""
    assert sizes_seen(Settling((1, 2, 3, 4)).see, [0, 1, 1, 2, 2, 3, 4]) == [None] * 6 + [4]
    looks = int(SETTLE_S / 0.5)
    assert sizes_seen(Settling((1, 2, 3)).see, [1, *[2] * (looks + 1)]) == [None] * (looks + 1) + [2]


def test_without_room_for_the_fewest_a_start_waits():
    assert sizes_seen(Settling((2, 3)).see, [1] * 100) == [None] * 100


def growths(rooms, workers=1, sizes=(1, 2, 3), every_s=0.5):
    growth = Growth(sizes)
    found = sizes_seen(lambda room, now_s: growth.see(workers, room, now_s), rooms, every_s)
    return {number * every_s: size for number, size in enumerate(found) if size}


def test_workers_are_left_for_more_once_the_room_has_been_there_for_a_while():
    assert growths([1] * 11) == {ROOM_S: 2}
    assert growths([2] * 11) == {ROOM_S: 3}
    assert growths([0, 0, *[7] * 11]) == {ROOM_S + 1.0: 3}
    assert growths([1] * 11, workers=2) == {ROOM_S: 3}


def test_room_that_comes_and_goes_is_left_to_others():
    assert growths([*[1] * 9, 0] * 20) == {}


def test_room_for_part_of_a_tensor_parallel_group_is_of_no_use():
    assert growths([1] * 100, workers=2, sizes=(2, 4)) == {}
    assert growths([2] * 11, workers=2, sizes=(2, 4)) == {ROOM_S: 4}


def test_the_largest_size_never_grows():
    assert growths([9] * 100, workers=3) == {}


def test_a_host_that_comes_and_goes_costs_a_restart_a_minute_at_most():
    """The room is there all the time: the workers shrink back at once after each growth."""
    assert list(growths([1] * 400)) == [ROOM_S, ROOM_S + PAUSE_S, ROOM_S + 2 * PAUSE_S, ROOM_S + 3 * PAUSE_S]


def test_other_workers_have_room_waited_for_anew():
    growth = Growth((1, 2))
    assert growth.see(1, 1, 100.0) is None
    growth.forget()
    assert growth.see(1, 1, 100.0 + ROOM_S) is None
    assert growth.see(1, 1, 100.0 + 2 * ROOM_S) == 2


def test_a_fixed_number_is_taken_without_a_look(monkeypatch):
    def fail(_):
        raise AssertionError("nothing is looked at")

    monkeypatch.setattr(elastic, "free_workers", fail)
    with GroupSize(ScaleConfig(num_workers=3), {"CPU": 1.0}, print) as size:
        assert size.choose(frozenset(), lambda: None, print) == 3
        assert size.larger(1) is None


@pytest.fixture
def elastic_size(monkeypatch):
    """The size of an elastic run on a cluster whose room is what a test says; and what is said of a wait."""
    rooms, said = [0], []
    monkeypatch.setenv(elastic.START_TIMEOUT, "10")  # it sets none then
    monkeypatch.setattr(elastic, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(elastic, "SETTLE_S", 0.2)
    monkeypatch.setattr(elastic, "free_workers", lambda needs: rooms[-1])
    seen = Room({"CPU": 1.0}, [{"CPU": 1.0}], {}, frozenset({"head"}), is_pending=False)
    monkeypatch.setattr(free_room, "look", lambda needs, selector: seen)
    with GroupSize(ScaleConfig(num_workers=[2, 3]), {"CPU": 1.0}, said.append) as size:
        yield size, rooms, said


def test_a_start_waits_for_room_and_says_for_what(elastic_size):
    size, rooms, said = elastic_size
    waits = []

    def enter(is_waiting):
        waits.append(is_waiting)
        if is_waiting:
            rooms.append(2)

    assert size.choose(frozenset({"head", "w1"}), lambda: None, enter) == 2
    assert not waits[0]
    assert said == ["host w1 is gone; waiting for 1 CPU (1 of 2 there)"]


def test_a_stop_ends_the_wait_for_room(elastic_size):
    size, _, _ = elastic_size
    checks = []

    def check():
        checks.append(1)
        if len(checks) == 3:
            raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        size.choose(frozenset(), check, lambda is_waiting: None)


def test_room_that_was_seen_before_the_workers_ended_does_not_count():
    """The look that is under way when they end may have found what is gone."""
    look = elastic._Look({"CPU": 1.0})
    assert look.since(0.0) is None
    look._found = 100.0, 9
    assert look.since(100.0) == 9
    assert look.since(100.1) is None
