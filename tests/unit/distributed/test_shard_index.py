"""The index of a sharded checkpoint: read as torch reads it, and nothing that it names is run."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from shoal.distributed import dtensor_io
from shoal.distributed.shard_index import INDEX, read_index
from shoal.errors import CheckpointError


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def folder(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save(tensors, storage_writer=FileSystemWriter(tmp_path / "checkpoint"), no_dist=True)
    return tmp_path / "checkpoint"


def test_an_index_is_read_as_torch_reads_it(folder):
    index, expected = read_index(folder), FileSystemReader(folder).read_metadata()
    assert index.state_dict_metadata == expected.state_dict_metadata
    assert index.storage_data == expected.storage_data
    assert dtensor_io.contents(folder)["b"] == (torch.Size([4]), torch.bfloat16)
    found = {"a": torch.zeros(2, 3)}
    dtensor_io.read(found, folder)
    assert torch.equal(found["a"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("place", ["whole", "storage_data", "key"])
def test_what_an_index_names_is_not_called(folder, tmp_path, place):
    bomb = Bomb(tmp_path / "canary")
    index = FileSystemReader(folder).read_metadata()
    if place == "storage_data":
        index.storage_data = bomb
    if place == "key":
        index.state_dict_metadata["a"] = bomb
    (folder / INDEX).write_bytes(pickle.dumps(bomb if place == "whole" else index))
    for load in (read_index, dtensor_io.contents, lambda at: dtensor_io.read({"a": torch.zeros(2, 3)}, at)):
        with pytest.raises(CheckpointError, match=r"\.metadata.*names (posix|nt)\.system"):
            load(folder)
    assert not (tmp_path / "canary").exists()


def test_an_entry_that_torch_would_unpickle_is_refused(folder):
    index = FileSystemReader(folder).read_metadata()
    index.state_dict_metadata["a"] = BytesStorageMetadata()
    (folder / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        dtensor_io.read({"a": torch.zeros(2, 3)}, folder)


def test_a_damaged_index_is_named(folder):
    (folder / INDEX).write_bytes(pickle.dumps(Metadata({}))[:20])
    with pytest.raises(CheckpointError, match="is no index of a sharded checkpoint"):
        read_index(folder)
