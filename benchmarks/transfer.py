"""Measures what muP is for: whether a learning rate found at a small width serves at 8 times the width, and the cost.

`jobs/transfer.py --verify` as a user runs it: a sweep of rates a factor of 2 apart at the base width, one training at
the target width with the best of them, then the same sweep at the target width to judge it by. On the digits an MLP
32 to 256 wide, three seeds a rate, of which the mean counts; on the source of Python's standard library a decoder 32 to
256 wide. Both minimize the validation loss, after a fixed number of steps. There is no peer but the sweep at the target
width.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import TIMEOUT_S, Figure, Report, Row, main, progress, refuse_a_running_cluster, run, scratch

WIDEN = 8
SETTINGS = {
    "digits": (
        "data.source=sklearn:digits", "data.global_batch_size=64", "data.validation_fraction=0.3",
        "data.test_fraction=0.05", "train.epochs=10", "model.width=32", "optim.lr=0.008", "optim.schedule=linear",
        "tune.repeat=3", "tune.max_concurrent_trials=2",
    ),
    "text": (
        "task=causal_lm", "data.source=text:stdlib", "data.context=64", "data.global_batch_size=16",
        "data.validation_fraction=0.002", "data.test_fraction=0.001", "model.name=gpt", "model.width=32",
        "model.depth=2", "model.args={heads: 4}", "optim.name=adamw", "optim.lr=0.004", "optim.schedule=linear",
        "optim.warmup_steps=20", "train.max_steps=200", "tune.max_concurrent_trials=2",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What one transfer came to."""

    octaves: float  # between the best rates at the two widths
    gap: float  # percent by which the transferred run is worse than the best at the target width
    share: float  # percent that the search costs of a sweep at the target width, in FLOPs
    seconds_share: float


def run_transfer(name: str, seed: int, folder: Path) -> Found:
    """Run `jobs/transfer.py` and return what it found.

    Raises:
        SystemExit: it failed.
    """
    base = next(int(text.partition("=")[2]) for text in SETTINGS[name] if text.startswith("model.width="))
    command = [
        sys.executable,
        "jobs/transfer.py",
        *SETTINGS[name],
        f"--to=model.width={WIDEN * base}",
        "--verify",
    ]
    command += [f"seed={seed}", f"run_name={name}-{seed}", f"storage_path={folder}/runs"]
    command += [f"track.tracking_uri=sqlite:///{folder}/mlflow.db"]
    out = run(command, timeout_s=2 * TIMEOUT_S)
    result: dict[str, Any] = json.loads(Path(out.split()[-1]).read_text())
    return found_in(result)


def found_in(result: dict[str, Any]) -> Found:
    """Return the figures of a transfer's `result.json`."""
    compared, cost = result["comparison"], result["cost"]
    narrow, wide = (float(found["params"]["optim.lr"]) for found in (result, compared))
    return Found(
        octaves=abs(math.log2(wide / narrow)),
        gap=100 * compared["gap"] / abs(compared["value"]),
        share=100 * cost["search"]["flops"] / cost["direct_search"]["flops"],
        seconds_share=100 * cost["search"]["seconds"] / cost["direct_search"]["seconds"],
    )


def measure(repeat: int) -> Report:
    refuse_a_running_cluster("jobs/transfer.py")
    rows: list[Row] = []
    figures: list[Figure] = []
    with scratch() as folder:
        for name in SETTINGS:
            found = []
            for seed in range(repeat):
                found.append(run_transfer(name, seed, folder))
                progress(f"{name} round {seed + 1}/{repeat}: {found[-1]}")
            title = f"{name}, {WIDEN} times the width"
            rows += [
                Row(f"{title}: best rate moves", [one.octaves for one in found], "octaves"),
                Row(f"{title}: worse than the best there", [one.gap for one in found], "%"),
                Row(f"{title}: FLOPs of the search, of one there", [one.share for one in found], "%"),
                Row(
                    f"{title}: seconds of the search, of one there", [one.seconds_share for one in found], "%"
                ),
            ]
            figures += [
                Figure(row.name, row.median, target, is_at_least=False, unit=row.unit)
                for row, target in zip(rows[-4:-1], (1.0, 2.0, 10.0), strict=True)
            ]
    return Report("A learning rate carried to a wider model by muP", rows, figures)


if __name__ == "__main__":
    main(measure, repeat=3)
