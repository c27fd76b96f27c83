"""Training techniques, each against what it promises: less memory or time, and the same numbers."""

import contextlib
import gzip
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp.grad_scaler import GradScaler

from shoal.cluster import session
from shoal.config.loading import describe, load
from shoal.data.loader import Batch, ResidentShard, Rows
from shoal.data.partition import partition_source
from shoal.data.sampler import VALIDATION, Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.errors import ConfigError, ModelError, TrainingError
from shoal.models.gpt import GPT
from shoal.models.mlp import MLP
from shoal.models.resnet import ResNet
from shoal.runs.config import RunConfig
from shoal.runs.validate import validate
from shoal.runs.worker import OUTCOME, WorkerSpec, resident_shard, run_worker
from shoal.storage.run_folder import PROFILE, RunFolder
from shoal.tasks.classification import Classification
from shoal.training.accumulation import make_accumulation, split_batch
from shoal.training.activation_checkpointing import checkpoint_blocks
from shoal.training.checkpoint.contents import TrainingProgress, random_state, set_random_state, snapshot
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.compile import compile_model
from shoal.training.device_memory import is_out_of_memory, peak_bytes
from shoal.training.ema import EMA
from shoal.training.loop import Clock, TrainConfig, TrainingLoop, evaluate_split, train, update
from shoal.training.mixed_precision import make_scaler
from shoal.training.optimizer import OptimConfig, build_optimizer
from shoal.training.profiler import TABLE, TRACE, StepProfiler
from shoal.training.throughput import Workload, peak_flops

CPU = torch.device("cpu")
BATCH = 16


class Points:
    """A record that keeps its points."""

    def __init__(self):
        self.kept = []

    def log(self, step, metrics, at_s=None):
        self.kept.append((step, dict(metrics)))

    def flush(self):
        pass

    def of(self, key):
        return [metrics[key] for _, metrics in self.kept if key in metrics]


class Net(nn.Module):
    """Dropout and running statistics: what shows whether a step was begun from the same state."""

    def __init__(self, dropout=0.3, limit=math.inf, error=None):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm, self.drop = nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Dropout(dropout)
        self.leave = nn.Linear(32, 2)
        self.limit, self.error = limit, error
        self.rows = []

    def forward(self, x):
        hidden = self.drop(self.norm(self.enter(x)).relu())
        if self.training:
            self.rows.append(len(x))
            if len(x) > self.limit:
                raise self.error
        return self.leave(hidden)


def plain():
    torch.manual_seed(0)
    return MLP((6,), 2, width=32)


