import torch

from shoal.training.device_memory import peak_bytes

CPU = torch.device("cpu")


def test_the_peak_of_memory_rises_by_what_is_taken_and_stays():
    before = peak_bytes(CPU)
    taken = torch.ones(max(before, 100 << 20) // 4)  # more than there ever was, whatever other tests took
    after = peak_bytes(CPU)
    assert after > before + taken.nbytes // 4
    del taken
    assert peak_bytes(CPU) == after
