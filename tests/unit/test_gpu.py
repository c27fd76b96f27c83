"""The loop on an NVIDIA GPU, and the benchmark of it; the GPU tests need torch and pydantic, neither Ray nor MLflow."""

from dataclasses import replace

import pytest
import torch
from benchmarks.mfu import Measured, Setting, main, run

TINY = Setting(
    width=64, depth=2, heads=2, vocabulary=300, context=32, batch=4, warm=2, steps=6, precision="fp32"
)
PLAIN = replace(TINY, is_compiled=False)

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


def assert_alike(found: Measured, expected: Measured, tolerance: float) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)


def test_the_benchmark_trains_every_step_and_counts_what_it_costs_on_a_cpu_too():
    found = run(PLAIN, torch.device("cpu"))
    assert len(found.losses) == 8
    assert all(5.5 < loss < 6.0 for loss in found.losses)  # log(297) is 5.69: random tokens teach nothing
    width, context = PLAIN.width, PLAIN.context
    block = 12 * width**2 + 13 * width
    assert found.parameters == 300 * width + 2 * block + 2 * width
    rates = found.rates
    # Forward: 2 for each weight of a product, and scores and mixing of each pair of positions; backward twice that.
    forward = 2 * (2 * 12 * width**2 + 300 * width) + 2 * 4 * context * width
    assert rates["flops_per_second"] / rates["tokens_per_second"] == pytest.approx(3 * forward)
    assert "mfu" not in rates  # of a CPU nobody knows the peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so(capsys):
    assert main([]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err


class TestOnGPU:
    pytestmark = on_gpu

    def test_losses_are_those_of_the_cpu(self):
        assert_alike(run(PLAIN, torch.device("cuda")), run(PLAIN, torch.device("cpu")), 1e-3)

    def test_two_runs_are_equal(self):
        assert run(PLAIN, torch.device("cuda")).losses == run(PLAIN, torch.device("cuda")).losses

    @pytest.mark.parametrize("precision", ["bf16", "fp32"])
    def test_compiled_and_in_bf16_the_losses_are_the_same_to_the_formats_precision(self, precision):
        found = run(replace(TINY, precision=precision), torch.device("cuda"))
        assert_alike(found, run(PLAIN, torch.device("cuda")), 2e-2 if precision == "bf16" else 1e-3)

    def test_the_device_is_used_for_what_it_is_bought_for(self):
        assert run(Setting(steps=20), torch.device("cuda")).rates["mfu"] > 0.4
