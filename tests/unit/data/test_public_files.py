"""Files in the formats that people keep in repositories are understood with at most two keys, and it is said how."""

import numpy as np
import pytest

from public_files import PUBLIC_FILES, ROWS
from shoal.config.loading import load
from shoal.data.dataset_info import inspect_source
from shoal.data.sources import base, files
from shoal.runs.config import RunConfig
from shoal.runs.data_notes import data_notes
from shoal.tasks.open_data import open_data, preprocessing_spec


@pytest.mark.parametrize("reading", ["whole", "in chunks"])
@pytest.mark.parametrize("make", PUBLIC_FILES, ids=lambda make: make.__name__)
def test_a_public_file_is_understood_and_it_is_said_how(make, reading, tmp_path, monkeypatch):
    if reading == "in chunks":
        monkeypatch.setattr(files, "IN_DRIVER_BYTES", 0)
        monkeypatch.setattr(base, "IN_DRIVER_BYTES", 0)
    file = make()
    assert len(file.keys) <= 2
    config = load(RunConfig, overrides=[f"data.source=csv:{file.write(tmp_path)}", *file.overrides])
    source = open_data(config.data, config.task, config.seed)
    info = inspect_source(source, preprocessing_spec(config.data, config.task, config.seed, source))
    notes, kinds = data_notes(source, info), {column.name: column.kind for column in info.columns}
    assert {name: kinds.get(name) for name in file.kinds} == file.kinds
    for said in file.said:
        assert any(said in note for note in notes), notes
    assert sum(info.rows.values()) == ROWS
    assert file.label not in kinds
    for name, count in file.missing.items():
        assert _missing(source, info, name) == count
        assert any(column.name == name and column.missing for column in info.columns)


def _missing(source, info, name):
    """Count the cells of all rows of which the transform makes nothing."""
    column = next(column for column in info.transform.columns if column.name == name)
    values = np.concatenate([block[name] for _, block in source.blocks()])
    if column.kind == "category":
        return int(column.features(values)[:, -1].sum())
    return int(np.isnan(column.read(values)).sum())
