"""Two and four real processes share models in every way, through `pair` and `four`, and leave what they found."""

import gc
import multiprocessing
import os
import signal
import time
import traceback
import uuid
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

from shoal.cluster import session
from shoal.config.loading import load as load_config
from shoal.data.loader import ResidentShard, Rows
from shoal.data.partition import partition_source
from shoal.data.sampler import Lanes
from shoal.distributed import dtensor_io
from shoal.distributed.parallelism import check_strategy, make_group
from shoal.distributed.process_group import SingleProcess
from shoal.distributed.sync_batchnorm import use_sync_batchnorm
from shoal.errors import CheckpointError, ConfigError, ModelError
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.models.transformer import FeedForward
from shoal.runs.config import RunConfig, ScaleConfig
from shoal.runs.resident import resident_shard
from shoal.runs.validate import validate
from shoal.runs.worker import WorkerSpec
from shoal.runs.worker import run_worker as train_a_run
from shoal.storage.records import CheckpointState, Manifest, Outcome
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.tasks.base import EvaluationRows
from shoal.tasks.classification import Classification
from shoal.training.assemble import assemble, assemble_loop
from shoal.training.checkpoint import store as store_module
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import (
    DATASET_INFO,
    OPTIMIZER,
    RANDOM,
    WEIGHTS,
    TrainingProgress,
    checkpoint_name,
    random_state,
    snapshot,
)
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore, ShardedStore
from shoal.training.clock import Clock
from shoal.training.evaluation import evaluate
from shoal.training.loop import TrainConfig, update
from shoal.training.optimizer import OptimConfig

CPU = torch.device("cpu")
CONTEXT, VOCABULARY, ROWS, BATCH = 8, 32, 37, 8  # 5 steps an epoch, the last of 5 rows

GPT = ModelConfig(name="gpt", width=32, depth=2, args={"heads": 4})
MUP = GPT.model_copy(update={"width": 64, "parametrization": "mup", "base_width": 32})
BERT = ModelConfig(name="bert", width=32, depth=1, args={"heads": 2})
MLP = ModelConfig(name="mlp", width=16, depth=2)
LARGE = ModelConfig(name="mlp", width=2048, depth=2)
ODD, NORMED, SPLIT = (ModelConfig(name=name) for name in ("odd", "normed", "split"))
ADAM = OptimConfig(lr=0.01, clip_norm=0.5, weight_decay=0.01, name="adamw")
SGD = OptimConfig(lr=0.05, name="sgd", clip_norm=1.0)


def dropping(config):
    return config.model_copy(update={"args": config.args | {"dropout": 0.3}})


LEARNT = {"gpt": (GPT, ADAM), "mup": (MUP, ADAM), "bert": (BERT, SGD), "mlp": (MLP, SGD)}
# These models learn with dropout too, and gpt's without it where it is resumed: these cases are in the long tests.
PLAIN = [(kind, name) for kind in ("gpt", "bert") for name in ("ddp", "fsdp", "tp")] + [("mlp", "ddp")]
LOSSES = [("mup", "fsdp"), ("mlp", "fsdp")]

# With what depends on the rows of a batch or draws random numbers.
LEARNT["gpt, dropout"] = (dropping(GPT), ADAM)
LEARNT["bert, dropout"] = (dropping(BERT), SGD)
LEARNT["mlp, dropout"] = (dropping(MLP), SGD)
LEARNT["split, dropout"] = (SPLIT, ADAM)
LEARNT["batchnorm"] = (NORMED, SGD)
LOSSES += [(f"{kind}, dropout", name) for kind in ("gpt", "bert") for name in ("ddp", "fsdp", "tp")]
LOSSES += [("mlp, dropout", "ddp"), ("batchnorm", "ddp"), ("batchnorm", "fsdp"), ("split, dropout", "tp")]

# Whole batches, the last one of an epoch, of 5 rows, and those after it, whose losses say what it changed.
STEPS, RESUMED_STEPS, ACCUMULATED_STEPS = (0, 7), (5, 8), (3, 6)

DEPENDS_ON_ROWS = ("gpt, dropout", "bert, dropout", "mlp, dropout", "batchnorm")
ACCUMULATED = [
    ("gpt, dropout", "fsdp"),
    ("gpt, dropout", "tp"),
    ("bert, dropout", "ddp"),
    ("mlp, dropout", "ddp"),
]
MORE_ACCUMULATED = [case for case in LOSSES if "dropout" in case[0] and case not in ACCUMULATED]
IN_MICRO_BATCHES = {"micro_batch_size": 3}

# Of the checkpoint, and of what is resumed.
RESUMED = [
    ("ddp", "ddp"),
    ("ddp", "fsdp"),
    ("ddp", "tp"),
    ("fsdp", "ddp"),
    ("fsdp", "fsdp"),
    ("bucket", "tp"),
]


