"""Stands in for Huawei's torch_npu where there is no NPU: a device of that name in the host's memory (`device.cpp`).

Importing it makes torch know `npu`, as importing the real package does. It needs a C++ compiler; the library that it
makes is kept in the folder that EMULATED_BUILD names.
"""

import fcntl
import os
import subprocess
from pathlib import Path
from types import ModuleType

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("device.cpp")


def _library() -> Path:
    """Compile the device, once for all processes."""
    folder = Path(os.environ["EMULATED_BUILD"])
    library = folder / "device.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            partial = folder / "partial.so"
            flags = [
                "-shared",
                "-fPIC",
                "-O1",
                "-std=c++20",
                f"-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}",
            ]
            where = [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
            command = ["g++", *flags, *where, str(SOURCE), "-o", str(partial), "-ltorch_cpu", "-lc10"]
            subprocess.run(command, check=True)
            partial.rename(library)
    return library


class _Device(ModuleType):
    """What torch asks of `torch.npu`."""

    generator = torch.Generator()

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: object) -> None:
        pass

    def get_device_name(self, device: object = None) -> str:
        return "Emulated NPU"

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        self.generator.set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    manual_seed = manual_seed_all

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", _Device("npu"))
torch.utils.generate_methods_for_privateuse1_backend(for_packed_sequence=False)
torch.ops.load_library(str(_library()))
