import os
import subprocess
import sys

import torch

from shoal.training.device_memory import peak_bytes

CPU = torch.device("cpu")


def test_the_peak_of_memory_rises_by_what_is_taken_and_stays():
    before = peak_bytes(CPU)
    taken = torch.ones(max(before, 100 << 20) // 4)  # more than there ever was, whatever other tests took
    after = peak_bytes(CPU)
    assert after > before + taken.nbytes // 4
    del taken
    assert abs(peak_bytes(CPU) - after) < 4 << 20  # the system counts a few pages late


def test_a_process_has_a_peak_of_its_own():
    """And not that of the process that started it."""
    code = "import torch; from shoal.training.device_memory import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    taken = torch.ones((2 << 30) // 4)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert int(done.stdout) < taken.nbytes // 2