class NextToken:
    """The task of predicting each token from those before it."""

    held_out_rows = EvaluationRows(1024, 1024)
    view, counts_terms = None, False

    name, sums_size, measures = "causal_lm", 2, ()

    def loss(self, outputs, batch):
        logits, targets = outputs[:, :-1].double(), batch.inputs[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def sums(self, outputs, batch):
        return torch.stack([torch.tensor(float(len(outputs))).double(), self.loss(outputs, batch)])


def shard_of(data_rank, data_size, is_text, held_out):
    torch.manual_seed(0)
    inputs = torch.randint(1, VOCABULARY, (ROWS, CONTEXT)) if is_text else torch.randn(ROWS, CONTEXT)
    targets = torch.randint(0, 3, (ROWS,))
    mine = slice(data_rank, None, data_size)
    held = slice(data_rank, held_out, data_size)
    return ResidentShard(
        Lanes(ROWS, BATCH, 0, data_rank, data_size),
        Rows(inputs[mine], targets[mine]),
        {"validation": Rows(inputs[held], targets[held])},
    )


class Odd(nn.Module):
    """Tied, frozen and unused parameters, a container, and statistics that differ from worker to worker."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(CONTEXT, CONTEXT), nn.Linear(CONTEXT, CONTEXT)
        self.second.weight = self.first.weight
        self.listed = nn.ModuleList([nn.Linear(CONTEXT, 1), nn.BatchNorm1d(CONTEXT)])
        self.frozen = nn.Linear(CONTEXT, CONTEXT).requires_grad_(False)
        self.unused, self.offset = nn.Linear(4, 4), nn.Parameter(torch.ones(1))
        self.out = nn.Linear(CONTEXT, 3)

    def forward(self, x):
        x = self.listed[1](self.second(torch.relu(self.first(x))))
        return self.out(self.frozen(x) + self.listed[0](x) * self.offset)


def normed():
    """BatchNorm, dropout, and statistics that count for the next layer's."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(CONTEXT, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3),
    )  # fmt: skip


def split():
    """A GPT with dropout on the hidden units, which tensor parallelism divides."""
    model = build_model(dropping(GPT), (CONTEXT,), VOCABULARY, 0)
    for block in model.blocks:
        block.feed_forward.__class__ = DroppingFeedForward
        block.feed_forward.drop = nn.Dropout(0.3)
    return model


class DroppingFeedForward(FeedForward):
    def forward(self, x):
        return self.down(self.drop(F.gelu(self.up(x))))


