"""Two real workers share a model by FSDP: every optimizer that works on shards resumes to the bit there."""

import subprocess
import sys

import pytest

SCRIPT = """
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
from shoal.training.checkpoint.store import ShardedStore
from shoal.training.clock import Clock
from shoal.training.loop import TrainConfig, update
from shoal.training.optimizer import OPTIMIZERS, REFUSED, OptimConfig
from shoal.training.resume import resume_or_start

CPU = torch.device("cpu")

class Counting(torch.optim.Optimizer):
    '''Keeps texts and numbers besides a tensor, and counts in its groups.'''

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, count=0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                state = self.state[p]
                state["calls"] = state.get("calls", 0) + 1
                state["note"] = f"call {state['calls']}"
                state.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                p.sub_(state["mean"], alpha=group["lr"] / (group["count"] + state["calls"]))

def make_loop(group, name):
    torch.manual_seed(0)
    rows = Rows(torch.randn(8, 6), torch.randint(0, 2, (8,)))
    lanes = Lanes(16, 4, 0, group.data_rank, group.data_size)
    optim = OptimConfig(lr=0.01, name=name, groups={"*.bias": {"lr": 0.02}})
    return assemble_loop(
        MLP((6,), 2, width=16), Classification(2), ResidentShard(lanes, rows, {VALIDATION: rows}), optim,
        TrainConfig(), group, CPU, has_validation=True,
    )

def steps(loop, first, last):
    for step, batch in enumerate(loop.shard.batches(0, first), first):
        if step == last:
            break
        update(loop, batch, step, Clock())

def work(rank, root):
    dist.init_process_group("gloo", f"file://{root}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    group = make_group(CPU, ScaleConfig(strategy="fsdp", num_workers=2))
    usable = [name for name in OPTIMIZERS if name not in (*REFUSED, "rprop")]
    for name in (*usable, "__main__:Counting"):
        loop = make_loop(group, name)
        steps(loop, 0, 2)
        store = ShardedStore(RunFolder(f"{root}/{name.partition(':')[2] or name}"))
        states = group.gather(random_state())
        store.save(snapshot(loop.model, loop.optimizer, TrainingProgress(step=2), states), {}, b"{}")
        steps(loop, 2, 4)
        expected = gather_full_tensors(loop.model.state_dict(), keeps=True)
        resumed = make_loop(group, name)
        group.gather(None)
        assert resume_or_start(resumed, store, seed=5).step == 2
        steps(resumed, 2, 4)
        for key, tensor in gather_full_tensors(resumed.model.state_dict(), keeps=True).items():
            assert torch.equal(tensor, expected[key]), (name, key)
        if name.endswith("Counting"):
            state = resumed.optimizer.state_dict()
            assert [group["count"] for group in state["param_groups"]] == [4, 4]
            assert state["state"][0]["note"] == "call 4"
        if rank == 0:
            print(name, flush=True)
    group.gather(None)
    dist.destroy_process_group()

if __name__ == "__main__":
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(rank, sys.argv[1])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
"""


@pytest.mark.long
def test_every_optimizer_resumes_to_the_bit_with_a_model_that_workers_share(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {"nadam", "rmsprop", "asgd", "__main__:Counting"} <= set(run.stdout.split())
