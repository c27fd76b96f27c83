import pytest

from shoal.training.throughput import Workload, peak_flops


def test_a_step_costs_three_forward_passes_and_utilisation_is_of_all_devices():
    rates = Workload(flops_per_sample=2_000_000, tokens_per_sample=128, peak_flops=2 * 989e12).rates(1e6)
    assert rates["samples_per_second"] == 1e6
    assert rates["tokens_per_second"] == 1.28e8
    assert rates["flops_per_second"] == 6e12
    assert rates["mfu"] == pytest.approx(6 / 1978)


def test_what_is_not_known_is_left_out():
    assert Workload().rates(5.0) == {"samples_per_second": 5.0}
    assert set(Workload(flops_per_sample=10).rates(5.0)) == {"samples_per_second", "flops_per_second"}


@pytest.mark.parametrize(
    ("device", "half", "full"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("NVIDIA L40", None, None),
        ("", None, None),
    ],
)
def test_peaks_are_found_by_the_devices_name(device, half, full):
    assert (peak_flops(device, "bf16"), peak_flops(device, "fp32")) == (half, full)


def test_cards_without_bf16_have_their_fp16_peak():
    assert [peak_flops(name, "fp16") for name in ("Tesla T4", "Tesla V100-PCIE-32GB")] == [65e12, 112e12]