class Training:
    """A worker's training by the loop's own `update`, step by step, at a learning rate that decays."""

    def __init__(self, collective, config, optim=ADAM, held_out=3, sync_batchnorm=True, **train):
        self.collective = collective
        is_text = config.name in ("gpt", "bert", "split")
        self.task = NextToken() if config.name in ("gpt", "split") else Classification(3)
        outputs = VOCABULARY if config.name == "gpt" else 3
        built = (config, (CONTEXT,), outputs, 0, VOCABULARY, "sequence_classification")
        own = {"odd": Odd, "normed": normed, "split": split}.get(config.name)
        self.model = own() if own else build_model(*built)
        self.shard = shard_of(collective.data_rank, collective.data_size, is_text, held_out)
        loop = assemble_loop(
            self.model,
            self.task,
            self.shard,
            optim,
            TrainConfig(**train),
            collective,
            CPU,
            seed=7,
            sync_batchnorm=sync_batchnorm,
        )
        self.loop = replace(loop, learning_rate=lambda step: optim.lr * 0.9**step)
        self.optimizer = loop.optimizer

    def run(self, first, last):
        """Make steps first + 1 to last; return their mean losses."""
        losses = []
        for step in range(first, last):
            batch = next(self.shard.batches(*divmod(step, self.shard.lanes.steps)))
            loss = update(self.loop, batch, step, Clock())
            losses.append(self.collective.all_reduce(loss.reshape(1)).item() / batch.count)
        return losses

    def evaluate(self):
        return evaluate(self.model, self.task, self.shard, "validation", self.collective).sums

    def whole(self):
        """Return weights and optimizer state, whole, by worker-independent names."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"{n}/{key}": value for n, values in state.items() for key, value in values.items()}
        return dtensor_io.gather_full_tensors(self.model.state_dict() | moments, keeps=True)

    def snapshot(self, step, best=None):
        progress = TrainingProgress(step, step * BATCH, {"best/step": float(best)} if best else {})
        return snapshot(self.model, self.optimizer, progress, [random_state()])

    def bytes_held(self):
        batch = next(self.shard.batches(0, 0))
        self.task.loss(self.loop.forward(batch.inputs), batch).backward()
        parameters = list(self.model.parameters())
        states = [value for values in self.optimizer.state.values() for value in values.values()]
        return sum(
            local(tensor).nbytes
            for tensor in [*parameters, *(parameter.grad for parameter in parameters), *states]
        )


def local(tensor):
    return tensor.to_local() if dtensor_io.is_dtensor(tensor) else tensor


def resumed(collective, config, store, name, optim=ADAM):
    """Train from a checkpoint at step 5; return what was loaded, and the losses."""
    training = Training(collective, config, optim)
    restore(store.open(name), training.model, training.optimizer)
    return {"loaded": training.whole(), "losses": training.run(*RESUMED_STEPS)}


def saved(training, store):
    """Save a training that made 5 steps; return what it held, and the losses of the next ones."""
    saver = BackgroundSaver(store, {"attempt": 1}, b"{}")
    saver.save(training.snapshot(5))
    kept, more = training.whole(), training.run(*RESUMED_STEPS)
    saver.close()
    return {"kept": kept, "losses": more}


def losses(groups, cases, steps=STEPS, **train):
    return {(kind, name): Training(groups[name], *LEARNT[kind], **train).run(*steps) for kind, name in cases}


def groups_of_two():
    return {
        name: make_group(CPU, ScaleConfig(strategy=name, num_workers=2)) for name in ("ddp", "fsdp", "tp")
    }


def more_of_a_pair(rank, folder, bucket):
    groups = groups_of_two()
    accumulated = losses(groups, MORE_ACCUMULATED, ACCUMULATED_STEPS, **IN_MICRO_BATCHES)
    return {"losses": losses(groups, PLAIN), "accumulated": accumulated}


def pair(rank, folder, bucket):
    found = {"bytes": {}, "resumed": {}, "odd": {}}
    groups = groups_of_two()
    ddp, fsdp, tp = groups.values()
    found["data"] = {name: (group.data_rank, group.data_size) for name, group in groups.items()}
    found["transport"] = {name: group.transport for name, group in groups.items()}
    found["losses"] = losses(groups, LOSSES)
    for name in ("fsdp", "tp"):
        found["losses"]["bf16", name] = Training(groups[name], GPT, precision="bf16").run(0, 5)
    found["accumulated"] = losses(groups, ACCUMULATED, ACCUMULATED_STEPS, **IN_MICRO_BATCHES)
    for name in ("ddp", "fsdp"):
        training = Training(groups[name], ODD, SGD, sync_batchnorm=False)
        found["odd"][name] = (training.run(0, 5), training.evaluate(), training.whole())

    # Rows to evaluate: 2 and 1, one a batch; then 1 and none.
    Classification.held_out_rows = NextToken.held_out_rows = EvaluationRows(1, 1)
    found["evaluated"] = {
        (name, rows): Training(group, GPT, held_out=rows).evaluate()
        for name, group in groups.items()
        for rows in (3, 1)
    }

    for name in ("ddp", "fsdp"):
        training = Training(groups[name], LARGE)
        training.run(0, 1)
        found["bytes"][name] = training.bytes_held()

    dropout = Training(tp, GPT.model_copy(update={"args": {"heads": 4, "dropout": 0.2}}))
    torch.manual_seed(tp.data_rank)
    dropout.run(0, 5)
    found["after dropout"] = {name: local(p).clone() for name, p in dropout.model.named_parameters()}

    # Saved under one strategy, resumed under another.
    stores = {
        "ddp": CheckpointStore(RunFolder(f"{folder}/ddp")),
        "fsdp": ShardedStore(RunFolder(f"{folder}/fsdp")),
        "bucket": ShardedStore(RunFolder(bucket)),
    }
    training = Training(ddp, GPT)
    training.run(0, 5)
    if rank == 0:
        stores["ddp"].save(training.snapshot(5), {}, b"{}")
    found["ddp"] = {"kept": training.whole(), "losses": training.run(*RESUMED_STEPS)}
    training = Training(fsdp, GPT)
    training.run(0, 5)
    taken = training.snapshot(5)
    found["fsdp"] = saved(training, stores["fsdp"])
    stores["bucket"].save(taken, {"attempt": 7}, b"prepared")
    for source, name in RESUMED:
        found["resumed"][source, name] = resumed(groups[name], GPT, stores[source], "step-000005")
    sgd = ShardedStore(RunFolder(f"{folder}/sgd"))
    training = Training(fsdp, MLP, SGD)
    training.run(0, 5)
    found["sgd"] = saved(training, sgd)
    try:
        resumed(fsdp, MUP, stores["fsdp"], "step-000005")
    except CheckpointError as error:
        found["other model"] = str(error)

    # The best waits, and the last gets whole weights.
    training, store = Training(fsdp, GPT), ShardedStore(RunFolder(f"{folder}/best"), keep=1)
    saver = BackgroundSaver(store, {}, b"{}")
    for step in (1, 2):
        training.run(step - 1, step)
        saver.hold(training.snapshot(step, best=step))
    found["best"] = training.whole()
    for step in (3, 4):
        training.run(step - 1, step)
        saver.save(training.snapshot(step, best=2))
    saver.wait()
    found["last"] = weights = dtensor_io.gather_full_tensors(training.model.state_dict(), keeps=rank == 0)
    if rank == 0:
        store.add_weights(4, weights)

    found["drawn"] = {builder: built(ddp, builder) for builder in ("from_numpy", "from_own_generator")}
    found["run"] = a_run(RunFolder(f"{folder}/run"), ScaleConfig(strategy="fsdp", num_workers=2))

    # One that cannot write, then one that dies.
    broken = ShardedStore(RunFolder(f"{folder}/broken"))
    broken.save(training.snapshot(1), {}, b"{}")
    described = store_module._file_digest
    if rank == 1:
        store_module._file_digest = lambda _: (_ for _ in ()).throw(OSError("no space left on worker 1"))
    try:
        broken.save(training.snapshot(2), {}, b"{}")
    except OSError as error:
        found["broken"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    store_module._file_digest = described if rank == 0 else lambda _: os.kill(os.getpid(), signal.SIGKILL)
    try:
        broken.save(training.snapshot(3), {}, b"{}")
    except RuntimeError as error:
        found["bereft"] = str(error)
    return found


def from_numpy(inputs, outputs, random=np.random):
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = torch.from_numpy(random.normal(size=(outputs, inputs)).astype("float32"))
    return layer


def from_own_generator(inputs, outputs):
    return from_numpy(inputs, outputs, np.random.default_rng())


def built(group, builder):
    """Return the weights of a run whose builder draws random numbers, or why they are refused."""
    np.random.seed(group.rank)
    config = load_config(RunConfig, None, [f"model.name={__name__}:{builder}", "scale.num_workers=0"])
    plan = validate(config, session.connect)
    parts = partition_source(plan.source, plan.preprocessing, plan.dataset_info, group.data_size)
    spec = WorkerSpec(config, "", 1, plan.dataset_info, plan.preprocessing)
    shard = resident_shard(spec, parts[group.data_rank], group.data_rank, group.data_size, CPU)
    try:
        return assemble(config, plan.dataset_info.transform, shard, group, CPU).model.state_dict()
    except ModelError as error:
        return str(error)


def a_run(folder, scale, epochs=2):
    """Train a run as a Ray worker does, without Ray; return what it says of itself."""
    settings = [
        f"train.epochs={epochs}",
        "model.width=16",
        "data.global_batch_size=64",
        "scale.num_workers=0",
    ]
    config = load_config(RunConfig, None, ["data.source=sklearn:digits", *settings])
    plan = validate(config, session.connect)
    config = config.model_copy(update={"scale": scale})
    group = make_group(CPU, scale) if scale.num_workers else SingleProcess()
    if group.rank == 0:
        folder.create()
        folder.create_identity(name="run", experiment="shoal", tracking_uri="")
    group.gather(None)
    spec = WorkerSpec(config, folder.uri, 1, plan.dataset_info, plan.preprocessing)
    part = partition_source(plan.source, plan.preprocessing, plan.dataset_info, group.data_size)[
        group.data_rank
    ]
    shard = resident_shard(spec, part, group.data_rank, group.data_size, CPU)
    train_a_run(spec, shard, group, CPU, watches_system=False)
    group.gather(None)
    return folder.load(Outcome).model_dump()


def normalized(mine, group=None):
    """Normalize rows of nine twice; return outputs, gradients of the rows and the layer, and statistics.

    Of four workers the last has no row of its own.
    """
    draw = torch.Generator().manual_seed(0)
    x, weight = 3.0 * torch.randn(9, 6, 5, generator=draw) + 20.0, torch.randn(9, 6, 5, generator=draw)
    model, counts = nn.Sequential(nn.BatchNorm1d(6)), group is None or group.rank < 3
    model[0].weight.data = torch.arange(1.0, 7.0)
    if group:
        use_sync_batchnorm(model, group.all_reduce, lambda: counts)
    rows = x[mine].clone().requires_grad_()
    model(rows)
    y = model(rows)
    ((y * weight[mine]).sum() * float(counts)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    gradients = [group.all_reduce(gradient) for gradient in gradients] if group else gradients
    return y.detach(), rows.grad, gradients, list(model.buffers()), model.eval()(rows).detach()


def four(rank, folder, bucket):
    group = make_group(CPU, ScaleConfig(strategy="fsdp+tp", num_workers=4))
    training, store = Training(group, GPT), ShardedStore(RunFolder(f"{folder}/both"))
    found = {"data": (group.data_rank, group.data_size), "losses": training.run(0, 5)}
    ddp = make_group(CPU, ScaleConfig(num_workers=4))
    found["ddp"] = {kind: Training(ddp, *LEARNT[kind]).run(*STEPS) for kind in DEPENDS_ON_ROWS}
    found["dropout"] = Training(group, *LEARNT["gpt, dropout"]).run(*STEPS)
    found["normalized"] = normalized(slice(rank, None, 3) if rank < 3 else slice(1), ddp)
    found["evaluated"] = training.evaluate()
    found["both"] = saved(training, store)
    found["resumed"] = resumed(group, GPT, CheckpointStore(RunFolder(f"{folder}/alone")), "step-000005")
    found["again"] = resumed(group, GPT, store, "step-000005")
    return found


def run_worker(job, rank, size, folder, bucket, environment):
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gc.freeze()  # or each collection copies the pages of what was imported before the fork
    found = {}
    try:
        dist.init_process_group(
            "gloo", f"file://{folder}/meet", timedelta(seconds=60), rank=rank, world_size=size
        )
        found = job(rank, folder, bucket)
    except BaseException:
        found["problem"] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    os._exit(0)  # no goodbye to a group that has lost a member


def crew(job, size, folder, bucket=""):
    """Let processes do a job; return what each found, by rank."""
    context = multiprocessing.get_context("forkserver")
    # Imported once: they take each process seconds.
    preloaded = [f"distributed.{name}" for name in ("tensor.parallel", "fsdp", "checkpoint")]
    preloaded += ["_dynamo", "_inductor"]
    context.set_forkserver_preload([f"torch.{name}" for name in preloaded] + ["pytest", "sklearn.datasets"])
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    workers = [
        context.Process(target=run_worker, args=(job, rank, size, str(folder), bucket, environment))
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    until = time.monotonic() + 300
    for worker in workers:
        worker.join(timeout=max(0.0, until - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()
    found = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]
    assert [one["problem"] for one in found if "problem" in one] == []
    return found


@pytest.fixture(scope="module")
def bucket(s3):
    return f"{s3}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="module")
def two(folder, bucket):
    return crew(pair, 2, folder, bucket)


@pytest.fixture(scope="module")
def more_of_two(tmp_path_factory):
    return crew(more_of_a_pair, 2, tmp_path_factory.mktemp("more"))


@pytest.fixture(scope="module")
def all_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    training = Training(SingleProcess(), GPT)
    training.run(0, 5)
    CheckpointStore(RunFolder(f"{folder}/alone")).save(training.snapshot(5), {}, b"{}")
    return folder, crew(four, 4, folder)


@pytest.fixture(scope="module")
def alone():
    """One worker's training: its losses, and all that it held after 5 steps."""
    training = Training(SingleProcess(), GPT)
    first, kept = training.run(0, 5), training.whole()
    return {"first": first, "kept": kept, "losses": training.run(*RESUMED_STEPS)}


