"""Two real workers resume from a checkpoint; their system calls say who has read what."""

from collections import Counter

import pytest

from power_cut import record

# Saves after a step, resumes with other objects, and checks that all is there.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import VALIDATION, Lanes
from shoal.distributed.dtensor_io import gather_full_tensors
from shoal.distributed.parallelism import make_group
from shoal.models.mlp import MLP
from shoal.runs.config import ScaleConfig
from shoal.storage.run_folder import RunFolder
from shoal.tasks.classification import Classification
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress, random_state, snapshot
from shoal.training.checkpoint.store import CheckpointStore, ShardedStore
from shoal.training.clock import Clock
from shoal.training.loop import TrainConfig, update
from shoal.training.optimizer import OptimConfig
from shoal.training.resume import resume_or_start

CPU = torch.device("cpu")

def make_loop(group, seed):
    torch.manual_seed(seed)
    model = MLP((6,), 2, width=256)
    rows = Rows(torch.randn(8, 6), torch.randint(0, 2, (8,)))
    lanes = Lanes(16, 4, 0, group.data_rank, group.data_size)
    return assemble_loop(
        model, Classification(2), ResidentShard(lanes, rows, {VALIDATION: rows}), OptimConfig(lr=0.01, name="adamw"),
        TrainConfig(), group, CPU, has_validation=True,
    )

def work(rank, root, meet, saved_as, resumed_as):
    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    group = make_group(CPU, ScaleConfig(strategy=saved_as, num_workers=2))
    loop = make_loop(group, seed=0)
    update(loop, next(loop.shard.batches(0, 0)), 0, Clock())
    store = (ShardedStore if group.is_sharded else CheckpointStore)(RunFolder(f"{root}/run"))
    states = group.gather(random_state())
    taken = snapshot(loop.model, loop.optimizer, TrainingProgress(step=1), states)
    if group.is_sharded or rank == 0:
        store.save(taken, {}, b"{}")
    expected = gather_full_tensors(loop.model.state_dict(), keeps=True)
    moments = gather_full_tensors(loop.optimizer.state_dict()["state"][0], keeps=True)
    group.gather(None)
    group = make_group(CPU, ScaleConfig(strategy=resumed_as, num_workers=2))
    loop = make_loop(group, seed=1)
    group.gather(None)
    ack("worker", rank, os.getpid())
    group.gather(None)
    assert resume_or_start(loop, store, seed=5).step == 1
    assert torch.equal(torch.get_rng_state(), states[rank]["torch"])
    for name, tensor in gather_full_tensors(loop.model.state_dict(), keeps=True).items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in gather_full_tensors(loop.optimizer.state_dict()["state"][0], keeps=True).items():
        assert torch.equal(tensor, moments[name]), name
    group.gather(None)
    dist.destroy_process_group()

if __name__ == "__main__":
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(rank, *sys.argv[1:])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
"""


@pytest.fixture
def read(tmp_path):
    """Save with two workers that share the model one way, resume another way.

    Returns:
        opens and bytes by (rank, file), and the size of each file.
    """
    root = tmp_path / "root"
    root.mkdir()

    def run(saved_as, resumed_as):
        calls = record(SCRIPT, root, tmp_path, str(tmp_path / "meet"), saved_as, resumed_as)
        begin = [number for number, call in enumerate(calls) if call[0] == "ack"]
        ranks = {calls[number][3]: int(calls[number][2]) for number in begin}
        opens, taken = Counter(), Counter()
        for kind, path, *more in calls[begin[-1] + 1 :]:
            key = (ranks[more[-1]], path.rpartition("/")[2]) if kind in ("open", "read") else None
            if kind == "open":
                opens[key] += 1
            elif kind == "read":
                taken[key] += int(more[0])
        (checkpoint,) = (root / "run" / "checkpoints").iterdir()
        return opens, taken, {path.name: path.stat().st_size for path in checkpoint.iterdir()}

    return run


@pytest.mark.long
def test_rank_0_reads_each_file_of_a_checkpoint_once_and_the_others_none(read):
    opens, taken, sizes = read("ddp", "ddp")
    assert opens == {(0, file): 1 for file in sizes}
    assert taken == {(0, file): size for file, size in sizes.items()}


@pytest.mark.long
def test_each_worker_reads_its_own_shard_once_and_rank_0_the_rest(read):
    opens, taken, sizes = read("fsdp", "fsdp")
    theirs = (1, "__0_0.distcp")  # rank 0 writes what all hold alike, such as the number of steps
    own = {(1, "__1_0.distcp"): 1}
    assert opens == own | {(0, file): 1 for file in sizes if file != "__1_0.distcp"} | {theirs: 1}
    assert taken.pop(theirs) < sizes["__0_0.distcp"] / 2
    assert taken == {(rank, file): sizes[file] for rank, file in opens if (rank, file) != theirs}


@pytest.mark.long
def test_a_worker_that_needs_several_shards_opens_each_of_them_once(read):
    opens, taken, sizes = read("fsdp", "ddp")
    shards = {"__0_0.distcp", "__1_0.distcp"}
    assert opens == {(0, file): 1 for file in sizes} | {(1, file): 1 for file in shards}
    for rank, file in opens:
        assert taken[rank, file] < 1.5 * sizes[file]  # parts of a file are found by reading its directories
