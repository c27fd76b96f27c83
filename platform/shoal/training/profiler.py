"""A trace of some steps by PyTorch's profiler, for chrome://tracing or Perfetto, and a table of what took longest.

It knows the profiler and the run folder; it does not know what a step is.
"""

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from shoal.storage.run_folder import PROFILE, RunFolder

FIRST, STEPS = 10, 6  # the first steps warm caches up and are no measure
TRACE, TABLE = "trace.json.gz", "operators.txt"
ROWS = 30
TRACED = ("cuda", "xpu")  # devices whose own kernels the profiler sees


class StepProfiler:
    """Traces steps 10 to 15 of an attempt, or some of the second half of one that is shorter."""

    def __init__(self, folder: RunFolder, device: torch.device, steps: int) -> None:
        """Start tracing.

        Args:
            folder: of the run; `profile/` in it will hold trace and table.
            device: that the model is on.
            steps: how many the attempt will make at most.
        """
        self._folder, self._device = folder, device
        activities = [ProfilerActivity.CPU] + [getattr(ProfilerActivity, device.type.upper())] * (
            device.type in TRACED
        )
        first = max(1, min(FIRST, steps // 2))
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=first - 1, warmup=1, active=STEPS, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> None:
        """Count an optimizer step."""
        self._profile.step()

    def close(self) -> None:
        """End the trace if it has begun."""
        self._profile.stop()

    def _write(self, traced: profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "trace.json"
            traced.export_chrome_trace(str(path))
            self._folder.write(f"{PROFILE}/{TRACE}", gzip.compress(path.read_bytes()))
        order = f"self_{self._device.type if self._device.type in TRACED else 'cpu'}_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        self._folder.write(f"{PROFILE}/{TABLE}", table.encode())
