"""How workers share one model: by FSDP2, by tensor parallelism, or by both, as `scale.strategy` says.

Depends on torch.distributed and the two properties of `ParallelismConfig`; independent of other config and of Ray.
Gradients are summed, not averaged, and workers that receive the same rows count once.

Workers form a grid of `data_size` rows and `tensor_size` columns, rank by rank. A row of the grid is one
tensor-parallel group: its workers see the same rows of the data. FSDP shards along the columns.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoal.devices import set_current
from shoal.distributed.blocks import blocks_of
from shoal.distributed.dtensor_io import is_dtensor
from shoal.distributed.process_group import ProcessGroup
from shoal.distributed.torch_private import silence_redistribution
from shoal.errors import ModelError

Strategy = Literal["ddp", "fsdp", "tp", "fsdp+tp"]

DATA, TENSOR = "data", "tensor"

# A block's layers in Megatron's arrangement (Shoeybi et al. 2019, section 3): layers that are split by outputs (heads,
# hidden units) need no communication; the partial results of layers that are split by inputs are all-reduced, twice
# in a block.
COLUMN_PARALLEL = ("attention.query", "attention.key", "attention.value", "feed_forward.up")
ROW_PARALLEL = ("attention.project", "feed_forward.down")


class ParallelismConfig(Protocol):
    """The part of a config that says how workers share the model."""

    @property
    def strategy(self) -> Strategy: ...

    @property
    def tensor_size(self) -> int:
        """Workers of a tensor-parallel group; 1 without tensor parallelism."""
        ...


def make_group(device: torch.device, scale: ParallelismConfig) -> ProcessGroup:
    """Return the default process group, as the strategy requires."""
    return ProcessGroup(device) if scale.strategy == "ddp" else ShardedProcessGroup(device, scale)


def check_strategy(model: nn.Module, scale: ParallelismConfig) -> None:
    """Refuse a model that cannot be shared as the strategy says.

    Raises:
        ModelError: for FSDP, a parameter has no dimension; for tensor parallelism, the model has no transformer
            blocks, or its heads do not divide among the workers.
    """
    if "fsdp" in scale.strategy:
        _check_dimensions(model, scale)
    if "tp" in scale.strategy:
        _check_blocks(model, scale)
        _check_heads(model, scale)


class ShardedProcessGroup(ProcessGroup):
    """The default process group, with workers that hold parts of the model; all take part in every forward pass."""

    is_sharded = True

    def __init__(self, device: torch.device, scale: ParallelismConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(device)
        set_current(device)  # else the mesh chooses a device by rank
        self._scale = scale
        self._grid = init_device_mesh(
            device.type,
            (self.size // scale.tensor_size, scale.tensor_size),
            mesh_dim_names=(DATA, TENSOR),
        )
        self.data_rank, self._tensor_rank = divmod(self.rank, scale.tensor_size)
        self.data_size = self.size // scale.tensor_size

    @property
    def transport(self) -> str:
        return str(dist.get_backend())

    def all_reduce(self, vector: Tensor) -> Tensor:
        # The workers of a tensor-parallel group have seen the same rows: only its first one contributes.
        return super().all_reduce(vector if self._tensor_rank == 0 else torch.zeros_like(vector))

    def wrap(self, model: nn.Module, warmup: Callable[[nn.Module], None]) -> nn.Module:
        """Shard a model in place; it may be on the host, and is moved to the device part by part."""
        check_strategy(model, self._scale)
        if "tp" in self._scale.strategy:
            _parallelize(model, self._grid[TENSOR])
            model.to(self._device)  # the buffers; parameters are there already
        if "fsdp" in self._scale.strategy:
            _shard(model, self._grid[DATA])
        return model


def _shard(model: nn.Module, mesh: Any) -> None:
    """Shard parameters along their first dimension; those of a unit are gathered while it computes."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # The warning is for code that writes into a model's outputs in place. Nothing here does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    silence_redistribution()
    for unit in [*_units(model), model]:
        fully_shard(unit, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are gathered one at a time: a model's blocks, else its children; the root has the rest.

    Left out are modules without a forward of their own, which are never called, and those with tied parameters,
    which belong to several.
    """
    tied = _tied(model)
    for unit in (blocks_of(model) or model).children():
        own = {id(parameter) for parameter in unit.parameters()}
        if own and not own & tied and type(unit).forward is not nn.Module.forward:
            yield unit


def _tied(model: nn.Module) -> set[int]:
    """Return the ids of parameters that several modules hold."""
    once: set[int] = set()
    tied: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if id(parameter) in once else once).add(id(parameter))
    return tied


def _parallelize(model: nn.Module, mesh: Any) -> None:
    """Split the blocks' large layers among the workers; each worker computes everything else in full.

    Every parameter becomes a DTensor of one mesh, as fused optimizers and norms require.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.distributed.tensor.parallel.style import ParallelStyle

    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in COLUMN_PARALLEL}
    plan |= {name: RowwiseParallel() for name in ROW_PARALLEL}
    for block in blocks_of(model) or ():
        parallelize_module(block, mesh, plan, src_data_rank=None)  # all workers have built the same weights
        _announce_parts(block, mesh)
    copies: dict[nn.Parameter, nn.Parameter] = {}  # keeps tied parameters tied
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        if parameters and not any(map(is_dtensor, parameters.values())):
            _replicate(module, parameters, mesh, copies)


