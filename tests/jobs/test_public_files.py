"""Files in the formats that people keep in repositories go through training and evaluation, with at most two keys."""

from pathlib import Path

import pytest

from public_files import (
    ROWS,
    PublicFile,
    air_quality,
    auto_mpg,
    bank_marketing,
    commented,
    pandas_index,
    preamble,
)
from running import Place

pytestmark = pytest.mark.long

# The others differ from these in what is understood alone: tests/unit/data/test_public_files.py.
SEVERAL = (air_quality, auto_mpg, bank_marketing, commented, pandas_index, preamble)


@pytest.mark.parametrize("make", SEVERAL, ids=lambda make: make.__name__)
def test_a_public_file_trains_says_what_it_understood_and_is_evaluated(make, tmp_path: Path) -> None:
    file: PublicFile = make()
    source = f"data.source=csv:{file.write(tmp_path)}"
    place = Place(tmp_path, {})
    trained = place.run(
        "train", source, *file.overrides, "scale.num_workers=0", "train.epochs=20", "run_name=a"
    )
    assert trained.code == 0, trained.out + trained.err
    assert trained.result["is_verified"]
    for said in file.said:
        assert said in trained.out + trained.err
    evaluated = place.run("evaluate", "runs/shoal/a", source)
    assert evaluated.code == 0, evaluated.out + evaluated.err
    assert f"all rows: {ROWS}" in evaluated.out
    metrics = evaluated.result["metrics"]
    assert metrics["accuracy"] > 0.75 if file.task == "classification" else metrics["r2"] > 0.75, metrics
