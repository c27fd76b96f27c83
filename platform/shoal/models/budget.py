"""What training a model takes, found without its weights: parameters, bytes per worker, operations, time.

Models are run on fake tensors, which have shapes and no numbers. It knows modules and devices' data sheets; it knows
neither configs nor data. The arithmetic is that of Rajbhandari et al. 2020, "ZeRO", section 3: weights, gradients and
the optimiser's state are held by every worker or cut among them, activations are each worker's own.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from shoal.errors import ModelError
from shoal.models import measure
from shoal.models.flops import training_flops
from shoal.sharding import CUT_BY_INPUTS, CUT_BY_OUTPUTS

GIB = 1 << 30
DEVICES = (16, 24, 40, 80, 141)  # GiB of memory
USABLE = 0.9  # of a device's memory; the rest goes to CUDA itself, NCCL's buffers and gaps between tensors

# Whose time is told; their peaks are `shoal.performance`'s.
TIMED_ON = ("A100", "H100")
MFU = 0.4

# Numbers that an optimiser keeps for each weight, and whether it counts steps for each tensor.
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
COUNTS_STEPS = ("adam", "adamw")

ALONE = "alone"  # the strategy of one worker
TENSOR_SIZE = 8  # workers of a tensor-parallel group besides FSDP, where none is given: those of one host

_FEWEST_BLOCKS = 2


@dataclass(frozen=True)
class Count:
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
class Strategy:
    """How workers share a model: in a grid of `data` groups that see different rows, of `tensor` workers each."""

    name: str
    data: int
    tensor: int = 1
    is_sharded: bool = False  # by FSDP, among the data groups


@dataclass(frozen=True)
class Way:
    """How a model is trained.

    Attributes:
        batch: samples of an optimiser step, over all workers.
        workers: devices.
        precision: fp32, or what autocast makes of it: bf16, fp16.
        optimizer: adam, adamw or sgd.
        piece: samples that a worker runs at a time; None: its whole part of a batch.
        averages: whether a moving average of the weights is kept.
        tensor: workers of a tensor-parallel group besides FSDP.
    """

    batch: int
    workers: int = 1
    precision: str = "fp32"
    optimizer: str = "adam"
    piece: int | None = None
    averages: bool = False
    tensor: int = TENSOR_SIZE

    def samples(self, strategy: Strategy) -> int:
        """Return how many samples a worker runs at a time."""
        part = -(-self.batch // strategy.data)
        return min(part, self.piece or part)


@dataclass(frozen=True)
class Memory:
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
class Row:
    """What one strategy takes; the second is with activation checkpointing, where the model has blocks."""

    strategy: Strategy
    samples: int  # that a worker runs at a time
    plain: Memory
    checkpointed: Memory | None = None


@dataclass(frozen=True)
class Budget:
    """What training takes."""

    count: Count
    rows: tuple[Row, ...]
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


def plan(make: Callable[[], nn.Module], sample: tuple[int, ...], dtype: torch.dtype, way: Way) -> Budget:
    """Find what training a model takes.

    Args:
        make: builds the model; it is called under the meta device.
        sample: shape of one sample.
        dtype: of a sample.
        way: how it is trained.

    Raises:
        ModelError: the model looks at the numbers in its tensors, and these have none.
    """
    rows: list[Row] = []
    try:
        with FakeTensorMode():
            model = _fake(make)
            counted = count(model)
            flops = measure(model, torch.zeros((1, *sample), dtype=dtype)).flops_per_sample
            for (samples, tensor), alike in groupby(
                strategies(way.workers, heads(model), way.tensor),
                lambda strategy: (way.samples(strategy), strategy.tensor),
            ):
                part = _fake(make) if tensor > 1 else model
                split(part, tensor)
                held = count(part)
                taken = activations(part, torch.zeros((samples, *sample), dtype=dtype), way.precision)
                rows += [
                    Row(strategy, samples, *(memory(held, strategy, way, kept) for kept in taken))
                    for strategy in alike
                ]
    except ModelError:
        raise
    except Exception as error:  # of a user's model, or of fake tensors asked for their numbers
        raise ModelError(
            f"the model cannot be planned ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            "builder and forward must do with tensors that have shapes and no numbers"
        ) from error
    return Budget(counted, tuple(rows), flops, way.batch, way.workers)


def strategies(workers: int, heads: int | None, tensor: int = TENSOR_SIZE) -> list[Strategy]:
    """Return the ways in which workers can share a model.

    Args:
        workers: one at least.
        heads: of each attention; None if tensor parallelism has nothing to cut.
        tensor: workers of a tensor-parallel group besides FSDP.
    """
    if workers == 1:
        return [Strategy(ALONE, 1)]
    found = [Strategy("ddp", workers), Strategy("fsdp", workers, is_sharded=True)]
    if heads and heads % workers == 0:
        found.append(Strategy("tp", 1, workers))
    if heads and heads % tensor == 0 and workers % tensor == 0 and workers > tensor:
        found.append(Strategy("fsdp+tp", workers // tensor, tensor, is_sharded=True))
    return found


def count(model: nn.Module) -> Count:
    """Count a model's parameters."""
    parameters = list(model.parameters())
    units = blocks_of(model) or list(model.children())
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return Count(
        total=sum(parameter.numel() for parameter in parameters),
        tensors=len(parameters),
        units=tuple(sum(parameter.numel() for parameter in unit.parameters()) for unit in units),
        embedding=sum(weight.numel() for weight in {id(weight): weight for weight in embeddings}.values()),
        element_size=max((parameter.element_size() for parameter in parameters), default=4),
    )