def rows(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return Rows.of(x, (x[:, 0] + x[:, 1] > 0).astype(np.int64), CPU)


class Run:
    """A worker on its own: 200 rows in batches of 16, the last of an epoch short."""

    def __init__(self, tmp_path, model, optim=None, scaler=None, is_stop_requested=None, **config):
        self.config = TrainConfig(**({"epochs": 2} | config))
        self.shard = ResidentShard(Lanes(200, BATCH, seed=0), rows(200, 0), {VALIDATION: rows(50, 1)})
        self.model, self.optim = model, OptimConfig(**({"lr": 0.01} | (optim or {})))
        self.optimizer = build_optimizer(model, self.optim)
        self.scaler = scaler or make_scaler(self.config.precision, "cpu")
        self.ema = EMA(model, self.config.ema) if self.config.ema else None
        self.record, self.progress, self.clock = Points(), TrainingProgress(), Clock()
        self.store = CheckpointStore(RunFolder(str(tmp_path)), keep=100)
        self.job = TrainingLoop(
            config=self.config,
            model=model,
            forward=model,
            optimizer=self.optimizer,
            learning_rate=lambda step: self.optim.lr,
            clip_norm=self.optim.clip_norm,
            task=Classification(2),
            shard=self.shard,
            collective=SingleProcess(),
            metric_log=self.record,
            save=self._save,
            is_stop_requested=lambda: bool(is_stop_requested and is_stop_requested(self.progress.step)),
            accumulation=make_accumulation(self.config.micro_batch_size, model, model, SingleProcess(), 1),
            scaler=self.scaler,
            ema=self.ema,
        )
        torch.manual_seed(1)

    def _save(self, progress, is_due):
        taken = snapshot(self.model, self.optimizer, progress, [random_state()], self.scaler, self.ema)
        self.store.save(taken, {}, b"{}")

    def train(self):
        self.ended = train(self.job, self.progress, self.clock)
        return self

    def resume(self):
        name, _ = self.store.latest()
        self.progress = restore(self.store, name, self.model, self.optimizer, self.scaler, self.ema)
        set_random_state(self.store.optimizer(name)["random"][0])
        return self

    @property
    def losses(self):
        return self.record.of("train/loss")


def assert_same(one, other):
    """Same weights and buffers, bit for bit."""
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def assert_resumes_exactly(make):
    """A run stopped within an epoch and taken up by other objects ends like its undisturbed twin."""
    twin = make("twin").train()
    stopped = make("run", is_stop_requested=lambda step: step >= 17, evaluate_every_steps=5).train()
    assert stopped.ended == "interrupted"
    assert stopped.progress.step % 13 != 0
    torch.manual_seed(999)
    resumed = make("run", evaluate_every_steps=5).resume().train()
    assert_same(twin.model, resumed.model)
    assert stopped.losses + resumed.losses == twin.losses
    return twin, resumed


@contextlib.contextmanager
def saved_bytes():
    """Yield a list whose one number is the bytes that autograd holds, at the most, for backward."""
    held, peak = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.nbytes
            held[0] += self.bytes
            peak[0] = max(peak[0], held[0])

        def __del__(self):
            held[0] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield peak


# Pieces of a batch.


def test_a_batch_in_pieces_gives_the_same_losses_as_a_whole_one(tmp_path):
    whole = Run(tmp_path / "whole", plain()).train()
    for size in (16, 8, 5, 4):
        pieces = Run(tmp_path / str(size), plain(), micro_batch_size=size).train()
        assert len(pieces.losses) == 26
        np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)
        assert pieces.progress.samples == 400


def test_no_forward_pass_sees_more_samples_than_a_piece_holds(tmp_path):
    run = Run(tmp_path, Net(), micro_batch_size=6, epochs=1).train()
    assert run.model.rows == [6, 6, 4] * 12 + [6, 2]  # 12 batches of 16, and one of 8


def test_pieces_take_as_much_less_memory_for_activations(tmp_path):
    def peak(size):
        run = Run(tmp_path, MLP((6,), 2, width=512, depth=6), micro_batch_size=size)
        weights = sum(
            parameter.nbytes for parameter in run.model.parameters()
        )  # they are held for backward too
        with saved_bytes() as most:
            update(run.job, next(run.shard.batches(0, 0)), 0, run.clock)
        return most[0] - weights

    assert peak(4) < 0.3 * peak(None)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (7, 2, [[2, 1], [2, "filler"], [2, "filler"]]),
        (9, 2, [[2, 1], [2, 1], [2, 1]]),
        (2, 2, [[1], [1], ["filler"]]),
        (1, 1, [[1], ["filler"], ["filler"]]),
        (30, 4, [[4, 4, 2], [4, 4, 2], [4, 4, 2]]),
    ],
)
def test_every_worker_runs_as_many_pieces_whatever_its_share_of_a_short_batch(count, size, expected):
    found = []
    for worker in range(3):
        x = torch.arange(float(len(range(worker, count, 3))))
        batch = Batch(x[:, None], x, count) if len(x) else Batch(torch.ones(1, 1), torch.ones(1), count, True)
        seen = []
        make_accumulation(size, nn.Identity(), nn.Identity(), SingleProcess(), 3).run(
            batch, lambda piece, seen=seen: seen.append(piece) or torch.zeros(())
        )
        assert all(piece.count == count for piece in seen)
        real = [piece.targets for piece in seen if not piece.is_filler]
        assert not real or torch.equal(torch.cat(real), x)
        found.append(["filler" if piece.is_filler else len(piece.targets) for piece in seen])
    assert found == expected


def test_pieces_of_a_batch_hold_its_rows_in_order():
    batch = Batch(torch.arange(10.0).view(5, 2), torch.arange(5), count=5)
    pieces = split_batch(batch, 2, 4)
    assert torch.equal(torch.cat([piece.inputs for piece in pieces[:3]]), batch.inputs)
    assert [piece.is_filler for piece in pieces] == [False, False, False, True]


