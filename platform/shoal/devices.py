"""The devices that workers compute on: what each kind is called, whether it is there, its memory and random states.

It is the only module that names a kind's own interface of torch; the others hold a `torch.device`. CUDA's is asked by
its own name, every other kind's by `torch.accelerator` and `torch.get_device_module`. Depends on torch; independent of
Ray, of which it knows the names of resources.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError

Accelerator = Literal["auto", "cpu", "cuda", "xpu", "mps", "npu", "hpu", "tpu"]

CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Kind:
    """A kind of device; picklable.

    Attributes:
        type: its name in torch.
        resource: its name among Ray's resources; None: a worker needs none.
        backend: of torch.distributed.
        package: that makes torch know the kind when it is imported; None: torch itself.
        visible: environment variables, one of which lists the devices of a node that a process sees.
    """

    type: str
    resource: str | None
    backend: str
    package: str | None = None
    visible: tuple[str, ...] = ()

    @property
    def resources(self) -> dict[str, float]:
        """What a worker asks of a node besides CPUs, by Ray's names."""
        return {} if self.resource is None else {self.resource: 1.0}


CPU = Kind("cpu", None, "gloo")
CUDA = Kind("cuda", "GPU", "nccl", visible=("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
KINDS = {
    kind.type: kind
    for kind in (
        CPU,
        CUDA,
        Kind("xpu", "GPU", "xccl", visible=("ONEAPI_DEVICE_SELECTOR",)),
        Kind("mps", "GPU", "gloo"),
        Kind("npu", "NPU", "hccl", "torch_npu", ("ASCEND_RT_VISIBLE_DEVICES",)),
        Kind("hpu", "HPU", "hccl", "habana_frameworks.torch", ("HABANA_VISIBLE_MODULES",)),
        Kind("tpu", "TPU", "tpu_dist", "torch_tpu", ("TPU_VISIBLE_CHIPS",)),
    )
}


def find(accelerator: Accelerator) -> Kind:
    """Return the kind of device that a key asks for, which is on this machine, or the CPU where `auto` finds no other.

    Raises:
        ConfigError: there is none, or torch does not know the kind.
    """
    if accelerator == "auto":
        return _found_by_itself() or CPU
    kind = KINDS[accelerator]
    load(kind)
    if not count(kind):
        raise ConfigError(
            f"scale.accelerator={accelerator} needs such a device, and torch {torch.__version__} finds none on this "
            "machine: install its driver and a torch that is built for it, or set scale.accelerator=auto"
        )
    return kind


def find_in_cluster(accelerator: Accelerator) -> Kind:
    """Return the kind of device that a key asks of the nodes of a cluster, which this machine may lack."""
    return _found_by_itself() or CUDA if accelerator == "auto" else KINDS[accelerator]


def _found_by_itself() -> Kind | None:
    """Return what `auto` takes here. Apple's GPUs are taken by name alone: nothing has been tried on one."""
    if torch.cuda.is_available():
        return CUDA
    other = _other()
    if other is None or other.type == "mps":
        return None
    return KINDS.get(other.type) or Kind(other.type, "GPU", _backend(other))


def _backend(device: torch.device) -> str:
    import torch.distributed as dist

    return (
        dist.get_default_backend_for_device(device)
        if device.type in dist.Backend.default_device_backend_map
        else "gloo"
    )


def load(kind: Kind) -> None:
    """Have torch know a kind of device.

    Raises:
        ConfigError: its package is not installed, or does not work.
    """
    if kind.package is None:
        return
    try:
        importlib.import_module(kind.package)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and kind.package.startswith(str(error.name))
        reason = "is not installed" if is_missing else f"does not work ({_first_line(error)})"
        raise ConfigError(
            f"scale.accelerator={kind.type} needs the package {kind.package}, which {reason}: install the one for "
            f"torch {torch.__version__} on every node, or set scale.accelerator=auto"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def count(kind: Kind) -> int:
    """Return how many devices of a kind this process sees."""
    if kind is CPU:
        return os.cpu_count() or 1
    if kind.type == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    other = _other()
    return torch.accelerator.device_count() if other is not None and other.type == kind.type else 0


def first_device(kind: Kind) -> torch.device:
    """Return the device of a process that sees no other, or chooses none."""
    return CPU_DEVICE if kind.resource is None else torch.device(kind.type, 0)


def assigned_device(kind: Kind, ids: Sequence[str]) -> torch.device:
    """Return the device that Ray assigned to this process; torch numbers those that the process sees.

    Args:
        ids: of the devices, as Ray numbers those of a node.
    """
    seen = next((value.split(",") for name in kind.visible if (value := os.environ.get(name))), [])
    if kind.resource is None or not ids:
        return first_device(kind)
    if ids[0] in seen:
        return torch.device(kind.type, seen.index(ids[0]))
    is_there = not seen and ids[0].isdecimal() and int(ids[0]) < count(kind)
    return torch.device(kind.type, int(ids[0]) if is_there else 0)


def set_current(device: torch.device) -> None:
    """Make a device the one that this process uses where no other is named."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model in place. What several modules share stays one parameter: on some devices torch makes several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model.to(device)
    for first, *others in names.values():
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's GPUs do not."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def place_of_sums(device: torch.device) -> torch.device:
    """Return where sums are kept, which are float64: the device itself, or the host where it has none."""
    return device if has_float64(device) else CPU_DEVICE


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the host where its device has none."""
    return tensor.to(place_of_sums(tensor.device)).double()


def names() -> list[str]:
    """Return the names of the devices that this process sees, besides CPUs."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    other = _other()
    if other is None:
        return []
    name = getattr(torch.get_device_module(other), "get_device_name", lambda number: other.type)
    return [name(number) for number in range(torch.accelerator.device_count())]


def cuda_name(device: torch.device) -> str:
    """Return the name of a CUDA device; empty for others, whose speed is not known."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def memory_in_use() -> tuple[int, int] | None:
    """Return the free and the total memory of the first device besides CPUs; None where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    other = _other()
    return None if other is None else _memory_info(other)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory of a device that no process has taken; None for a CPU, whose memory rows lie in anyway."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = None if device.type == "cpu" else _memory_info(device)
    return found and found[0]


def _memory_info(device: torch.device) -> tuple[int, int] | None:
    with contextlib.suppress(NotImplementedError, RuntimeError):  # kinds whose allocator does not count
        return torch.accelerator.get_memory_info(device)
    return None


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory anew, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type != "cpu":
        with contextlib.suppress(NotImplementedError, RuntimeError):
            torch.accelerator.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors took on a device; None for a CPU, and where the device does not count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        return None
    with contextlib.suppress(NotImplementedError, RuntimeError):
        return torch.accelerator.max_memory_allocated(device)
    return None


def empty_cache() -> None:
    """Give memory back that no tensor uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif _other() is not None:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            torch.accelerator.empty_cache()


def seed_all(seed: int) -> None:
    """Seed the random states of all devices besides CPUs, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    elif (module := _module_in_use()) is not None:
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


def rng_states() -> dict[str, Tensor | None]:
    """Return the random states of this process's devices besides CPUs, by kind; CUDA's is None where it has none."""
    states: dict[str, Tensor | None] = {
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    }
    other = _other()
    if other is not None:
        states[other.type] = torch.get_device_module(other).get_rng_state()
    return states


def set_rng_states(states: Mapping[str, Any]) -> None:
    """Set the random states that `rng_states` returned, on the kinds of devices that are there."""
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    other = _other()
    if other is not None and states.get(other.type) is not None:
        torch.get_device_module(other).set_rng_state(states[other.type])


def fork_rng(of_all: bool) -> AbstractContextManager[None]:
    """Restore the random states of the CPU and of other devices on exit: of all that are in use, or the current one."""
    if torch.cuda.is_available():
        used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        return torch.random.fork_rng(devices=used if of_all else [torch.cuda.current_device()])
    module, other = _module_in_use(), _other()
    if module is None or other is None or other.type == "mps":  # whose module takes no number of a device
        return torch.random.fork_rng(devices=())
    return torch.random.fork_rng(devices=[torch.accelerator.current_device_index()], device_type=other.type)


def _other() -> torch.device | None:
    """Return the kind of device besides CUDA's that torch finds here, if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None or found.type == "cuda" else found


def _module_in_use() -> Any:
    """Return the module of the kind of device that `_other` returns, unless it says that no process uses it yet."""
    other = _other()
    if other is None:
        return None
    module = torch.get_device_module(other)
    return module if getattr(module, "is_initialized", lambda: True)() else None
