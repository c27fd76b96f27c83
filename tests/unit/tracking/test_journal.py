import json
import math
import threading
import time
import uuid

import pytest

from shoal.errors import StorageError
from shoal.storage import parts
from shoal.storage.parts import part_name
from shoal.storage.records import JournalPosition
from shoal.storage.run_folder import RunFolder
from shoal.tracking import journal as journal_module
from shoal.tracking.journal import Journal, JournalReader, MetricPoint, NoJournal, all_points, journal_name


@pytest.fixture
def folder(place):
    return RunFolder(place)


@pytest.fixture
def local(tmp_path):
    return RunFolder(str(tmp_path / "run"))


def note(folder, attempt, steps, value=float, key="train/loss"):
    journal = Journal(folder, attempt)
    for step in steps:
        journal.log(step, {key: value(step)}, at_s=1000.0 * attempt + step)
    journal.sync()
    return journal


def steps(points, key="train/loss"):
    return [point.step for point in points if point.key == key]


def test_points_come_back_as_they_were_noted_with_their_time(folder):
    journal = Journal(folder, 1)
    journal.log(1, {"train/loss": 0.5, "val/loss": 0.25}, at_s=12.5)
    journal.log(2, {"train/loss": 0.125}, at_s=13.0)
    journal.sync()
    assert JournalReader(folder).read() == [
        MetricPoint("train/loss", 0.5, 1, 12_500),
        MetricPoint("val/loss", 0.25, 1, 12_500),
        MetricPoint("train/loss", 0.125, 2, 13_000),
    ]


def test_a_journal_that_is_not_there_holds_nothing(folder):
    assert JournalReader(folder).read() == []


def test_points_are_seen_once_flushed_and_not_before(local):
    journal = Journal(local, 1)
    journal.log(1, {"train/loss": 1.0})
    reader = JournalReader(local)
    assert reader.read() == []
    journal.flush()
    assert steps(reader.read()) == [1]


def test_steps_trained_again_after_a_crash_are_published_once_with_their_first_value_and_time(folder):
    note(folder, 1, range(1, 6))
    note(folder, 2, range(4, 9), value=lambda step: step + 100.0)
    points = JournalReader(folder).read()
    assert steps(points) == list(range(1, 9))
    assert [point.value for point in points] == [1, 2, 3, 4, 5, 106, 107, 108]
    assert [point.time_ms for point in points if point.step in (5, 6)] == [1_005_000, 2_006_000]


def test_every_reading_in_between_gives_the_same_points(folder):
    reader, seen = JournalReader(folder), []
    for attempt, part in [(1, range(1, 4)), (2, range(2, 7)), (3, range(5, 9))]:
        note(folder, attempt, part)
        reader.look_again()
        seen += reader.read()
    assert seen == JournalReader(folder).read()
    assert steps(seen) == list(range(1, 9))


def test_each_metric_has_its_own_place(folder):
    journal = Journal(folder, 1)
    journal.log(10, {"train/loss": 1.0})
    journal.log(3, {"system/cpu": 2.0})
    journal.log(10, {"val/loss": 3.0})
    journal.sync()
    assert [(point.key, point.step) for point in JournalReader(folder).read()] == [
        ("train/loss", 10),
        ("system/cpu", 3),
        ("val/loss", 10),
    ]


def test_reading_resumes_from_a_position_that_was_saved(folder):
    note(folder, 1, range(1, 4))
    reader = JournalReader(folder)
    assert steps(reader.read()) == [1, 2, 3]
    position = JournalPosition.parse(reader.position.to_bytes())
    note(folder, 2, range(3, 7))
    assert steps(JournalReader(folder, position).read()) == [4, 5, 6]
    reader.look_again()
    assert steps(reader.read()) == [4, 5, 6]


def test_a_line_torn_by_a_crash_is_left_unread_until_it_is_whole(local):
    note(local, 1, [1])
    path = local.local(journal_name(1))
    with path.open("ab") as file:
        file.write(b'{"step": 2, "ms": 1, "metr')
    reader = JournalReader(local)
    assert steps(reader.read()) == [1]
    with path.open("ab") as file:
        file.write(b'ics": {"train/loss": 2.0}}\n')
    assert steps(reader.read()) == [2]


@pytest.mark.parametrize("attempt", [1, 2], ids=["same attempt, restarted by Ray", "next attempt"])
def test_after_a_torn_line_a_new_writer_goes_on_and_the_reader_follows(local, attempt):
    note(local, 1, [1])
    with local.local(journal_name(1)).open("ab") as file:
        file.write(b'{"step": 2, "ms": 1, "metr')
    reader = JournalReader(local)
    assert steps(reader.read()) == [1]
    note(local, attempt, [2, 3])
    assert steps(reader.read()) == [2, 3]