class Counting(SingleProcess):
    """Knows whether a backward would add gradients up over workers."""

    def __init__(self):
        self.is_apart = False

    @contextlib.contextmanager
    def no_sync(self, forward):
        self.is_apart = True
        yield
        self.is_apart = False


@pytest.mark.parametrize(("size", "expected"), [(16, [False]), (8, [True, False]), (4, [True] * 3 + [False])])
def test_gradients_are_added_up_over_workers_in_the_last_piece_alone(size, expected):
    collective, seen = Counting(), []
    pieces = make_accumulation(size, nn.Identity(), nn.Identity(), collective, 1)
    batch = Batch(torch.zeros(16, 1), torch.zeros(16), 16)
    pieces.run(batch, lambda piece: seen.append(collective.is_apart) or torch.zeros(()))
    assert seen == expected


# Pieces that are halved.

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_pieces_and_repeats_the_step_from_the_same_state(tmp_path, error, caplog):
    fixed = Run(tmp_path / "fixed", Net(), micro_batch_size=4, optim={"clip_norm": 1.0}).train()
    model = Net(limit=5, error=error)
    found = Run(tmp_path / "auto", model, micro_batch_size="auto", optim={"clip_norm": 1.0}).train()
    assert model.rows[:6] == [16, 8, 4, 4, 4, 4]
    assert max(model.rows[2:]) == 4
    assert found.losses == fixed.losses
    assert_same(found.model, fixed.model)
    spec = [record.message for record in caplog.records if "out of memory" in record.message]
    assert [text.split("; ")[0] for text in spec] == [
        "out of memory with 16 samples at a time",
        "out of memory with 8 samples at a time",
    ]


def test_memory_that_does_not_hold_one_sample_is_told_with_the_remedy(tmp_path):
    model = Net(limit=0, error=ERRORS[0])
    model.norm = nn.Identity()  # which a single sample would not do for
    run = Run(tmp_path, model, micro_batch_size="auto")
    with pytest.raises(
        TrainingError, match=r"one sample at a time: set train\.activation_checkpointing=true"
    ):
        run.train()
    assert run.model.rows == [16, 8, 4, 2, 1]


def test_another_error_is_none_of_memory(tmp_path):
    run = Run(
        tmp_path,
        Net(limit=5, error=RuntimeError("mat1 and mat2 cannot be multiplied")),
        micro_batch_size="auto",
    )
    with pytest.raises(RuntimeError, match="multiplied"):
        run.train()
    assert run.model.rows == [16]
    assert not is_out_of_memory(ValueError("no"))


def test_with_enough_memory_auto_is_the_whole_part(tmp_path):
    whole, auto = (
        Run(tmp_path / "a", Net()).train(),
        Run(tmp_path / "b", Net(), micro_batch_size="auto").train(),
    )
    assert auto.losses == whole.losses
    assert_same(auto.model, whole.model)


# Half precision.


def test_fp16_computes_in_half_precision_and_keeps_weights_in_full(tmp_path):
    full, half = (Run(tmp_path / kind, plain(), precision=kind).train() for kind in ("fp32", "fp16"))
    assert {tensor.dtype for tensor in half.model.state_dict().values()} == {torch.float32}
    assert half.losses != full.losses
    np.testing.assert_allclose(half.losses[:5], full.losses[:5], rtol=0.02)
    assert half.losses[-1] < 0.7 * half.losses[0]