def close(losses, expected, relative=1e-4):
    assert losses == pytest.approx(expected, rel=relative)


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


# The same training, however the model is shared.


def test_members_of_a_tensor_parallel_group_see_the_same_part_of_the_data(two, all_four):
    assert [result["data"] for result in two] == [
        {"ddp": (0, 2), "fsdp": (0, 2), "tp": (0, 1)},
        {"ddp": (1, 2), "fsdp": (1, 2), "tp": (0, 1)},
    ]
    assert [result["data"] for result in all_four[1]] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert two[0]["transport"] == {"ddp": "shared memory", "fsdp": "gloo", "tp": "gloo"}


@pytest.mark.parametrize(("kind", "strategy"), LOSSES)
def test_losses_with_clipped_gradients_are_those_of_one_worker(two, kind, strategy):
    assert_losses_of_one_worker(two, kind, strategy)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "strategy"), PLAIN)
def test_losses_without_dropout_are_those_of_one_worker(more_of_two, kind, strategy):
    assert_losses_of_one_worker(more_of_two, kind, strategy)


def assert_losses_of_one_worker(workers, kind, strategy):
    expected = Training(SingleProcess(), *LEARNT[kind]).run(*STEPS)
    assert min(expected) < expected[0]
    for result in workers:
        close(result["losses"][kind, strategy], expected)


