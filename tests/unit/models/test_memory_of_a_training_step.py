"""The memory estimate against a step of the library's own training loop, rather than against the planner's code."""

import functools
from dataclasses import dataclass, field

import pytest
import torch

from shoal.data.loader import ResidentShard, Rows, ViewedShard
from shoal.data.sampler import VALIDATION, Lanes
from shoal.data.tokenizer import SPECIALS, ByteTokenizer
from shoal.distributed.process_group import SingleProcess
from shoal.models.activation_memory import SavedTensorLedger
from shoal.models.config import ModelConfig
from shoal.models.memory_estimate import TrainingSetup, estimate
from shoal.models.registry import build_model
from shoal.tasks.classification import Classification
from shoal.tasks.language import CausalLM
from shoal.training.assemble import assemble_loop
from shoal.training.clock import Clock
from shoal.training.evaluation import evaluate
from shoal.training.loop import TrainConfig, update
from shoal.training.optimizer import OptimConfig
from shoal.training.optimizer_state import measure_state

CLASSES = 10
# Name, shape of a sample, config, samples of a batch. The MLP's batch is large, so that activations outweigh weights.
MODELS = {
    "mlp": ((64,), {"width": 512, "depth": 3}, 4096),
    "gpt": ((64,), {"width": 128, "depth": 5}, 8),
    "resnet": ((3, 16, 16), {"width": 16, "depth": 14}, 8),
}


@dataclass
class Measured:
    """Bytes of a real training step."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    saved: dict[int, torch.UntypedStorage] = field(default_factory=dict, repr=False)  # by address

    @property
    def activations(self):
        return sum(storage.nbytes() for storage in self.saved.values())

    @property
    def largest(self):
        return max(storage.nbytes() for storage in self.saved.values())


def task_of(name, shape):
    return CausalLM(ByteTokenizer(), shape[0], seed=0) if name == "gpt" else Classification(CLASSES)


def build(name):
    shape, config, _ = MODELS[name]
    outputs = ByteTokenizer().vocabulary if name == "gpt" else CLASSES
    return build_model(ModelConfig(name=name, **config), shape, outputs, seed=0)


def rows_of(name, vocabulary):
    """One batch of random rows, in memory."""
    shape, _, samples = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    if name == "gpt":
        tokens = torch.randint(SPECIALS, vocabulary, (samples, shape[0] + 1), generator=generator)
        return Rows(tokens, torch.zeros(samples, 0))
    return Rows(torch.randn(samples, *shape, generator=generator), torch.arange(samples) % CLASSES)


def keeps_average(optimizer):
    """Whether a moving average of the weights is kept: with one optimizer, so that plans serve several tests."""
    return optimizer == "adamw"


def measure(name, optimizer, precision):
    """Make one step of the training loop, assembled as a run's, and return what it held."""
    model, task, found = build(name), task_of(name, MODELS[name][0]), Measured()
    rows = rows_of(name, ByteTokenizer().vocabulary)
    loop = assemble_loop(
        model,
        task,
        ResidentShard(Lanes(len(rows), len(rows), seed=0), rows, {}),
        OptimConfig(name=optimizer),
        TrainConfig(precision=precision, ema=0.9 if keeps_average(optimizer) else None),
        SingleProcess(),
        torch.device("cpu"),
    )
    batch = next(loop.shard.batches(epoch=0, start=0))
    held = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), batch.inputs, batch.targets)
    }

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found.saved[storage.data_ptr()] = storage  # referenced, so that its address is not used again
        return tensor

    def count_gradient(parameter):
        found.gradients += parameter.grad.nbytes

    for parameter in model.parameters():  # afterwards, the loop has dropped its gradients
        parameter.register_post_accumulate_grad_hook(count_gradient)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        update(loop, batch, 0, Clock())
    found.weights = sum(parameter.nbytes for parameter in model.parameters())
    if loop.ema:  # a tied weight, which has several names, has one average
        averages = {tensor.data_ptr(): tensor.nbytes for tensor in loop.ema.state_dict().values()}
        found.weights += sum(averages.values())
    states = [value for state in loop.optimizer.state.values() for value in state.values()]
    found.optimizer = sum(value.nbytes for value in states if torch.is_tensor(value))
    return found