def _announce_parts(block: nn.Module, mesh: Any) -> None:
    """Have dropout between the split layers know which part of an activation it sees (`part` of row dropout)."""
    dropouts = [module for module in block.modules() if hasattr(module, "part")]
    mine = (mesh.get_local_rank(), mesh.size())

    def divided(*_: Any) -> None:
        for dropout in dropouts:
            dropout.part = mine  # type: ignore[assignment]

    def whole(*_: Any) -> None:
        for dropout in dropouts:
            dropout.part = None  # type: ignore[assignment]

    if dropouts:
        block.register_forward_pre_hook(whole)
        for name in COLUMN_PARALLEL:
            block.get_submodule(name).register_forward_hook(divided)
        for name in ROW_PARALLEL:
            block.get_submodule(name).register_forward_pre_hook(whole)


def _replicate(
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    mesh: Any,
    copies: dict[nn.Parameter, nn.Parameter],
) -> None:
    """Make a module's parameters replicated DTensors; the module still takes and returns plain tensors."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            DTensor.from_local(arg, mesh, [Replicate()], run_check=False) if isinstance(arg, Tensor) else arg
            for arg in args
        )

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output.to_local()

    for name, parameter in parameters.items():
        if parameter not in copies:
            whole = distribute_tensor(parameter, mesh, [Replicate()], src_data_rank=None)
            copies[parameter] = nn.Parameter(whole, parameter.requires_grad)
        module.register_parameter(name, copies[parameter])
    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _check_dimensions(model: nn.Module, scale: ParallelismConfig) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ModelError(
                f"parameter '{name}' has no dimension: scale.strategy={scale.strategy} shards parameters along their "
                "first; give it the shape (1,), or set scale.strategy=ddp"
            )


def _check_blocks(model: nn.Module, scale: ParallelismConfig) -> None:
    """Refuse a model whose blocks lack the layers that are split, or with parameters in modules that have children."""
    kind, rule = type(model).__name__, f"scale.strategy={scale.strategy} splits a transformer's `blocks`"
    remedy = "use model.name=gpt or bert, or set scale.strategy=fsdp"
    blocks = blocks_of(model)
    if not blocks:
        raise ModelError(f"a model of class {kind} has no `blocks`: {rule}; {remedy}")
    for block in blocks:
        modules = dict(block.named_modules())
        for name in (*COLUMN_PARALLEL, *ROW_PARALLEL):
            if not isinstance(modules.get(name), nn.Linear):
                raise ModelError(f"a block of {kind} has no nn.Linear named `{name}`: {rule} there; {remedy}")
        if not isinstance(getattr(modules["attention"], "head_dim", None), int):
            raise ModelError(f"a block of {kind} has no `attention.head_dim`: {rule} by heads; {remedy}")
    for name, module in model.named_modules():
        if next(module.children(), None) and next(module.parameters(recurse=False), None) is not None:
            raise ModelError(
                f"module '{name or kind}' holds parameters and modules: {rule}, and needs every other parameter "
                f"in a module of its own; {remedy}"
            )


def _check_heads(model: nn.Module, scale: ParallelismConfig) -> None:
    for block in blocks_of(model) or ():
        query, head_dim = block.get_submodule("attention.query"), block.get_submodule("attention").head_dim
        heads = int(query.out_features) // int(head_dim)  # type: ignore[arg-type]
        if heads % scale.tensor_size:
            larger = (heads // scale.tensor_size + 1) * scale.tensor_size
            raise ModelError(
                f"{heads} attention heads do not divide among the {scale.tensor_size} workers of a tensor-parallel "
                f"group (scale.strategy={scale.strategy}): set model.args={{heads: {larger}}} with a model.width "
                f"that {larger} divides, or change scale.{_size_key(scale)}"
            )


def _size_key(scale: ParallelismConfig) -> str:
    return "num_workers" if scale.strategy == "tp" else "tp_size"
