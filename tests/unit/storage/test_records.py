"""Records: what is written is read again, newer fields are kept, damage is reported by file name."""

import json
import math

import pytest

from shoal.errors import StorageError
from shoal.storage import records
from shoal.storage.records import (
    CheckpointState,
    ErrorRecord,
    EvaluationResult,
    Identity,
    JournalPosition,
    Lease,
    Lineage,
    Manifest,
    Metadata,
    Outcome,
    Progress,
    Record,
    Result,
    TrainResult,
)
from shoal.storage.run_folder import RunFolder

KINDS = [
    kind
    for kind in vars(records).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind not in (Record, Result)
]
IDENTITY = {"key": "k", "start_ms": 1, "name": "run", "experiment": "shoal"}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b" \n", b'{"status": "FINI', b"null", b"[1", b"\x00\xff"])
def test_a_damaged_file_is_reported_by_its_name_with_a_remedy(folder, kind, content):
    folder.write(kind.file, content)
    with pytest.raises(StorageError) as caught:
        folder.load(kind)
    message = str(caught.value)
    assert message.startswith(f"'{folder.uri}/{kind.file}' is damaged")
    assert message.endswith(kind.remedy)


def test_a_field_of_another_type_is_named(folder):
    folder.write("lease.json", json.dumps({"attempt": "first"}).encode())
    with pytest.raises(StorageError, match=r"attempt: .*integer"):
        folder.load(Lease)


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_file_is_none(folder, kind):
    assert folder.load(kind) is None


def test_fields_of_a_newer_version_are_kept_when_a_file_is_read_and_written(folder):
    newer = {**IDENTITY, "version": 7, "color": {"shade": 3}, "verified": None}
    folder.write("run.json", json.dumps(newer).encode())
    folder.update(Identity, status="FINISHED", end_ms=2)
    found = json.loads(folder.read("run.json"))
    assert (found["version"], found["color"], found["status"], found["end_ms"]) == (
        7,
        {"shade": 3},
        "FINISHED",
        2,
    )


def test_an_update_makes_what_is_absent(folder):
    assert folder.update(JournalPosition, steps={"train/loss": 3}).steps == {"train/loss": 3}
    assert folder.load(JournalPosition) == JournalPosition(steps={"train/loss": 3})


def test_floats_come_back_to_the_bit(folder):
    values = {"a": 0.1 + 0.2, "b": 1e-310, "c": 123456789.12345678, "d": 5.0}
    folder.save(CheckpointState(step=3, samples=9, best=values, metrics=values, seconds=0.1))
    found = folder.load(CheckpointState)
    assert found is not None
    assert {key: value.hex() for key, value in found.best.items()} == {
        key: value.hex() for key, value in values.items()
    }


NOT_FINITE = {"val/r2": math.nan, "val/perplexity": math.inf, "val/loss": 1.0}
MEASURED = {"ended": "finished", "steps_planned": 1, "seconds": 1.0, "attempt_seconds": 1.0}
RESULT = {"status": "FINISHED", "run_name": "r", "run_folder": "f"}
DATA = {"model": "m", "data_source": "d", "split": "test", "rows": 1}