def test_a_builder_that_draws_from_numpy_builds_the_same_weights_on_every_worker(two):
    first, second = (result["drawn"]["from_numpy"] for result in two)
    same(first, second)


def test_a_builder_that_builds_other_weights_on_each_worker_is_refused_on_all(two):
    for result in two:
        message = result["drawn"]["from_own_generator"]
        assert (
            "test_parallelism:from_own_generator' built another 'weight' on worker 1 than on worker 0"
            in message
        )


@pytest.mark.parametrize("kind", DEPENDS_ON_ROWS)
def test_dropout_and_batchnorm_give_four_workers_the_losses_of_one(all_four, kind):
    expected = Training(SingleProcess(), *LEARNT[kind]).run(*STEPS)
    for result in all_four[1]:
        close(result["ddp"][kind], expected)
        if kind == "gpt, dropout":
            close(result["dropout"], expected)


def test_batchnorm_over_workers_is_that_over_all_rows_where_they_have_unequally_many_or_none(all_four):
    outputs, of_rows, of_layer, statistics, evaluated = normalized(slice(None))
    for rank, result in enumerate(all_four[1][:3]):
        found = result["normalized"]
        expected = (outputs[rank::3], of_rows[rank::3], of_layer, statistics, evaluated[rank::3])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not all_four[1][3]["normalized"][1].any()


