"""What a group of workers waits for, from what Ray says of its nodes."""

import pytest

from shoal.cluster import free_room
from shoal.cluster.free_room import Room, RoomWatch, describe_wait

ONE = {"CPU": 1.0, "memory": 1e9}
GPU = {"CPU": 8.0, "GPU": 1.0}


def room(nodes, free=None, needs=None, hosts=("head",), is_pending=True):
    whole = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return Room(needs or {"CPU": 1.0}, nodes, whole if free is None else free, frozenset(hosts), is_pending)


@pytest.mark.parametrize(
    ("seen", "workers", "words"),
    [
        (room([ONE]), 2, "host w1 is gone; waiting for 1 CPU (1 of 2 there)"),
        (room([ONE], hosts=("head", "w1")), 2, "waiting for 1 CPU (1 of 2 there)"),
        (room([ONE, ONE], {"CPU": 1.0}, hosts=("head", "w1")), 2, "waiting for 1 CPU (1 of 2 there), which others use"),
        (room([ONE, ONE], {}, hosts=("head", "w1")), 2, "waiting for 2 CPU (0 of 2 there), which others use"),
        (room([{"CPU": 2.1}], needs={"CPU": 0.5}), 5, "host w1 is gone; waiting for 0.5 CPU (2 of 2.5 there)"),
        (room([GPU], needs={"CPU": 1.0, "GPU": 1}), 3, "host w1 is gone; waiting for 2 GPU (1 of 3 there)"),
        (room([ONE, ONE]), 2, None),
        (room([ONE], is_pending=False), 2, None),
    ],
)  # fmt: skip
def test_the_words_for_a_wait(seen, workers, words):
    assert describe_wait(seen, workers, frozenset({"head", "w1"})) == words


def test_after_a_loss_ray_has_a_while_to_find_that_the_host_is_gone():
    taken, hosts = room([ONE, ONE], {"CPU": 1.0}, hosts=("head", "w1")), frozenset({"head", "w1"})
    assert describe_wait(taken, 2, hosts, waited_s=5.0) is None
    assert describe_wait(taken, 2, hosts, waited_s=31.0) is not None
    assert describe_wait(taken, 2, frozenset(), waited_s=0.0) is not None


def test_it_is_said_at_once_then_now_and_then_and_when_it_changes(monkeypatch):
    now, rooms, said = [100.0], [room([ONE])], []
    monkeypatch.setattr(free_room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(free_room, "look", lambda needs, selector: rooms[-1])
    watch = RoomWatch({"CPU": 1.0}, 3, frozenset(), lambda words: said.append((now[0], words)))
    for second in range(100, 165):
        now[0] = float(second)
        if second == 140:
            rooms.append(room([ONE, ONE]))
        watch.look()
    assert said == [
        (100.0, "waiting for 2 CPU (1 of 3 there)"),
        (130.0, "waiting for 2 CPU (1 of 3 there)"),
        (140.0, "waiting for 1 CPU (2 of 3 there)"),
    ]
