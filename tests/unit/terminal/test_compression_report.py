"""The report of a compression says of each variant whether it is registered, and which one is picked."""

import pytest

from shoal.storage.records import CompressedVariant, CompressionResult, LatencyRecord, MeasuredModel
from shoal.terminal.compression_report import compression_report


def model(accuracy, size, memory=2_000):
    latency = {rows: LatencyRecord(p50_ms=0.5, p99_ms=1.0) for rows in ("1", "64")}
    return MeasuredModel(
        runtime="torch",
        metrics={"accuracy": accuracy},
        bytes=size,
        parameters=10,
        zeros=0,
        latency=latency,
        flops=1_500,
        memory_bytes=memory,
    )


def variant(accuracy, size, rejected=None):
    return CompressedVariant(
        method="pruning",
        original=model(0.9, 4_000),
        variant=model(accuracy, size),
        flips=0.01,
        steps=1,
        isa="none",
        file="",
        rejected=rejected,
        run_folder="runs/v",
        attribution_agreement=0.876,
    )


def report(fits, picked, **variants):
    result = CompressionResult(
        status="FINISHED",
        run_name="c",
        run_folder="runs/c",
        model="m",
        data_source="csv:rows.csv",
        split="test",
        rows=100,
        metric="accuracy",
        max_loss_of=0.01,
        variants=variants,
        fits=fits,
        picked=picked,
    )
    return compression_report(result, "small").splitlines()


def test_a_table_has_what_a_variant_costs_and_how_alike_it_is():
    lines = report(None, None, half=variant(0.895, 2_000))
    header, original, half = lines[1:4]
    for name, cell in (("alike", "0.88"), ("memory", "2.0 kB"), ("FLOPs", "1.5 k"), ("flips", "1.00%")):
        assert name in header
        assert cell in half
    assert original.startswith("  original (torch)")
    assert lines[-1] == "  registered as small"


@pytest.mark.parametrize(
    ("fits", "picked", "expected"),
    [
        (
            "3kB",
            "half",
            ["registered as small", "it fits, and half is better", "of those that fit 3kB, the best is half"],
        ),
        ("1kB", None, ["2.0 kB are more than 1.0 kB", "no variant fits 1kB and loses no more than 0.01"]),
    ],
)
def test_what_is_picked_alone_is_registered(fits, picked, expected):
    lines = report(fits, picked, half=variant(0.9, 2_000), other=variant(0.895, 1_500))
    assert sum("registered as small" in line for line in lines) == (picked is not None)
    for text in expected:
        assert text in "\n".join(lines)
