import json
import threading

import pytest

from shoal.storage import failures, parts
from shoal.storage.folder import Folder
from shoal.storage.parts import PartReader, count_parts, part_name


@pytest.fixture
def folder(s3, request):
    return Folder(f"{s3}/parts/{request.node.name}")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: `clock[0] += 5`."""
    now = [1000.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    return now


def names_of(store, since):
    return [what for _, what in store.requests[since:]]


def test_parts_are_counted_by_file_whatever_else_is_there():
    names = ["0001.jsonl.000000", "0001.jsonl.000012", "0002.jsonl.000000", "0003.jsonl", "shipped.json"]
    assert count_parts(names) == {"0001.jsonl": 13, "0002.jsonl": 1}


def test_bytes_become_a_part_only_when_they_have_gathered_for_a_while(folder, clock):
    out = folder.appender("log/a.jsonl")
    out.write(b"1\n")
    assert folder.names("log") == []
    clock[0] += parts.PART_S + 1
    out.write(b"2\n")
    out.sync()
    out.sync()
    assert folder.names("log") == ["a.jsonl.000000"]
    assert folder.read("log/a.jsonl.000000") == b"1\n2\n"


def test_a_small_part_is_one_request(folder, object_store):
    out = folder.appender("log/a.jsonl")
    out.write(b"1\n")
    since = len(object_store.requests)
    out.sync()
    assert [what.split("?")[0].split()[0] for what in names_of(object_store, since)] == ["PUT"]


def test_a_part_is_asked_for_once_and_an_absent_one_not_before_a_while(folder, object_store, clock):
    reader = PartReader(folder)
    folder.write("log/a.000000", b"x")
    since = len(object_store.requests)
    for _ in range(20):
        assert reader.read("log/a", 0) == b"x"
        assert reader.read("log/a", 1) is None
    assert len(names_of(object_store, since)) == 3  # size and bytes of the one, no size of the other
    folder.write("log/a.000001", b"y")
    clock[0] += parts.POLL_S + 1
    assert reader.read("log/a", 1) == b"y"


def test_a_listing_is_made_once_in_a_while_however_many_readers_ask(folder, object_store, clock):
    reader = PartReader(folder)
    since = len(object_store.requests)
    for _ in range(20):
        assert reader.counts("log") == {}
    assert len(names_of(object_store, since)) == 1
    folder.write("log/a.000000", b"x")
    assert reader.counts("log", is_fresh=True) == {"a": 1}


def test_what_comes_while_the_store_is_away_waits_and_arrives_in_order(
    folder, object_store, clock, monkeypatch
):
    out = folder.appender("log/a.jsonl")
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(failures, "LONGEST_PAUSE_S", 0.05)
    object_store.is_away = True
    try:
        clock[0] += parts.PART_S + 1
        for number in range(100):
            out.write(json.dumps(number).encode() + b"\n")  # returns at once
        assert any(thread.name == "shoal-journal" for thread in threading.enumerate())
    finally:
        object_store.is_away = False
    out.sync()
    data = b"".join(folder.read(f"log/{name}") for name in folder.names("log"))
    assert [json.loads(line) for line in data.splitlines()] == list(range(100))


def test_a_store_that_is_away_for_good_is_an_error_of_the_next_write_and_nothing_is_lost(
    folder, object_store, monkeypatch
):
    out = folder.appender("log/a.jsonl")
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(failures, "OUTAGE_S", 0.2)
    object_store.is_away = True
    try:
        out.write(b"1\n")
        with pytest.raises(OSError, match=r"does not answer.*the same command"):
            out.sync()
    finally:
        object_store.is_away = False
    out.sync()
    assert folder.read(f"log/{part_name('a.jsonl', 0)}") == b"1\n"