def test_a_writer_that_opens_the_journal_of_its_attempt_again_loses_nothing(folder):
    reader = JournalReader(folder)
    note(folder, 1, [1, 2, 3])
    assert steps(reader.read()) == [1, 2, 3]
    note(folder, 1, [3, 4])
    note(folder, 1, [5])
    reader.look_again()
    assert steps(reader.read()) == [4, 5]
    assert steps(JournalReader(folder).read()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_in_a_line_of_json_and_read_as_not_a_number(local, value):
    note(local, 1, [1], value=lambda step: value)
    (line,) = local.read(journal_name(1)).splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {"train/loss": None}
    (point,) = JournalReader(local).read()
    assert math.isnan(point.value)


def test_a_line_of_an_earlier_version_that_names_what_is_not_finite_is_read(local):
    local.write(journal_name(1), b'{"step": 1, "ms": 5, "metrics": {"val/loss": Infinity, "val/r2": NaN}}\n')
    first, second = JournalReader(local).read()
    assert (first.value, math.isnan(second.value)) == (math.inf, True)


def test_several_threads_may_write(local):
    journal = Journal(local, 1)

    def work(name):
        for step in range(200):
            journal.log(step, {name: float(step)})
            journal.flush()

    threads = [threading.Thread(target=work, args=(f"thread/{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = JournalReader(local).read()
    assert len(points) == 800
    for number in range(4):
        assert steps(points, f"thread/{number}") == list(range(200))


def test_other_workers_record_nothing(local):
    record = NoJournal()
    record.log(1, {"train/loss": 1.0})
    record.flush()
    record.sync()
    assert JournalReader(local).read() == []


# Requests to an object store.


def make_parts(folder, count, attempt=1, first=0):
    """Write the parts of a long run from the first one on, one step in each."""
    for number in range(first, count):
        line = json.dumps({"step": number, "ms": 1000 + number, "metrics": {"train/loss": 1.0}})
        folder.write(part_name(journal_name(attempt), number), line.encode() + b"\n")


@pytest.fixture
def stored(s3):
    return RunFolder(f"{s3}/journal/{uuid.uuid4().hex}")


@pytest.fixture
def clock(monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "before", [10, *(pytest.param(number, marks=pytest.mark.long) for number in (60, 180, 720, 2000))]
)
def test_requests_a_minute_do_not_grow_with_the_journal(stored, object_store, clock, before):
    """Ten minutes of writing, and of polling by two readers, at the beginning, later, after an hour and after many."""
    make_parts(stored, before)
    journal, first = Journal(stored, 1), JournalReader(stored)
    assert steps(first.read()) == list(range(before))
    readers = [first, JournalReader(stored, first.position)]
    read_by = {reader: [] for reader in readers}
    began = len(object_store.requests)
    for second in range(600):
        clock[0] += 1.0
        journal.log(before + second, {"train/loss": 0.5})
        journal.flush()
        if thread := journal._out._out._thread:
            thread.join()
        for reader in readers:
            read_by[reader] += steps(reader.read())
    a_minute = (len(object_store.requests) - began) / 10
    journal.sync()
    for reader in readers:
        reader.look_again()
        assert read_by[reader] + steps(reader.read()) == list(range(before, before + 600))
    assert a_minute < 20


def test_a_poll_without_news_is_one_request_whatever_the_journal_holds(stored, object_store, clock):
    make_parts(stored, 30)
    reader = JournalReader(stored)
    reader.read()
    make_parts(stored, 31, first=30)
    clock[0] += 100
    assert steps(reader.read()) == [30]
    clock[0] += 100
    since = len(object_store.requests)
    assert reader.read() == []
    assert len(object_store.requests) - since == 1


def test_a_position_stays_small_and_goes_on_behind_the_parts_that_were_read(stored):
    make_parts(stored, 100)
    reader = JournalReader(stored)
    assert len(reader.read()) == 100
    data = reader.position.to_bytes()
    assert len(data) < 200
    make_parts(stored, 103, first=100)
    assert steps(JournalReader(stored, JournalPosition.parse(data)).read()) == [100, 101, 102]


def test_a_position_of_an_earlier_version_lists_its_parts_and_goes_on(stored):
    make_parts(stored, 5)
    offsets = {f"0001.jsonl.{number:06d}": 60 for number in range(3)}
    position = JournalPosition(offsets=offsets, steps={"train/loss": 2})
    assert steps(JournalReader(stored, position).read()) == [3, 4]


def test_a_later_attempt_is_found_and_followed(stored, clock):
    make_parts(stored, 3)
    reader = JournalReader(stored)
    assert len(reader.read()) == 3
    note(stored, 2, [3, 4])
    clock[0] += parts.POLL_S + 1
    assert steps(reader.read()) == [3, 4]


def test_a_long_journal_is_read_in_pieces_without_losing_a_point(place, monkeypatch):
    folder = RunFolder(place)
    note(folder, 1, range(1, 500))
    monkeypatch.setattr(journal_module, "MOST_BYTES", 1000)
    reader, pieces = JournalReader(folder), []
    while points := reader.read_some():
        pieces.append(steps(points))
    assert [step for piece in pieces for step in piece] == list(range(1, 500))
    assert len(pieces) > 10 or not folder.is_local


def test_all_points_are_read_whenever_the_store_answers_again(s3, object_store):
    folder = RunFolder(f"{s3}/all-points")
    note(folder, 1, range(3))
    object_store.is_away = True
    with pytest.raises(StorageError):
        JournalReader(folder).read()  # who polls comes again
    again = threading.Timer(3.0, setattr, (object_store, "is_away", False))
    again.start()
    try:
        assert [one.step for one in all_points(folder)] == [0, 1, 2]
    finally:
        again.join()
