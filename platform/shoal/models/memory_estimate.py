"""What training a model takes, found without its weights: parameters, bytes per worker, operations, time.

Models are run on fake tensors, which have shapes and no values. Depends on modules and the memory sizes of devices;
independent of configs and data. The arithmetic follows Rajbhandari et al. 2020, "ZeRO", section 3: every worker holds
all weights, gradients and optimizer state, or a shard of them; its activations are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from shoal.data.tree import Tree
from shoal.distributed.blocks import blocks_of
from shoal.distributed.parallelism import COLUMN_PARALLEL, ROW_PARALLEL
from shoal.distributed.torch_private import fake_tensors, real_tensors
from shoal.errors import ModelError
from shoal.models.activation_memory import estimate_activations, evaluation_bytes, fake_like
from shoal.models.flops import training_flops
from shoal.models.size import measure_size
from shoal.models.weight_decay import without_decay

GIB = 1 << 30
DEVICES = (16, 24, 40, 80, 141)  # GiB of memory
USABLE = 0.9  # of a device's memory; CUDA itself, NCCL's buffers and gaps between tensors take the rest

# Devices for which a report estimates the time; `shoal.training.throughput` has their peaks.
TIMED_ON = ("A100", "H100")
MFU = 0.4

SINGLE_WORKER = "single worker"  # the layout of one worker
TENSOR_SIZE = 8  # default number of workers of a tensor-parallel group besides FSDP: those of one host


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has, and where.

    Attributes:
        total: of the model; tied ones count once.
        tensors: number of tensors.
        units: of each block; of each child module in a model without blocks.
        embedding: in embeddings.
        element_size: bytes of a parameter.
        matrices: of those that are trained, which weight decay is for: tensors and their parameters.
        others: which it spares.
    """

    total: int
    tensors: int
    units: tuple[int, ...]
    embedding: int
    element_size: int = 4
    matrices: tuple[int, int] = (0, 0)
    others: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class ParallelLayout:
    """How workers share a model: a grid of `data` groups that see different rows, of `tensor` workers each.

    Attributes:
        name: of the strategy, as `scale.strategy` spells it.
        data: number of groups.
        tensor: workers of a tensor-parallel group.
        is_sharded: by FSDP, among the data groups.
    """

    name: str
    data: int
    tensor: int = 1
    is_sharded: bool = False


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained.

    Attributes:
        batch_size: samples of an optimizer step, over all workers.
        num_workers: one device each.
        precision: fp32, or the autocast precision, bf16 or fp16.
        state_per_weight: numbers that the optimizer keeps for each weight; Adam keeps two.
        state_per_tensor: bytes that it keeps for each tensor besides; Adam a count of steps.
        micro_batch_size: samples that a worker runs at a time; None: its full part of a batch.
        ema: whether a moving average of the weights is kept.
        tensor_size: workers of a tensor-parallel group besides FSDP.
        evaluate_few, evaluate_most: the limits of the rows that are evaluated at a time, which else are as many as
            training runs; of `shoal.tasks.base.EvaluationRows`.
        evaluate_precision: of evaluation.
    """

    batch_size: int
    num_workers: int = 1
    precision: str = "fp32"
    state_per_weight: float = 2.0
    state_per_tensor: float = 4.0
    micro_batch_size: int | None = None
    ema: bool = False
    tensor_size: int = TENSOR_SIZE
    evaluate_few: int = 1
    evaluate_most: int = 1 << 30
    evaluate_precision: str = "fp32"

    def samples_at_a_time(self, layout: ParallelLayout) -> int:
        """Return how many samples a worker runs at a time."""
        part = -(-self.batch_size // layout.data)
        return min(part, self.micro_batch_size or part)

    def evaluated_at_a_time(self, samples: int) -> int:
        """Return how many rows a worker evaluates at a time whose training runs so many samples at a time."""
        return min(self.evaluate_most, max(self.evaluate_few, samples))


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker at their peak.

    Attributes:
        evaluation: of a forward pass without gradients, which are dropped meanwhile.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    evaluation: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.evaluation)

    @property
    def device(self) -> int | None:
        """The smallest of `DEVICES`, in GiB, whose memory suffices; None: none does."""
        return next((size for size in DEVICES if self.total <= USABLE * size * GIB), None)


@dataclass(frozen=True)
class LayoutEstimate:
    """Memory in one layout.

    Attributes:
        layout: how workers share the model.
        samples: that a worker runs at a time.
        plain: without activation checkpointing.
        checkpointed: with it; None for a model without blocks.
    """

    layout: ParallelLayout
    samples: int
    plain: WorkerMemory
    checkpointed: WorkerMemory | None = None


@dataclass(frozen=True)
class RunEstimate:
    """What training takes.

    Attributes:
        parameters: of the model.
        layouts: memory in each way to share the model.
        flops_per_sample: floating-point operations of a forward pass.
        batch_size: samples of an optimizer step, over all workers.
        num_workers: one device each.
    """

    parameters: ParameterCount
    layouts: tuple[LayoutEstimate, ...]
    flops_per_sample: int
    batch_size: int
    num_workers: int

    @property
    def flops_per_step(self) -> int:
        """Of a forward and a backward pass; recomputation in activation checkpointing does not count."""
        return training_flops(self.flops_per_sample, self.batch_size)

    def seconds(self, steps: int, peak: float, mfu: float) -> float:
        """Return the duration of a number of optimizer steps.

        Args:
            steps: optimizer steps.
            peak: FLOPs per second of a worker's device.
            mfu: model FLOPs utilization, the share of the peak that the model's own operations reach
                (Chowdhery et al. 2022, "PaLM", section 4.1).
        """
        return steps * self.flops_per_step / (self.num_workers * peak * mfu)


def estimate(
    make: Callable[[], nn.Module],
    sample: tuple[int, ...],
    dtype: torch.dtype,
    setup: TrainingSetup,
    rows_for: Callable[[nn.Module, int], Tree] | None = None,
) -> RunEstimate:
    """Estimate what training a model takes.

    Args:
        make: builds the model; it is called under the meta device.
        sample: shape of one sample.
        dtype: of a sample.
        setup: how it is trained.
        rows_for: makes so many rows of zeros as a model takes them; None: one array, of `sample` and `dtype`.

    Raises:
        ModelError: the model's control flow depends on the values of its tensors, and fake tensors have none.
    """
    estimates: list[LayoutEstimate] = []
    zeros = rows_for or (lambda model, rows: torch.zeros((rows, *sample), dtype=dtype))
    try:
        with fake_tensors():
            model = _fake(make)
            counted = count_parameters(model)
            flops = measure_size(model, zeros(model, 1)).flops_per_sample
            # Layouts with equal activations follow each other: these take the longest, and are estimated once.
            for (samples, tensor_size), group in groupby(
                layouts(setup.num_workers, attention_heads(model), setup.tensor_size),
                lambda layout: (setup.samples_at_a_time(layout), layout.tensor),
            ):
                part = _fake(make) if tensor_size > 1 else model
                keep_tensor_part(part, tensor_size)
                held = count_parameters(part)
                inputs = zeros(part, samples)
                activations = estimate_activations(part, inputs, setup.precision)
                rows = zeros(part, setup.evaluated_at_a_time(samples))
                evaluation = evaluation_bytes(part, rows, setup.evaluate_precision)
                for layout in group:
                    memory = (
                        worker_memory(held, layout, setup, nbytes, evaluation) for nbytes in activations
                    )
                    estimates.append(LayoutEstimate(layout, samples, *memory))
    except ModelError:
        raise
    except Exception as error:  # raised by a user's model, or by fake tensors that are asked for their values
        raise ModelError(
            f"the model cannot be planned ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            "builder and forward must work with tensors that have shapes and no values"
        ) from error
    return RunEstimate(counted, tuple(estimates), flops, setup.batch_size, setup.num_workers)


def layouts(num_workers: int, heads: int | None, tensor_size: int = TENSOR_SIZE) -> list[ParallelLayout]:
    """Return the ways in which workers can share a model.

    Args:
        num_workers: at least one.
        heads: of each attention; None if tensor parallelism cannot split the model.
        tensor_size: workers of a tensor-parallel group besides FSDP.
    """
    if num_workers == 1:
        return [ParallelLayout(SINGLE_WORKER, 1)]
    found = [ParallelLayout("ddp", num_workers), ParallelLayout("fsdp", num_workers, is_sharded=True)]
    if heads and heads % num_workers == 0:
        found.append(ParallelLayout("tp", 1, num_workers))
    if heads and heads % tensor_size == 0 and num_workers % tensor_size == 0 and num_workers > tensor_size:
        found.append(ParallelLayout("fsdp+tp", num_workers // tensor_size, tensor_size, is_sharded=True))
    return found


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters."""
    parameters = list(model.parameters())
    units = blocks_of(model) or list(model.children())
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    spared = without_decay(model)
    trained = {name: tensor.numel() for name, tensor in model.named_parameters() if tensor.requires_grad}
    matrices, others = (
        [trained[name] for name in trained if (name in spared) is are] for are in (False, True)
    )
    return ParameterCount(
        total=sum(parameter.numel() for parameter in parameters),
        tensors=len(parameters),
        units=tuple(sum(parameter.numel() for parameter in unit.parameters()) for unit in units),
        embedding=sum(weight.numel() for weight in {id(weight): weight for weight in embeddings}.values()),
        element_size=max((parameter.element_size() for parameter in parameters), default=4),
        matrices=(len(matrices), sum(matrices)),
        others=(len(others), sum(others)),
    )