@pytest.mark.parametrize("workers", ["two", pytest.param("more_of_two", marks=pytest.mark.long)])
def test_dropout_is_the_same_in_micro_batches(request, workers):
    for (kind, _), found in request.getfixturevalue(workers)[0]["accumulated"].items():
        close(found, Training(SingleProcess(), *LEARNT[kind]).run(*ACCUMULATED_STEPS))


def test_without_dropout_the_losses_are_others():
    for kind, config in (("gpt, dropout", GPT), ("mlp, dropout", MLP)):
        plain = Training(SingleProcess(), config, LEARNT[kind][1]).run(0, 3)
        assert Training(SingleProcess(), *LEARNT[kind]).run(0, 3) != pytest.approx(plain, rel=1e-3)


def test_tied_frozen_unused_parameters_and_statistics_are_under_fsdp_what_they_are_under_ddp(two):
    for result in two:
        (losses, sums, tensors), (expected, expected_sums, expected_tensors) = (
            result["odd"]["fsdp"],
            result["odd"]["ddp"],
        )
        close(losses, expected)
        torch.testing.assert_close(sums, expected_sums, rtol=1e-4, atol=1e-4)
        assert tensors.keys() == expected_tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected_tensors[name], rtol=1e-3, atol=1e-4)


def test_fsdp_and_tensor_parallelism_together_give_the_losses_of_one_worker(all_four, alone):
    for result in all_four[1]:
        close(result["losses"] + result["both"]["losses"], alone["first"] + alone["losses"])


def test_under_bfloat16_losses_are_those_of_one_worker_within_its_rounding(two):
    expected = Training(SingleProcess(), GPT, precision="bf16").run(0, 5)
    for strategy in ("fsdp", "tp"):
        close(two[0]["losses"]["bf16", strategy], expected, 1e-2)


@pytest.mark.parametrize("rows", [3, 1])
def test_evaluation_counts_each_row_once_where_workers_have_unequally_many_or_none(two, rows):
    expected = Training(SingleProcess(), GPT, held_out=rows).evaluate()
    assert expected[0] == rows
    for result in two:
        for strategy in ("ddp", "fsdp", "tp"):
            torch.testing.assert_close(result["evaluated"][strategy, rows], expected, rtol=1e-5, atol=1e-5)


def test_evaluation_counts_each_row_once_under_both(all_four, monkeypatch):
    training = Training(SingleProcess(), GPT)
    training.run(0, 5)
    for result in all_four[1]:
        torch.testing.assert_close(result["evaluated"], training.evaluate(), rtol=1e-5, atol=1e-5)


def test_what_a_tensor_parallel_group_holds_alike_stays_so_under_dropout(two):
    first, second = (result["after dropout"] for result in two)
    whole = [name for name in first if "norm" in name or name == "embedding.weight" or "project.bias" in name]
    assert len(whole) == 13
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert not torch.equal(
        first["blocks.0.attention.query.weight"], second["blocks.0.attention.query.weight"]
    )


def test_under_fsdp_a_worker_holds_half_of_parameters_gradients_and_optimizer_state(two):
    for result in two:
        assert result["bytes"]["ddp"] > 4 * 4 * 1_000_000
        assert result["bytes"]["fsdp"] <= 0.55 * result["bytes"]["ddp"]


# Checkpoints.


@pytest.mark.parametrize(("source", "strategy"), RESUMED)
def test_a_checkpoint_resumes_under_any_strategy_with_the_same_bits_and_losses(two, source, strategy):
    origin = "ddp" if source == "ddp" else "fsdp"
    for result in two:
        same(result["resumed"][source, strategy]["loaded"], result[origin]["kept"])
        close(result["resumed"][source, strategy]["losses"], result[origin]["losses"])


