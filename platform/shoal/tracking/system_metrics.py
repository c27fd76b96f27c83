"""System metrics under MLflow's own names, sampled while training and logged to the journal."""

import threading
import time

import psutil

from shoal import devices
from shoal.tracking.journal import Journal

EVERY_S = 10.0
FIRST_S = 2.0


class SystemMonitor:
    """A thread that logs this host's load; its step counts ten-second ticks since the run began."""

    def __init__(self, journal: Journal, run_start_ms: int) -> None:
        self._journal = journal
        # A tick that is not later than the last is no point, so a clock that is set back must not take part.
        self._start_s = time.monotonic() - max(0.0, time.time() - run_start_ms / 1000)
        self._stopped = threading.Event()
        self._net = psutil.net_io_counters()
        self._thread = threading.Thread(target=self._work, name="shoal-system", daemon=True)

    def start(self) -> None:
        psutil.cpu_percent()
        self._thread.start()

    def stop(self) -> None:
        """Stop after a last sample, so that the shortest run has one too."""
        self._stopped.set()
        self._thread.join()
        self._log()

    def sample(self) -> dict[str, float]:
        memory, disk, net = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        metrics = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/disk_usage_percentage": disk.percent,
            "system/network_receive_megabytes": (net.bytes_recv - self._net.bytes_recv) / 1e6,
            "system/network_transmit_megabytes": (net.bytes_sent - self._net.bytes_sent) / 1e6,
        }
        if (memory_of_device := devices.memory_in_use()) is not None:
            free, total = memory_of_device
            metrics["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
            metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        return metrics

    def _work(self) -> None:
        pause = FIRST_S
        while not self._stopped.wait(pause):
            self._log()
            pause = EVERY_S

    def _log(self) -> None:
        tick = int((time.monotonic() - self._start_s) // EVERY_S)
        self._journal.log(tick, self.sample())