def memory(held: Count, strategy: Strategy, way: Way, activation_bytes: int) -> Memory:
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
    return Memory(
        weights=(cut + whole + cut * way.averages) * held.element_size,
        gradients=(cut + whole) * held.element_size,
        optimizer=cut * held.element_size * MOMENTS[way.optimizer] + steps,
        activations=activation_bytes,
    )


def activations(model: nn.Module, inputs: Tensor, precision: str) -> list[int]:
    """Return `activation_bytes`, and for a model with blocks those with activation checkpointing too.

    Of equal blocks only a few are run: each further one adds the same. The model is left without the others.
    """
    blocks = blocks_of(model)
    if not blocks:
        return [activation_bytes(model, inputs, precision)]
    depth = len(blocks)
    if depth <= _FEWEST_BLOCKS + 1 or not _are_alike(blocks):
        return _both(model, inputs, precision)
    del blocks[_FEWEST_BLOCKS + 1 :]
    more = _both(model, inputs, precision)
    del blocks[_FEWEST_BLOCKS:]
    few = _both(model, inputs, precision)
    return [low + (depth - _FEWEST_BLOCKS) * (high - low) for low, high in zip(few, more, strict=True)]


def activation_bytes(model: nn.Module, inputs: Tensor, precision: str) -> int:
    """Return the most bytes that a forward and backward pass holds besides weights and their gradients.

    Attention and dropout are counted as a GPU's kernels have them. Autocast's copies of weights are among the bytes.

    Args:
        model: in training mode afterwards, without gradients; its numbers are not needed.
        inputs: [n, ...].
        precision: fp32, or anything else for autocast's two bytes.
    """
    ledger = Ledger(model)
    half = torch.autocast("cpu", torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
    with ledger:
        with half:
            outputs = _fused(model.train(), inputs)
        _loss(outputs).backward()  # type: ignore[no-untyped-call]
    ledger.close()
    return ledger.peak


def blocks_of(model: nn.Module) -> nn.ModuleList | nn.Sequential | None:
    """Return a model's repeated parts, if it names them `blocks`."""
    blocks = getattr(model, "blocks", None)
    return blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) else None


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
            by_outputs = name in CUT_BY_OUTPUTS
            fan_in = layer.in_features if by_outputs else layer.in_features // parts
            fan_out = layer.out_features // parts if by_outputs else layer.out_features
            block.set_submodule(name, nn.Linear(fan_in, fan_out, bias=layer.bias is not None))


class Ledger(TorchDispatchMode):
    """Counts the bytes of every tensor that operations make under it, while somebody holds it.

    Attributes:
        peak: the most there were at a time; weights are not among them, nor gradients once they are whole.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._model = model
        self._bytes: dict[int, int] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._enter(tensor, 0)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._leave)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def close(self) -> None:
        """Leave the model as it was, without gradients."""
        for hook in self._hooks:
            hook.remove()
        self._model.zero_grad()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `shoal.models.flops`

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return out

    def _enter(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._bytes:
            return
        self._bytes[id(storage)] = storage.nbytes() if size is None else size
        weakref.finalize(storage, self._forget, id(storage))
        self._now += self._bytes[id(storage)]
        self.peak = max(self.peak, self._now)

    def _forget(self, key: int) -> None:
        self._now -= self._bytes.pop(key, 0)

    def _leave(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = id(parameter.grad.untyped_storage())
        self._now -= self._bytes.get(key, 0)
        self._bytes[key] = 0


class _FusedKernels(TorchFunctionMode):
    """Has a CPU keep what a GPU would: of attention no weights though there is dropout, of dropout a byte each."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            given["dropout_p"] = 0.0
        if func is F.dropout and args and given.get("training", True) and given.get("p", 0.5) > 0:
            return torch.native_dropout(args[0], given.get("p", 0.5), True)[0]
        return func(*args, **given)


def _fake(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model of fake tensors on a CPU; built under the fake mode itself, it could not call `item`."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = make()
    fakes: dict[int, Tensor] = {}  # tied parameters stay so
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fakes.setdefault(id(tensor), _like(tensor))  # type: ignore[assignment]
    return model


def _like(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _fused(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _FusedKernels():
        return forward(*args, **kwargs)


def _loss(outputs: Tensor) -> Tensor:
    """Return a loss that keeps what `shoal.language`'s does; that of one target a row is too small to matter."""
    logits = outputs.flatten(0, -2).float()
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")


def _both(model: nn.Module, inputs: Tensor, precision: str) -> list[int]:
    plain = activation_bytes(model, inputs, precision)
    with _recomputing(model):
        return [plain, activation_bytes(model, inputs, precision)]


@contextlib.contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Blocks keep their inputs alone (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""
    blocks = list(blocks_of(model) or ())
    for block in blocks:
        block.forward = functools.partial(
            checkpoint,
            functools.partial(_fused, block.forward),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _are_alike(blocks: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {
        (type(block), tuple(tuple(parameter.shape) for parameter in block.parameters())) for block in blocks
    }
    return len(kinds) == 1


def _layers(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that tensor parallelism cuts, none if one of them is missing."""
    modules = dict(block.named_modules())
    layers = {name: modules.get(name) for name in (*CUT_BY_OUTPUTS, *CUT_BY_INPUTS)}
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    return found if len(found) == len(layers) else {}
