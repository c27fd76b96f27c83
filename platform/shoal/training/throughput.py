"""Throughput: samples, tokens and floating-point operations per second, and their share of the devices' peak.

It knows arithmetic and data sheets; measurements come from outside.
"""

import re
from dataclasses import dataclass

from shoal.models.flops import training_flops
from shoal.training.mixed_precision import Precision

# Dense peaks by NVIDIA's data sheets in 1e12 FLOP/s: half precision on tensor cores, float32 without them. The first
# pattern found in the device's name counts.
PEAKS = (
    (r"\bH200\b.*\bNVL\b", 836.0, 60.0),
    (r"\bH200\b", 989.0, 67.0),
    (r"\bH100\b.*\bNVL\b", 835.0, 60.0),
    (r"\bH100\b.*\bPCIe\b", 756.0, 51.0),
    (r"\bH100\b", 989.0, 67.0),
    (r"\bA100\b", 312.0, 19.5),
    (r"\bL40S\b", 362.0, 91.6),
    (r"\bL4\b", 121.0, 30.3),
    (r"\bA10G\b", 70.0, 35.0),
    (r"\bRTX 4090$", 165.2, 82.6),
    (r"\bV100\b.*\bPCIE\b", 112.0, 14.0),
    (r"\bV100\b", 125.0, 15.7),
    (r"\bT4\b", 65.0, 8.1),
)
WITHOUT_BF16 = r"\b(V100|T4)\b"


def peak_flops(device: str, precision: Precision) -> float | None:
    """Return the dense peak of a device in FLOP/s, by the name PyTorch gives it; None where it is not known."""
    if precision == "bf16" and re.search(WITHOUT_BF16, device):
        return None
    for pattern, half, full in PEAKS:
        if re.search(pattern, device):
            return (full if precision == "fp32" else half) * 1e12
    return None


@dataclass(frozen=True)
class Workload:
    """What a sample costs and what the devices could do.

    Attributes:
        flops_per_sample: of a forward pass.
        tokens_per_sample: where a sample is a sequence.
        peak_flops: per second, of all workers' devices together.
    """

    flops_per_sample: int | None = None
    tokens_per_sample: int | None = None
    peak_flops: float | None = None

    def rates(self, samples_per_second: float) -> dict[str, float]:
        """Return a throughput in each unit, by name; units that are not known are left out.

        `mfu` is the model FLOPs utilization of Chowdhery et al. 2022 (PaLM), appendix B: operations of the
        model, without those that activation checkpointing adds.
        """
        rates = {"samples_per_second": samples_per_second}
        if self.tokens_per_sample:
            rates["tokens_per_second"] = samples_per_second * self.tokens_per_sample
        if self.flops_per_sample:
            rates["flops_per_second"] = samples_per_second * training_flops(self.flops_per_sample, 1)
            if self.peak_flops:
                rates["mfu"] = rates["flops_per_second"] / self.peak_flops
        return rates
