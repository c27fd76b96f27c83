"""How memory runs out on a device, and how much of it was used."""

import resource
import sys

import torch

# How PyTorch and Python say that memory is used up; the classes alone do not cover the CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is used up, on whichever device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in OUT_OF_MEMORY)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU that no process has taken; None for a CPU, whose memory rows lie in anyway."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak anew, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU, or that this process ever had in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
