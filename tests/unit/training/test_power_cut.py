"""Real saves, recorded and cut short at every system call: what was acknowledged is there, whatever was not synced."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from power_cut import cuts, lay_out, record
from shoal.storage.durable import SCRATCH, is_scratch
from shoal.storage.records import (
    Identity,
    Lease,
    Lineage,
    Metadata,
    Outcome,
    Tracked,
    TrainResult,
)
from shoal.storage.run_folder import MODEL, RunFolder
from shoal.tracking.journal import JournalReader
from shoal.training.checkpoint.contents import TrainingProgress, checkpoint_step, snapshot
from shoal.training.checkpoint.store import CheckpointStore

pytestmark = pytest.mark.long

RECORDS = (Identity, Lease, Lineage, Metadata, Outcome, Tracked, TrainResult)

# Steps 1 to 5 with the second the best; two versions of the model; a step saved again; another run's checkpoint copied.
RUN = """
import sys
import torch
from pathlib import Path
from shoal.storage.records import Exploit, Identity, Lineage, Manifest
from shoal.storage.run_folder import CHECKPOINTS, MODEL, RunFolder
from shoal.tracking.journal import Journal
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import TrainingProgress, random_state, snapshot
from shoal.training.checkpoint.store import CheckpointStore

def taken(step, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(2, 2)
    progress = TrainingProgress(step=step, best={"best/step": float(min(step, 2)), "best/val_loss": 0.1})
    return snapshot(model, torch.optim.SGD(model.parameters(), 0.1), progress, [random_state()])

run, other = RunFolder(f"{sys.argv[1]}/run"), RunFolder(f"{sys.argv[1]}/other")
run.create()
run.acquire_lease()
run.create_identity(name="run", experiment="shoal")
journal, store = Journal(run, 1), CheckpointStore(run, keep=2)
saver = BackgroundSaver(store, {"attempt": 1}, b"{}")
for step in range(1, 6):
    journal.log(step, {"train/loss": 1.0 / step})
    journal.sync()
    saver.save(taken(step))
    saver.wait()
    ack("checkpoint", step)
    run.update(Identity, reason=str(step))
    ack("reason", step)
    run.renew_lease()
for version in ("1", "2"):
    with run.scratch(MODEL) as scratch:
        model = scratch / MODEL
        (model / "data").mkdir(parents=True)
        for file in ("MLmodel", "data/weights", "data/description"):
            (model / file).write_text(version)
        run.put_folder(model, MODEL, last="MLmodel")
    ack("model", version)
store.save(taken(5, seed=1), {"attempt": 1}, b"{}")
CheckpointStore(other).save(taken(5, seed=2), {"attempt": 1}, b"{}")
run.copy_folder(other, f"{CHECKPOINTS}/step-000005", last=Manifest.file)
run.save(Lineage(entries=[Exploit.model_validate({"iteration": 1, "step": 5, "from": "other", "point": {}})]))
ack("lineage", 1)
"""

# Two workers, each with half of every tensor, save four times.
SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.contents import Snapshot, TrainingProgress, random_state
from shoal.training.checkpoint.store import ShardedStore

def work(rank, root, meet):
    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    store = ShardedStore(RunFolder(f"{root}/run"), keep=1)
    for step in range(1, 5):
        half = distribute_tensor(torch.full((4, 2), float(step)), mesh, [Shard(0)])
        progress = TrainingProgress(step=step)
        store.save(Snapshot({"w": half}, {"state": {0: {"m": half}}}, progress, [random_state()] * 2), {}, b"{}")
        dist.barrier()
        if rank == 0:
            ack("checkpoint", step)
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

# A whole training as `jobs/train.py` does it, with its model packaged, verified and published.
JOB = """
import sys
from shoal.cluster import session
from shoal.config.loading import load
from shoal.runs.config import RunConfig
from shoal.runs.validate import validate
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.store import CheckpointStore
from shoal.workflows.train import train

save = CheckpointStore.save

def acknowledged(store, snapshot, *rest):
    name = save(store, snapshot, *rest)
    ack("checkpoint", snapshot.progress.step)
    return name

CheckpointStore.save = acknowledged
root, tracking_uri = sys.argv[1:]
config = load(RunConfig, None, [
    "data.source=sklearn:iris", "scale.num_workers=0", "train.epochs=2", "checkpoint.every_steps=2", "model.width=8",
    f"storage_path={root}", f"track.tracking_uri={tracking_uri}",
])
train(validate(config, session.connect), RunFolder(f"{root}/run"))
ack("result", 1)
"""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(tmp_path):
    """An empty folder, in memory where there is one: some hundred states are laid out."""
    memory = Path("/dev/shm")
    folder = (memory if memory.is_dir() else tmp_path) / f"power-cut-{tmp_path.name}-{id(tmp_path)}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def restarted(tree, disk):
    """The run folder as the next attempt finds it."""
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    lay_out(tree, disk)
    run = RunFolder(str(disk / "run"))
    run.clear_leftovers()
    assert [path.name for path in (disk / "run").rglob("*") if is_scratch(path.name)] == []
    return run


def last(acks, word):
    return max((int(ack[1]) for ack in acks if ack[0] == word), default=0)


def check_checkpoints(run, acks):
    """The newest is sound and not older than the last one that was acknowledged."""
    store = CheckpointStore(run)
    name, complaints = store.latest()
    assert (checkpoint_step(name) if name else 0) >= last(acks, "checkpoint")
    assert complaints == []
    return name


def check_records(run, acks):
    records = {kind: run.load(kind) for kind in RECORDS}  # raises for one that cannot be read
    for path in run.local().rglob("*.json"):
        json.loads(path.read_bytes())
    reason = records[Identity].reason if records[Identity] else None
    assert int(reason or 0) >= last(acks, "reason")
    assert len(records[Lineage].entries if records[Lineage] else []) >= last(acks, "lineage")


def check_model(run, acks):
    model = run.local(MODEL)
    if not model.exists():
        assert last(acks, "model") == 0
        return
    files = {
        path.relative_to(model).as_posix(): path.read_text() for path in model.rglob("*") if path.is_file()
    }
    assert files.keys() == {"MLmodel", "data/weights", "data/description"}
    assert len(set(files.values())) == 1
    assert int(files["MLmodel"]) >= last(acks, "model")


def check_journal(run, name):
    """It has all steps that the checkpoint counts as trained."""
    steps = {point.step for point in JournalReader(run).read()}
    assert steps >= set(range(1, checkpoint_step(name) + 1 if name else 1))


def check_next_save(run):
    model = torch.nn.Linear(2, 2)
    taken = snapshot(model, torch.optim.SGD(model.parameters(), 0.1), TrainingProgress(step=9), [])
    store = CheckpointStore(run, keep=1)
    store.save(taken, {}, b"{}")
    assert store.latest() == ("step-000009", [])


def test_a_power_cut_at_any_moment_leaves_what_was_acknowledged(root, disk, tmp_path):
    calls = record(RUN, root, tmp_path)
    count = 0
    for where, acks, tree in cuts(calls, root):
        run = restarted(tree, disk)
        try:
            name = check_checkpoints(run, acks)
            check_records(run, acks)
            check_model(run, acks)
            check_journal(run, name)
            if "all lost" in where:
                check_next_save(run)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        count += 1
    assert count > 200  # each call and each way of losing what it wrote


def test_a_power_cut_at_any_moment_leaves_a_sound_checkpoint_of_shards(root, disk, tmp_path):
    calls = record(SHARDED, root, tmp_path, str(tmp_path / "meet"))
    count = 0
    for where, acks, tree in cuts(calls, root):
        try:
            check_checkpoints(restarted(tree, disk), acks)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        count += 1
    assert count > 40


def test_a_power_cut_at_any_moment_leaves_a_training_that_resumes_or_is_complete(
    root, disk, tmp_path, mlflow_store
):
    calls = record(JOB, root, tmp_path, mlflow_store)
    model = f"run/{MODEL}/"
    card = f"{model}MLmodel"  # written once more when the model is published
    final = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    final = {path: data for path, data in final.items() if path.startswith(model)}
    count = 0
    for where, acks, tree in cuts(calls, root, ignores=lambda name: name.startswith(SCRATCH)):
        try:
            found = {path: tree[path] for path in tree if path.startswith(model) and tree[path] is not None}
            if found:
                assert yaml.safe_load(found[card])["flavors"]
                assert found | {card: b""} == final | {card: b""}
            rest = {path: data for path, data in tree.items() if not path.startswith(model)}
            run = restarted(rest, disk)
            check_checkpoints(run, acks)
            for record_kind in RECORDS:
                run.load(record_kind)
            for path in run.local().rglob("*.json"):
                json.loads(path.read_bytes())
            if last(acks, "result"):
                assert found
                assert run.load(TrainResult).status == run.identity().status == "FINISHED"
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        count += 1
    assert count > 40