@pytest.mark.parametrize("source", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_workers_resumes_in_one_process_without_a_group(two, folder, source):
    found = resumed(SingleProcess(), GPT, CheckpointStore(RunFolder(f"{folder}/{source}")), "step-000005")
    same(found["loaded"], two[0][source]["kept"])
    close(found["losses"], two[0][source]["losses"])


def test_momentum_of_sgd_resumes_in_one_process(two, folder):
    found = resumed(SingleProcess(), MLP, CheckpointStore(RunFolder(f"{folder}/sgd")), "step-000005", SGD)
    same(found["loaded"], two[0]["sgd"]["kept"])
    close(found["losses"], two[0]["sgd"]["losses"])


def test_a_checkpoint_of_both_ways_resumes_in_one_process_and_the_other_way_round(all_four, alone):
    folder, workers = all_four
    found = resumed(SingleProcess(), GPT, CheckpointStore(RunFolder(f"{folder}/both")), "step-000005")
    same(found["loaded"], workers[0]["both"]["kept"])
    close(found["losses"], alone["losses"])
    for result in workers:
        same(result["resumed"]["loaded"], alone["kept"])
        same(result["again"]["loaded"], result["both"]["kept"])
        close(result["resumed"]["losses"], alone["losses"])
        close(result["again"]["losses"], alone["losses"])


def test_a_checkpoint_in_an_object_store_is_whole(two, bucket):
    store = CheckpointStore(RunFolder(bucket))
    assert store.latest() == ("step-000005", [])
    assert store.state("step-000005").attempt == 7
    assert RunFolder(bucket).read(f"{CHECKPOINTS}/step-000005/{DATASET_INFO}") == b"prepared"


def test_a_tensor_of_a_sharded_checkpoint_is_one_request_a_part(two, bucket, object_store):
    alone, checkpoint = Training(SingleProcess(), GPT), CheckpointStore(RunFolder(bucket)).open("step-000005")
    parts = len(checkpoint.shards()._index.storage_data)
    before = len(object_store.requests)
    restore(checkpoint, alone.model, alone.optimizer)
    read = [
        line for _, line in object_store.requests[before:] if line.startswith("GET") and ".distcp" in line
    ]
    assert len(read) <= parts
    same(alone.whole(), two[0]["fsdp"]["kept"])


def test_every_worker_writes_its_own_file_and_the_manifest_lists_them_all(two, folder):
    run = RunFolder(f"{folder}/fsdp")
    files = run.load(Manifest, inside=f"{CHECKPOINTS}/step-000005").files
    common = {dtensor_io.INDEX, OPTIMIZER, RANDOM, CheckpointState.file, DATASET_INFO}
    assert set(files) == common | {"__0_0.distcp", "__1_0.distcp"}
    sizes = [files[f"__{rank}_0.distcp"].bytes for rank in range(2)]
    held = 2 * sum(tensor.nbytes for tensor in two[0]["fsdp"]["kept"].values() if tensor.ndim) // 3
    assert min(sizes) > 0.4 * held
    assert CheckpointStore(run).latest() == ("step-000005", [])


def test_a_damaged_shard_is_found_and_its_checkpoint_passed_over(two, folder, tmp_path):
    run, copy = RunFolder(f"{folder}/best"), RunFolder(str(tmp_path))
    for name in CheckpointStore(run).names():
        copy.copy_folder(run, f"{CHECKPOINTS}/{name}", last=Manifest.file)
    shard = f"{CHECKPOINTS}/step-000004/__1_0.distcp"
    data = bytearray(copy.read(shard))
    data[len(data) // 2] ^= 1
    copy.write(shard, bytes(data))
    name, (complaint,) = CheckpointStore(copy).latest()
    assert name == "step-000002"
    assert "__1_0.distcp does not match" in complaint


def test_the_best_waits_as_shards_and_is_kept_beside_the_last(two, folder):
    store = CheckpointStore(RunFolder(f"{folder}/best"))
    assert store.names() == ["step-000002", "step-000004"]
    training = Training(SingleProcess(), GPT)
    restore(store.open("step-000002"), training.model, training.optimizer)
    same(training.whole(), two[0]["best"])


def test_the_last_checkpoint_has_whole_weights_besides(two, folder):
    run = RunFolder(f"{folder}/best")
    assert CheckpointStore(run).latest() == ("step-000004", [])
    same(load(run.read(f"{CHECKPOINTS}/step-000004/{WEIGHTS}")), two[0]["last"])
    assert two[1]["last"] == {}
    assert not run.exists(f"{CHECKPOINTS}/step-000002/{WEIGHTS}")


def test_a_checkpoint_of_another_model_is_refused_by_the_tensor_that_differs(two):
    for result in two:
        assert "is of another model (model/blocks.0." in result["other model"]


def test_what_one_worker_cannot_write_is_an_error_on_all_and_no_checkpoint(two, folder):
    assert [result["broken"] for result in two] == ["no space left on worker 1"] * 2
    assert CheckpointStore(RunFolder(f"{folder}/broken")).latest() == ("step-000001", [])


def test_a_worker_that_is_killed_while_it_writes_leaves_no_checkpoint(two, folder):
    assert "broken" in two[1]
    assert "bereft" not in two[1]
    assert "onnection" in two[0]["bereft"]
    run = RunFolder(f"{folder}/broken")
    assert CheckpointStore(run).latest() == ("step-000001", [])
    assert os.listdir(run.local(CHECKPOINTS)) == ["step-000001"]


def test_a_sharded_run_ends_like_one_of_one_worker_with_its_weights_in_the_last_checkpoint(
    two, folder, tmp_path
):
    outcome = two[0]["run"]
    expected = a_run(RunFolder(str(tmp_path)), ScaleConfig(num_workers=0))
    assert outcome["progress"]["step"] == expected["progress"]["step"]
    close(outcome["val_metrics"]["val/loss"], expected["val_metrics"]["val/loss"])
    close(outcome["progress"]["metrics"]["val/loss"], expected["progress"]["metrics"]["val/loss"])
    name = f"{CHECKPOINTS}/{checkpoint_name(outcome['progress']['step'])}/{WEIGHTS}"
    weights = load(RunFolder(f"{folder}/run").read(name))
    for key, tensor in load(RunFolder(str(tmp_path)).read(name)).items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


# What cannot be shared is refused before anything starts.


def gpt(width=48, heads=3):
    return build_model(ModelConfig(name="gpt", width=width, depth=1, args={"heads": heads}), (CONTEXT,), 8, 0)


def test_tensor_parallelism_of_a_model_without_blocks_is_refused():
    model = build_model(MLP, (4,), 2, 0)
    check_strategy(model, ScaleConfig(strategy="fsdp"))
    with pytest.raises(
        ModelError, match=r"class MLP has no `blocks`: scale\.strategy=tp .* scale\.strategy=fsdp"
    ):
        check_strategy(model, ScaleConfig(strategy="tp"))
    resnet = build_model(ModelConfig(name="resnet", width=8, depth=18), (3, 8, 8), 2, 0)
    with pytest.raises(ModelError, match=r"block of ResNet has no nn\.Linear named `attention\.query`"):
        check_strategy(resnet, ScaleConfig(strategy="tp"))


def test_parameters_beside_modules_are_refused_under_tensor_parallelism():
    model = gpt(heads=2)
    model.offset = nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match=r"module 'GPT' holds parameters and modules"):
        check_strategy(model, ScaleConfig(strategy="tp"))


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (
            {"strategy": "tp", "num_workers": 2},
            r"3 attention heads .* 2 workers .*heads: 4.*scale\.num_workers",
        ),
        ({"strategy": "fsdp+tp", "num_workers": 4}, r"3 attention heads .* 2 workers .*scale\.tp_size"),
    ],
)
def test_heads_that_do_not_divide_among_the_workers_are_refused(scale, expected):
    with pytest.raises(ModelError, match=expected):
        check_strategy(gpt(), ScaleConfig(**scale))
    check_strategy(gpt(), ScaleConfig(strategy="tp", num_workers=3))