@functools.cache
def planned(name, optimizer, precision):
    shape, _, samples = MODELS[name]
    dtype = torch.int64 if name == "gpt" else torch.float32
    most = min(samples, task_of(name, shape).held_out_rows.most)
    state = measure_state(OptimConfig(name=optimizer))
    setup = TrainingSetup(
        samples,
        precision=precision,
        state_per_weight=state.per_weight,
        state_per_tensor=state.bytes_per_tensor,
        ema=keeps_average(optimizer),
        evaluate_most=most,
    )
    return estimate(lambda: build(name), shape, dtype, setup).layouts[0].plain


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *(("mlp", one) for one in ("adam", "sgd", "nadam", "rmsprop", "asgd")),
        *((name, "adamw") for name in MODELS),
        *(
            pytest.param(name, one, marks=pytest.mark.long)
            for name in ("gpt", "resnet")
            for one in ("adam", "sgd")
        ),
    ],
)
def test_weights_their_average_gradients_and_optimizer_state_of_a_real_step_are_estimated_to_the_byte(
    name, optimizer
):
    found, expected = measure(name, optimizer, "fp32"), planned(name, optimizer, "fp32")
    assert (expected.weights, expected.gradients) == (found.weights, found.gradients)
    assert expected.optimizer == found.optimizer > 0


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp32") for name in MODELS),
        *(pytest.param(name, "bf16", marks=[pytest.mark.long] * (name == "gpt")) for name in MODELS),
    ],
)
def test_activations_are_what_autograd_saves_in_a_real_step_and_little_more(name, precision):
    """Besides saved tensors, backward holds temporary ones: the gradients that an operation reads and returns.

    They count in the MLP alone, which has few layers; in deep models they are a small share.
    """
    found, expected = measure(name, "adamw", precision), planned(name, "adamw", precision)
    temporary = 2 * found.largest if name == "mlp" else 0.15 * found.activations
    assert found.activations <= expected.activations <= found.activations + temporary


@pytest.mark.parametrize("name", MODELS)
def test_what_a_real_evaluation_holds_is_estimated(name):
    """Allocations of the library's own evaluation, between operations, against the planner's fake ones."""
    shape, _, samples = MODELS[name]
    model, task = build(name), task_of(name, shape)
    rows = rows_of(name, ByteTokenizer().vocabulary)
    shard = ResidentShard(Lanes(samples, samples, seed=0), rows, {VALIDATION: rows})
    shard = ViewedShard(shard, task.view) if task.view else shard
    ledger = SavedTensorLedger(model)
    with ledger:
        sums = evaluate(model, task, shard, VALIDATION, SingleProcess(), most_rows=samples).sums
    ledger.close()
    assert sums[0] == samples
    expected = planned(name, "adamw", "fp32")
    # Evaluation may hold a copy of the rows; the estimate is of what the model makes.
    copied = rows.inputs.nbytes
    assert 0.85 * (ledger.peak - copied) <= expected.evaluation <= 1.15 * ledger.peak
    assert expected.evaluation < expected.activations


def test_an_evaluation_that_takes_more_than_a_step_is_what_is_planned_for():
    def plain(**limits):
        setup = TrainingSetup(1, state_per_weight=1, state_per_tensor=0, **limits)
        return estimate(lambda: build("resnet"), MODELS["resnet"][0], torch.float32, setup).layouts[0].plain

    few, many = plain(), plain(evaluate_few=4096)
    assert few.total == few.weights + few.optimizer + few.gradients + few.activations
    assert many.evaluation > many.gradients + many.activations
    assert many.total == many.weights + many.optimizer + many.evaluation > few.total
