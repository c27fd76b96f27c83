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


def index_of(folder):
    return read_index((folder / INDEX).read_bytes(), str(folder))


def test_an_index_is_read_as_torch_reads_it(folder):
    index, expected = index_of(folder), FileSystemReader(folder).read_metadata()
    assert index.state_dict_metadata == expected.state_dict_metadata
    assert index.storage_data == expected.storage_data
    shards = dtensor_io.Shards(index, lambda file: (folder / file).open("rb"))
    assert shards.contents()["b"] == (torch.Size([4]), torch.bfloat16)
    found = {"a": torch.zeros(2, 3)}
    shards.fill(found)
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
    with pytest.raises(CheckpointError, match=r"\.metadata.*names (posix|nt)\.system"):
        index_of(folder)
    assert not (tmp_path / "canary").exists()


def test_an_entry_that_torch_would_unpickle_is_refused(folder):
    index = FileSystemReader(folder).read_metadata()
    index.state_dict_metadata["a"] = BytesStorageMetadata()
    (folder / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        index_of(folder)


def test_a_damaged_index_is_named(folder):
    (folder / INDEX).write_bytes(pickle.dumps(Metadata({}))[:20])
    with pytest.raises(CheckpointError, match="is no index of a sharded checkpoint"):
        index_of(folder)
