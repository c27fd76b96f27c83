"""What fits is picked by its metric; limits that cannot be read are refused in one line."""

import pytest

from shoal.compression.config import CompressConfig
from shoal.compression.limits import Limits, pick
from shoal.config.schema import build_config
from shoal.errors import ConfigError
from shoal.storage.records import CompressedVariant, LatencyRecord, MeasuredModel


def variant(accuracy, size, ms, rejected=None):
    latency = {rows: LatencyRecord(p50_ms=ms * int(rows), p99_ms=ms * int(rows)) for rows in ("1", "64")}
    measured = MeasuredModel(
        runtime="torch",
        metrics={"accuracy": accuracy, "loss": 1 - accuracy},
        bytes=size,
        parameters=1,
        zeros=0,
        latency=latency,
    )
    return CompressedVariant(
        method="",
        original=measured,
        variant=measured,
        flips=None,
        steps=0,
        isa="none",
        file="",
        rejected=rejected,
        run_folder="",
    )


VARIANTS = {
    "large": variant(0.99, 3_000_000, 1.0),
    "good": variant(0.95, 1_900_000, 2.0),
    "same": variant(0.95, 1_800_000, 3.0),
    "small": variant(0.90, 100_000, 0.5),
    "bad": variant(0.97, 100_000, 0.5, rejected="accuracy fell"),
}


@pytest.mark.parametrize(
    ("text", "size", "latency"),
    [
        ("2MB, 5ms@batch1", 2e6, {"1": 5.0}),
        ("500 kB", 5e5, {}),
        ("0.5s@batch64,80us@batch1", None, {"64": 500.0, "1": 0.08}),
    ],
)
def test_limits_are_read(text, size, latency):
    limits = Limits.parse(text)
    assert limits.bytes == size
    assert limits.latency_ms == pytest.approx(latency)


@pytest.mark.parametrize("text", ["2 apples", "5ms", "5ms@batch7", "", "MB", "2MB 5ms@batch1"])
def test_other_limits_are_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="no limit: write a size such as 2MB") as refused:
        build_config(CompressConfig, {"compress": {"prune": 0.5, "fits": text}})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "metric", "picked"),
    [
        ("5MB", "accuracy", "large"),
        ("2MB", "accuracy", "same"),  # as good, and smaller
        ("2MB, 2.5ms@batch1", "accuracy", "good"),
        ("2MB, 2.5ms@batch1", "loss", "good"),
        ("1MB", "accuracy", "small"),  # the bad one is better, and rejected
        ("1kB", "accuracy", None),
        ("0.4ms@batch1", "accuracy", None),
    ],
)
def test_the_best_of_those_that_fit_is_picked(text, metric, picked):
    assert pick(VARIANTS, Limits.parse(text), metric, {}) == picked


def test_what_does_not_fit_is_named():
    limits = Limits.parse("2MB, 50ms@batch64")
    assert limits.misses(VARIANTS["small"].variant) is None
    assert limits.misses(VARIANTS["large"].variant) == (
        "3.0 MB are more than 2.0 MB; 64 ms of batch 64 are more than 50 ms"
    )