@pytest.mark.parametrize(
    ("record", "inner"),
    [
        (CheckpointState(step=1, samples=1, best=NOT_FINITE), "best"),
        (CheckpointState(step=1, samples=1, metrics=NOT_FINITE), "metrics"),
        (Outcome(**MEASURED, progress=Progress(metrics=NOT_FINITE)), "progress.metrics"),
        (Outcome(**MEASURED, progress=Progress(best=NOT_FINITE)), "progress.best"),
        (Outcome(**MEASURED, progress=Progress(), test_metrics=NOT_FINITE), "test_metrics"),
        (Outcome(**MEASURED, progress=Progress(), rates=NOT_FINITE), "rates"),
        (TrainResult(**RESULT, shares=NOT_FINITE), "shares"),
        (EvaluationResult(**RESULT, **DATA, metrics={}, per_class={"a": NOT_FINITE}), "per_class.a"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_number_that_is_not_finite_is_null_in_every_file_and_read_as_not_a_number(folder, record, inner):
    folder.save(record)
    written = json.loads(folder.read(record.file), parse_constant=pytest.fail)
    read = folder.load(type(record)).model_dump()
    for key in inner.split("."):
        written, read = written[key], read[key]
    assert written == {"val/r2": None, "val/perplexity": None, "val/loss": 1.0}
    assert read == pytest.approx(
        {"val/r2": math.nan, "val/perplexity": math.nan, "val/loss": 1.0}, nan_ok=True
    )


@pytest.mark.parametrize(
    "record",
    [
        Metadata(params={"a": math.nan}, tags={"b": [math.inf]}),
        Lineage(entries=[{"iteration": 1, "step": 2, "from": "t0001", "point": {"a": math.nan}}]),
        Identity(**IDENTITY, verified={"metric": "val/loss", "value": math.nan, "data": "d"}),
        Identity(**IDENTITY, unknown={"a": math.nan}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_no_file_holds_what_is_no_json(folder, record):
    folder.save(record)
    json.loads(folder.read(record.file), parse_constant=pytest.fail)
    assert folder.load(type(record)) is not None


def test_a_file_of_an_earlier_version_that_names_what_is_not_finite_is_read(folder):
    folder.write("state.json", b'{"step": 1, "samples": 1, "metrics": {"a": NaN, "b": Infinity}}')
    assert folder.load(CheckpointState).metrics == pytest.approx({"a": math.nan, "b": math.inf}, nan_ok=True)


def test_not_a_number_is_null_in_a_result(folder):
    result = TrainResult(
        status="FINISHED", run_name="r", run_folder="f", metrics={"val/r2": float("nan"), "val/loss": 1.0}
    )
    folder.save(result)
    assert json.loads(folder.read("result.json"), parse_constant=pytest.fail)["metrics"] == {
        "val/r2": None,
        "val/loss": 1.0,
    }


def test_files_of_earlier_versions_are_read(folder):
    folder.write("facts.json", json.dumps({"params": {"seed": 0}, "tags": {}, "contexts": []}).encode())
    assert folder.load(Metadata).params == {"seed": 0}
    folder.write(
        "lineage.json", b'[{"iteration": 2, "step": 4, "from": "t0001", "point": {"optim.lr": 0.1}}]'
    )
    assert folder.load(Lineage).entries[0].source == "t0001"
    folder.write("manifest.json", b'{"state.json": {"bytes": 3, "sha256": "ab"}}')
    assert folder.load(Manifest).files["state.json"].bytes == 3


def test_the_metadata_of_an_earlier_version_is_replaced_by_that_of_this_one(folder):
    folder.write("facts.json", json.dumps({"params": {"seed": 0}, "tags": {"a": 1}, "contexts": []}).encode())
    folder.update(Metadata, tags={"a": 2})
    assert folder.load(Metadata).params == {"seed": 0}
    assert folder.load(Metadata).tags == {"a": 2}


def test_names_that_python_cannot_have_are_written_as_they_are_in_the_file(folder):
    folder.save(
        Metadata(dataset={"name": "n", "digest": "d", "source_type": "s", "source": "{}", "schema": "{}"})
    )
    assert json.loads(folder.read("metadata.json"))["dataset"]["schema"] == "{}"


def test_an_outcome_needs_what_its_readers_need():
    with pytest.raises(ValueError, match="progress"):
        Outcome.parse(b'{"ended": "finished", "steps_planned": 1, "seconds": 1, "attempt_seconds": 1}')


def test_an_exception_is_recorded_with_the_line_that_raised_it():
    try:
        raise StorageError("no space")
    except StorageError as error:
        record = ErrorRecord.from_exception(error, rank=3)
    assert (record.type, record.message, record.rank, record.exit_code) == ("StorageError", "no space", 3, 2)
    assert record.where.startswith(f"{__file__}:")
    assert 'raise StorageError("no space")' in record.traceback


def test_an_exception_without_words_or_traceback_is_recorded_by_its_type():
    record = ErrorRecord.from_exception(KeyboardInterrupt())
    assert (record.message, record.where, record.exit_code) == ("KeyboardInterrupt", "unknown", 1)