def test_a_parameter_without_a_dimension_is_refused_under_fsdp():
    model = nn.Linear(2, 2)
    model.gain = nn.Parameter(torch.tensor(1.0))
    check_strategy(model, ScaleConfig())
    with pytest.raises(ModelError, match=r"'gain' has no dimension: .*fsdp.* shape \(1,\)"):
        check_strategy(model, ScaleConfig(strategy="fsdp"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["strategy=fsdp", "num_workers=0"],
            r"fsdp with scale\.num_workers=0 \(0 workers\).*scale\.strategy=ddp",
        ),
        (["strategy=fsdp+tp", "num_workers=3"], r"num_workers=3 does not divide .*tp_size=2"),
        (["strategy=fsdp+tp", "num_workers=4", "tp_size=3"], r"num_workers=4 does not divide .*tp_size=3"),
        (["strategy=tp", "tp_size=2"], r"tp_size=2 with scale\.strategy=tp: only fsdp\+tp"),
        (["strategy=zero3"], r"scale\.strategy='?zero3"),
    ],
)
def test_a_strategy_that_does_not_fit_the_workers_is_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(RunConfig, None, [f"scale.{setting}" for setting in settings])


@pytest.mark.parametrize("setting", ["train.ema=0.9", "train.precision=fp16", "train.micro_batch_size=auto"])
def test_what_needs_the_weights_as_a_whole_is_refused_where_they_are_divided(setting):
    load_config(RunConfig, None, [setting])
    with pytest.raises(ConfigError, match=r"does not go with scale\.strategy=fsdp"):
        load_config(RunConfig, None, [setting, "scale.strategy=fsdp"])


def test_data_are_divided_among_tensor_parallel_groups():
    sizes = {
        settings: ScaleConfig(
            **dict(zip(("strategy", "num_workers", "tp_size"), settings, strict=False))
        ).data_size
        for settings in [("ddp", 4), ("fsdp", 4), ("tp", 4), ("fsdp+tp", 4), ("fsdp+tp", 8, 4), ("ddp", 0)]
    }
    assert list(sizes.values()) == [4, 4, 1, 2, 2, 0]
    config = load_config(
        RunConfig, None, ["data.global_batch_size=2", "scale.strategy=tp", "scale.num_workers=4"]
    )
    assert config.scale.tensor_size == 4