def test_fp16_keeps_gradients_that_would_vanish_without_the_scale():
    def gradient(scaler):
        weight = torch.full((1, 1), 1e-4, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.linear(F.linear(torch.ones(1, 1), weight), torch.tensor([[1e-5]])).float().sum()
        loss.backward(scaler.scale(torch.full_like(loss, 1e-4)))
        optimizer = torch.optim.SGD([weight], 1.0)
        scaler.unscale_(optimizer)
        return weight.grad.item()

    assert gradient(GradScaler(enabled=False)) == 0.0
    assert gradient(make_scaler("fp16", "cpu")) == pytest.approx(1e-9, rel=0.05)


def test_a_step_whose_gradients_overflow_is_left_out_and_counts_and_halves_the_scale(tmp_path):
    run = Run(tmp_path, plain(), precision="fp16", max_steps=1, scaler=GradScaler("cpu", init_scale=2.0**40))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert run.progress.step == 1
    assert run.scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("size", [None, 4])
def test_gradients_are_clipped_in_their_true_size(tmp_path, size):
    optim = {"name": "sgd", "lr": 1.0, "clip_norm": 1e-3}
    run = Run(tmp_path, plain(), optim=optim, precision="fp16", micro_batch_size=size)
    before = nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
    update(run.job, next(run.shard.batches(0, 0)), 0, run.clock)
    moved = nn.utils.parameters_to_vector(run.model.parameters()) - before
    assert moved.norm().item() == pytest.approx(1.9e-3, rel=1e-3)  # Nesterov's first step


def test_an_fp16_run_resumes_exactly_scale_and_its_growth_included(tmp_path):
    def make(where, **kwargs):
        scaler = GradScaler("cpu", init_scale=2.0**24, growth_interval=7)
        return Run(
            tmp_path / where, Net(), precision="fp16", scaler=scaler, optim={"clip_norm": 1.0}, **kwargs
        )

    twin, resumed = assert_resumes_exactly(make)
    assert resumed.scaler.state_dict() == twin.scaler.state_dict()
    assert twin.scaler.get_scale() != 2.0**24


# Activations computed again.


def gpt(checkpoints, depth=3):
    torch.manual_seed(0)
    model = GPT((16,), 50, width=32, depth=depth, dropout=0.2)
    if checkpoints:
        checkpoint_blocks(model)
    return model


def resnet(checkpoints):
    torch.manual_seed(0)
    model = ResNet((3, 8, 8), 5, width=8, depth=8)
    if checkpoints:
        checkpoint_blocks(model)
    return model


class Normed(nn.Module):
    """Blocks with running statistics, which a second forward pass would move again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(self._block() for _ in range(3)))
        self.leave = nn.Linear(6, 5)

    def _block(self):
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        return self.leave(self.blocks(x))


def normed(checkpoints):
    model = Normed()
    if checkpoints:
        checkpoint_blocks(model)
    return model


def steps(model, inputs, classes, count=3):
    """Losses of a few steps, and the random number that comes after them."""
    torch.manual_seed(2)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = F.cross_entropy(outputs.flatten(0, -2), torch.arange(outputs[..., 0].numel()) % classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.rand(()).item()


TOKENS = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("build", "inputs", "classes"),
    [(gpt, TOKENS, 50), (resnet, IMAGES, 5), (normed, NUMBERS, 5)],
    ids=["gpt", "resnet", "normed"],
)
def test_computing_activations_again_changes_no_bit_of_losses_weights_statistics_and_random_numbers(
    build, inputs, classes
):
    kept, again = build(False), build(True)
    assert steps(kept, inputs, classes) == steps(again, inputs, classes)
    assert list(kept.state_dict()) == list(again.state_dict())
    assert_same(kept, again)


def test_computing_activations_again_takes_less_memory_the_deeper_the_model():
    def peak(checkpoints, depth):
        model = gpt(checkpoints, depth)
        with saved_bytes() as most:
            steps(model, TOKENS, 50, count=1)
        return most[0]

    deeper = peak(True, 12) - peak(True, 4), peak(False, 12) - peak(False, 4)
    assert deeper[0] < 0.1 * deeper[1]


def test_a_model_without_blocks_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"MLP has no `blocks`.*name its repeated parts so"):
        checkpoint_blocks(plain())


# The compiler.


def test_a_compiled_model_has_the_same_names_and_losses_within_rounding(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = nn.Sequential(nn.Linear(6, 2))
    try:
        compile_model(model, CPU)
    except ConfigError as error:
        pytest.skip(str(error))
    plainly = nn.Sequential(nn.Linear(6, 2))
    plainly.load_state_dict(model.state_dict())
    assert list(plainly.state_dict()) == list(model.state_dict())
    found, expected = (Run(tmp_path, each, max_steps=3, optim={"name": "sgd"}) for each in (model, plainly))
    for run in (found, expected):
        for number, batch in zip(range(3), run.shard.batches(0, 0), strict=False):
            run.record.log(number, {"train/loss": update(run.job, batch, number, run.clock).item()})
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the check's, and the model's


def test_a_compiled_model_moves_statistics_once_when_it_computes_activations_again():
    torch._dynamo.reset()
    kept, again = normed(False).train(), normed(True).train()
    again.forward = torch.compile(again.forward, backend="aot_eager_decomp_partition")
    for model in (kept, again):
        torch.manual_seed(0)
        model(NUMBERS).sum().backward()
    for norm, other in zip(kept.modules(), again.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm1d):
            assert other.num_batches_tracked == norm.num_batches_tracked == 1
    torch.testing.assert_close(again.blocks[0][1].running_mean, kept.blocks[0][1].running_mean)


def test_without_a_compiler_training_is_refused_with_the_remedy(tmp_path, monkeypatch):
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError, match=r"install a C\+\+ compiler .* or set train\.compile=false"):
        compile_model(plain(), CPU)


# The average.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)


def test_the_average_follows_its_recurrence_with_a_decay_that_rises_to_the_one_given():
    model = Tied()
    ema, expected = EMA(model, 0.4), model.one.weight.detach().clone()
    for step in range(8):
        with torch.no_grad():
            model.one.weight.add_(1.0)
            model.norm.running_mean.fill_(step)
            model.norm.num_batches_tracked.fill_(step)
        ema.update(step)
        decay = min(0.4, (1 + step) / (10 + step))  # 0.1, 2/11, 0.25, 4/13, ...
        expected = decay * expected + (1 - decay) * model.one.weight.detach()
    found = ema.state_dict()
    torch.testing.assert_close(found["one.weight"], expected)
    assert found["other.weight"] is found["one.weight"]
    assert 5 < found["norm.running_mean"][0] < 7
    assert found["norm.num_batches_tracked"] == 7
    assert list(found) == list(model.state_dict())


def test_the_average_is_in_the_model_only_as_long_as_it_is_asked_for():
    model = Tied()
    ema = EMA(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.one.weight.zero_()
    with contextlib.suppress(KeyError), ema.in_model():
        assert torch.equal(model.one.weight, before["one.weight"])
        raise KeyError
    assert (model.one.weight == 0).all()


def test_evaluation_measures_the_average_and_training_goes_on_with_the_weights_themselves(tmp_path):
    averaged = Run(tmp_path / "a", Net(), ema=0.95).train()
    plainly = Run(tmp_path / "b", Net()).train()
    assert averaged.losses == plainly.losses
    assert_same(averaged.model, plainly.model)
    assert averaged.record.of("val/loss") != plainly.record.of("val/loss")
    other = Net()
    other.load_state_dict(averaged.ema.state_dict())
    sums = evaluate_split(Run(tmp_path / "c", other).job, VALIDATION)
    assert averaged.job.task.metrics(sums)["loss"] == averaged.record.of("val/loss")[-1]


def test_a_checkpoint_offers_the_average_and_a_resumed_run_gets_both(tmp_path):
    twin, resumed = assert_resumes_exactly(
        lambda where, **kwargs: Run(tmp_path / where, Net(), ema=0.95, **kwargs)
    )
    for name, tensor in twin.ema.state_dict().items():
        assert torch.equal(tensor, resumed.ema.state_dict()[name]), name
    name, _ = twin.store.latest()
    offered = Net()
    restore(twin.store, name, offered, None)
    for key, tensor in twin.ema.state_dict().items():
        assert torch.equal(tensor, offered.state_dict()[key]), key
    assert not torch.equal(offered.enter.weight, twin.model.enter.weight)


def test_a_checkpoint_made_without_scaler_and_average_is_taken_up(tmp_path):
    earlier = Run(tmp_path, Net(), epochs=1).train()
    run = Run(tmp_path, Net(), precision="fp16", ema=0.9).resume()
    assert_same(run.model, earlier.model)
    assert torch.equal(run.ema.state_dict()["enter.weight"], earlier.model.enter.weight)
    assert run.scaler.get_scale() == 2.0**16


# The profiler.


def trace(folder, made):
    profiler = StepProfiler(folder, CPU, made)
    for _ in range(made):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step()
    profiler.close()
    events = json.loads(gzip.decompress(folder.read(f"{PROFILE}/{TRACE}")))["traceEvents"]
    return sorted({event["name"] for event in events if event["name"].startswith("ProfilerStep")})


@pytest.mark.parametrize(("made", "traced"), [(40, range(10, 16)), (13, range(6, 12)), (4, range(2, 4))])
def test_some_steps_are_traced_and_their_operators_listed(tmp_path, made, traced):
    folder = RunFolder(str(tmp_path))
    found = trace(folder, made)
    assert {f"ProfilerStep#{step}" for step in traced} <= set(found)
    assert len(found) <= len(traced) + 1  # a trace that is cut off holds the step that was begun
    assert "aten::mm" in folder.read(f"{PROFILE}/{TABLE}").decode()


# What a run tells.


def test_a_step_costs_three_forward_passes_and_utilisation_is_of_all_devices():
    rates = Workload(flops_per_sample=2_000_000, tokens_per_sample=128, peak_flops=2 * 989e12).rates(1e6)
    assert rates["samples_per_second"] == 1e6
    assert rates["tokens_per_second"] == 1.28e8
    assert rates["flops_per_second"] == 6e12
    assert rates["mfu"] == pytest.approx(6 / 1978)


def test_what_is_not_known_is_left_out():
    assert Workload().rates(5.0) == {"samples_per_second": 5.0}
    assert set(Workload(flops_per_sample=10).rates(5.0)) == {"samples_per_second", "flops_per_second"}


@pytest.mark.parametrize(
    ("device", "half", "full"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("NVIDIA L40", None, None),
        ("", None, None),
    ],
)
def test_peaks_are_found_by_the_devices_name(device, half, full):
    assert (peak_flops(device, "bf16"), peak_flops(device, "fp32")) == (half, full)


def test_cards_without_bf16_have_their_fp16_peak():
    assert [peak_flops(name, "fp16") for name in ("Tesla T4", "Tesla V100-PCIE-32GB")] == [65e12, 112e12]


def test_the_peak_of_memory_rises_by_what_is_taken_and_stays():
    before = peak_bytes(CPU)
    taken = torch.ones(max(before, 100 << 20) // 4)  # more than there ever was, whatever other tests took
    after = peak_bytes(CPU)
    assert after > before + taken.nbytes // 4
    del taken
    assert peak_bytes(CPU) == after


def test_a_run_leaves_its_rates_memory_trace_and_averaged_weights(tmp_path):
    settings = [
        "scale.num_workers=0",
        "train.epochs=1",
        "train.ema=0.9",
        "train.precision=fp16",
        "profile=true",
    ]
    config = load(RunConfig, None, [*settings, "data.source=sklearn:iris", "train.micro_batch_size=8"])
    plan = validate(config, session.connect)
    folder = RunFolder(str(tmp_path))
    folder.create_identity(name="run", experiment="shoal", tracking_uri="none")
    hand = partition_source(plan.source, plan.preprocessing, plan.dataset_info, 1)[0]
    spec = WorkerSpec(
        config, folder.uri, 1, plan.dataset_info, plan.preprocessing, plan.size.flops_per_sample
    )
    run_worker(spec, resident_shard(spec, hand, 0, 1, CPU), SingleProcess(), CPU, watches_system=False)
    outcome = folder.read_json(OUTCOME)
    rates = outcome["rates"]
    flops = rates["flops_per_second"] / rates["samples_per_second"]
    assert flops == pytest.approx(3 * plan.size.flops_per_sample)
    assert "mfu" not in rates
    assert outcome["peak_memory_bytes"][0] > 50 << 20
    assert outcome["micro_batch_size"] == 8
    assert folder.exists(f"{PROFILE}/{TRACE}")
    store = CheckpointStore(folder)
    name = store.names()[-1]
    held = store.optimizer(name)
    assert set(held) == {"optimizer", "random", "trained", "scaler"}
    assert not torch.equal(held["trained"]["layers.0.weight"], store.weights(name)["layers.0.weight"])


@pytest.mark.parametrize(
    "setting", ["train.micro_batch_size=0", "train.ema=1.0", "train.ema=0", "train.precision=fp8"]
)
def test_values_that_mean_nothing_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0].replace(".", r"\.")):
        load(RunConfig, None, [setting])


def test_help_names_the_kinds_of_value_a_piece_may_have():
    (line,) = (line for line in describe(RunConfig).splitlines() if "micro_batch_size" in line)
    assert "int|auto|null" in line


def test_what_saves_memory_or_time_may_differ_when_a_run_is_resumed():
    free = RunConfig.free_on_resume
    assert "train.micro_batch_size".startswith(free)
    assert not "train.precision".startswith(free)
    assert not "train.ema".startswith(free)
