"""How memory runs out on a device, and how much of it was used."""

import resource
import sys
from pathlib import Path

import torch

from shoal import devices

# How PyTorch and Python say that memory is used up; the classes alone do not cover the CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is used up, on whichever device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in OUT_OF_MEMORY)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a device that counts it, or that this process ever had in RAM."""
    found = devices.peak_bytes(device)
    if found is not None:
        return found
    return _peak_of_process()


def _peak_of_process() -> int:
    """Return the most RAM that this process had; `ru_maxrss` is never less than that of the one that started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # no Linux, or a sandbox that leaves it out
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