def worker_memory(
    held: ParameterCount,
    layout: ParallelLayout,
    setup: TrainingSetup,
    activation_bytes: int,
    evaluation_bytes: int = 0,
) -> WorkerMemory:
    """Return a worker's peak memory.

    FSDP gathers the parameters outside blocks from the first forward to the last backward, and those of two blocks: the
    one that computes and the next one. As many gradients are complete before they are reduced.

    Args:
        held: the parameters of the worker's part, after tensor parallelism.
        layout: how workers share the model.
        setup: how it is trained.
        activation_bytes: of the samples that a worker runs at a time.
        evaluation_bytes: of the rows that a worker evaluates at a time.
    """
    shards = layout.data if layout.is_sharded else 1
    shard = -(-held.total // shards)
    gathered = held.total - sum(held.units) + sum(sorted(held.units)[-2:]) if layout.is_sharded else 0
    state = shard * held.element_size * setup.state_per_weight + setup.state_per_tensor * held.tensors
    return WorkerMemory(
        weights=(shard + gathered + shard * setup.ema) * held.element_size,
        gradients=(shard + gathered) * held.element_size,
        optimizer=round(state),
        activations=activation_bytes,
        evaluation=evaluation_bytes,
    )


def attention_heads(model: nn.Module) -> int | None:
    """Return the attention heads of each block; None for a model that tensor parallelism cannot split."""
    blocks = blocks_of(model)
    if not blocks or not all(_tensor_parallel_layers(block) for block in blocks):
        return None
    attention = blocks[0].get_submodule("attention")
    query = attention.get_submodule("query")
    return int(query.out_features) // int(attention.head_dim)  # type: ignore[arg-type]


def keep_tensor_part(model: nn.Module, parts: int) -> None:
    """Replace the layers that tensor parallelism splits by one worker's part of them, in place."""
    for block in (blocks_of(model) or ()) if parts > 1 else ():
        for name, layer in _tensor_parallel_layers(block).items():
            by_outputs = name in COLUMN_PARALLEL
            fan_in = layer.in_features if by_outputs else layer.in_features // parts
            fan_out = layer.out_features // parts if by_outputs else layer.out_features
            block.set_submodule(name, nn.Linear(fan_in, fan_out, bias=layer.bias is not None))


def _fake(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model of fake tensors on a CPU. It is built outside the fake mode, in which `item` cannot be called."""
    with real_tensors(), torch.device("meta"):
        model = make()
    fakes: dict[int, Tensor] = {}  # keeps tied parameters tied
    for module in model.modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            setattr(module, name, fakes.setdefault(id(tensor), fake_like(tensor)))
    return model


def _tensor_parallel_layers(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that tensor parallelism splits; none if one of them is missing."""
    modules = dict(block.named_modules())
    layers = {name: modules.get(name) for name in (*COLUMN_PARALLEL, *ROW_PARALLEL)}
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    return found if len(found) == len(layers) else {}
