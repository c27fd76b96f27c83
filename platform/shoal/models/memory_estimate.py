"""What training a model takes, found without its weights: parameters, bytes per worker, operations, time.

Models are run on fake tensors, which have shapes and no numbers. It knows modules and devices' data sheets; it knows
neither configs nor data. The arithmetic is that of Rajbhandari et al. 2020, "ZeRO", section 3: weights, gradients and
the optimiser's state are held by every worker or cut among them, activations are each worker's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from shoal.distributed.parallelism import COLUMN_PARALLEL, ROW_PARALLEL
from shoal.errors import ModelError
from shoal.models.activation_memory import activations, blocks_of, fake_like
from shoal.models.flops import training_flops
from shoal.models.size import measure_size

GIB = 1 << 30
DEVICES = (16, 24, 40, 80, 141)  # GiB of memory
USABLE = 0.9  # of a device's memory; the rest goes to CUDA itself, NCCL's buffers and gaps between tensors

# Whose time is told; their peaks are `shoal.training.throughput`'s.
TIMED_ON = ("A100", "H100")
MFU = 0.4

# Numbers that an optimiser keeps for each weight, and whether it counts steps for each tensor.
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
COUNTS_STEPS = ("adam", "adamw")

ONE_WORKER = "alone"  # the strategy of one worker
TENSOR_SIZE = 8  # workers of a tensor-parallel group besides FSDP, where none is given: those of one host


@dataclass(frozen=True)
class ParameterCount:
    """Parameters, and where they are.

    Attributes:
        total: each counted once, where tied.
        tensors: how many tensors they are.
        units: of each block, or of each part of a model without blocks.
        embedding: in embeddings.
        element_size: bytes of each.
    """

    total: int
    tensors: int
    units: tuple[int, ...]
    embedding: int
    element_size: int = 4


@dataclass(frozen=True)
class ParallelLayout:
    """How workers share a model: in a grid of `data` groups that see different rows, of `tensor` workers each."""

    name: str
    data: int
    tensor: int = 1
    is_sharded: bool = False  # by FSDP, among the data groups


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained.

    Attributes:
        batch: samples of an optimiser step, over all workers.
        workers: devices.
        precision: fp32, or what autocast makes of it: bf16, fp16.
        optimizer: adam, adamw or sgd.
        piece: samples that a worker runs at a time; None: its whole part of a batch.
        ema: whether a moving average of the weights is kept.
        tensor: workers of a tensor-parallel group besides FSDP.
    """

    batch: int
    workers: int = 1
    precision: str = "fp32"
    optimizer: str = "adam"
    piece: int | None = None
    ema: bool = False
    tensor: int = TENSOR_SIZE

    def samples(self, strategy: ParallelLayout) -> int:
        """Return how many samples a worker runs at a time."""
        part = -(-self.batch // strategy.data)
        return min(part, self.piece or part)


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker at their peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def device(self) -> int | None:
        """The smallest of `DEVICES`, in GiB, that holds it."""
        return next((size for size in DEVICES if self.total <= USABLE * size * GIB), None)


@dataclass(frozen=True)
class LayoutEstimate:
    """What one strategy takes; the second is with activation checkpointing, where the model has blocks."""

    strategy: ParallelLayout
    samples: int  # that a worker runs at a time
    plain: WorkerMemory
    checkpointed: WorkerMemory | None = None


@dataclass(frozen=True)
class RunEstimate:
    """What training takes."""

    parameters: ParameterCount
    rows: tuple[LayoutEstimate, ...]
    flops_per_sample: int  # of a forward pass
    batch: int
    workers: int

    @property
    def flops_per_step(self) -> int:
        """Of forward and backward, which takes twice as many; what is computed again does not count."""
        return training_flops(self.flops_per_sample, self.batch)

    def seconds(self, steps: int, peak: float, mfu: float) -> float:
        """Return how long steps take.

        Args:
            peak: FLOPs per second of a worker's device.
            mfu: model FLOPs utilisation, the share of the peak that the model's own operations reach
                (Chowdhery et al. 2022, "PaLM", section 4.1).
        """
        return steps * self.flops_per_step / (self.workers * peak * mfu)


def estimate(
    make: Callable[[], nn.Module], sample: tuple[int, ...], dtype: torch.dtype, way: TrainingSetup
) -> RunEstimate:
    """Find what training a model takes.

    Args:
        make: builds the model; it is called under the meta device.
        sample: shape of one sample.
        dtype: of a sample.
        way: how it is trained.

    Raises:
        ModelError: the model looks at the numbers in its tensors, and these have none.
    """
    rows: list[LayoutEstimate] = []
    try:
        with FakeTensorMode():
            model = _fake(make)
            counted = count_parameters(model)
            flops = measure_size(model, torch.zeros((1, *sample), dtype=dtype)).flops_per_sample
            for (samples, tensor), alike in groupby(
                layouts(way.workers, heads(model), way.tensor),
                lambda strategy: (way.samples(strategy), strategy.tensor),
            ):
                part = _fake(make) if tensor > 1 else model
                split(part, tensor)
                held = count_parameters(part)
                taken = activations(part, torch.zeros((samples, *sample), dtype=dtype), way.precision)
                rows += [
                    LayoutEstimate(
                        strategy, samples, *(worker_memory(held, strategy, way, kept) for kept in taken)
                    )
                    for strategy in alike
                ]
    except ModelError:
        raise
    except Exception as error:  # of a user's model, or of fake tensors asked for their numbers
        raise ModelError(
            f"the model cannot be planned ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            "builder and forward must do with tensors that have shapes and no numbers"
        ) from error
    return RunEstimate(counted, tuple(rows), flops, way.batch, way.workers)


def layouts(workers: int, heads: int | None, tensor: int = TENSOR_SIZE) -> list[ParallelLayout]:
    """Return the ways in which workers can share a model.

    Args:
        workers: one at least.
        heads: of each attention; None if tensor parallelism has nothing to cut.
        tensor: workers of a tensor-parallel group besides FSDP.
    """
    if workers == 1:
        return [ParallelLayout(ONE_WORKER, 1)]
    found = [ParallelLayout("ddp", workers), ParallelLayout("fsdp", workers, is_sharded=True)]
    if heads and heads % workers == 0:
        found.append(ParallelLayout("tp", 1, workers))
    if heads and heads % tensor == 0 and workers % tensor == 0 and workers > tensor:
        found.append(ParallelLayout("fsdp+tp", workers // tensor, tensor, is_sharded=True))
    return found


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters."""
    parameters = list(model.parameters())
    units = blocks_of(model) or list(model.children())
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return ParameterCount(
        total=sum(parameter.numel() for parameter in parameters),
        tensors=len(parameters),
        units=tuple(sum(parameter.numel() for parameter in unit.parameters()) for unit in units),
        embedding=sum(weight.numel() for weight in {id(weight): weight for weight in embeddings}.values()),
        element_size=max((parameter.element_size() for parameter in parameters), default=4),
    )


def worker_memory(
    held: ParameterCount, strategy: ParallelLayout, way: TrainingSetup, activation_bytes: int
) -> WorkerMemory:
    """Return what a worker holds at the most.

    FSDP makes whole what is in no block from the first forward to the last backward, and of the blocks the one that
    computes and the next one; as much of gradients is whole before it is summed.

    Args:
        held: the parameters of the worker's part, after tensor parallelism.
        strategy: how workers share the model.
        way: how it is trained.
        activation_bytes: of the samples that a worker runs at a time.
    """
    shares = strategy.data if strategy.is_sharded else 1
    cut = -(-held.total // shares)
    whole = held.total - sum(held.units) + sum(sorted(held.units)[-2:]) if strategy.is_sharded else 0
    steps = 4 * held.tensors if way.optimizer in COUNTS_STEPS else 0
    return WorkerMemory(
        weights=(cut + whole + cut * way.ema) * held.element_size,
        gradients=(cut + whole) * held.element_size,
        optimizer=cut * held.element_size * MOMENTS[way.optimizer] + steps,
        activations=activation_bytes,
    )


def heads(model: nn.Module) -> int | None:
    """Return the attention heads of each block, None for a model that tensor parallelism cannot cut."""
    blocks = blocks_of(model)
    if not blocks or not all(_layers(block) for block in blocks):
        return None
    attention = blocks[0].get_submodule("attention")
    query = attention.get_submodule("query")
    return int(query.out_features) // int(attention.head_dim)  # type: ignore[arg-type]


def split(model: nn.Module, parts: int) -> None:
    """Leave of the layers that tensor parallelism cuts what one of so many workers has."""
    for block in (blocks_of(model) or ()) if parts > 1 else ():
        for name, layer in _layers(block).items():
            by_outputs = name in COLUMN_PARALLEL
            fan_in = layer.in_features if by_outputs else layer.in_features // parts
            fan_out = layer.out_features // parts if by_outputs else layer.out_features
            block.set_submodule(name, nn.Linear(fan_in, fan_out, bias=layer.bias is not None))


def _fake(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model of fake tensors on a CPU; built under the fake mode itself, it could not call `item`."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = make()
    fakes: dict[int, Tensor] = {}  # tied parameters stay so
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fakes.setdefault(id(tensor), fake_like(tensor))  # type: ignore[assignment]
    return model


def _layers(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that tensor parallelism cuts, none if one of them is missing."""
    modules = dict(block.named_modules())
    layers = {name: modules.get(name) for name in (*COLUMN_PARALLEL, *ROW_PARALLEL)}
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    return found if len(found) == len(layers) else {}
