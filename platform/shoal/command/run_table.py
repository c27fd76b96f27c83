"""What is known of a run folder at a glance: its state, how far it is, what to do next with it."""

import json
from dataclasses import dataclass
from datetime import datetime

from shoal.storage.lease import liveness
from shoal.storage.records import Identity, Metadata, Result
from shoal.storage.run_folder import CHECKPOINTS, RunFolder

# By the state of a run folder: how it came to it.
STATES = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "running",
    "DIED": "its process is gone",
    "ELSEWHERE": "running on another host, or its process is gone",
}


@dataclass(frozen=True)
class RunSummary:
    """A run folder at a glance.

    Attributes:
        state: a key of STATES.
        step: optimizer steps, or ended trials of a sweep; None where not known.
        metrics: of its result, by name.
        next: what to do about it; empty where it is done.
    """

    folder: RunFolder
    identity: Identity
    state: str
    step: int | None
    metrics: dict[str, float]
    next: str

    @property
    def name(self) -> str:
        return f"{self.identity.experiment}/{self.identity.name}"

    @property
    def started(self) -> str:
        return f"{datetime.fromtimestamp(self.identity.start_ms / 1000):%Y-%m-%d %H:%M}"

    @property
    def metric(self) -> str:
        """The metric that says most, as text."""
        names = ("val/loss", "test/loss", "loss", *self.metrics)
        name = next((name for name in names if name in self.metrics), None)
        return f"{name} {self.metrics[name]:.4g}" if name else ""


def summarise(folder: RunFolder) -> RunSummary:
    """Look at a run folder, without waiting for anything.

    Raises:
        StorageError: a file of it is damaged.
    """
    identity = folder.identity()
    state = _state(folder, identity)
    result = json.loads(folder.read(Result.file)) if folder.exists(Result.file) else {}
    return RunSummary(
        folder, identity, state, _step(folder, result), _metrics(result), _next(folder, identity, state)
    )


def _state(folder: RunFolder, identity: Identity) -> str:
    if identity.status != "RUNNING":
        return identity.status
    lease = folder.lease()
    alive = liveness(lease) if lease else "gone"
    return {"alive": "RUNNING", "gone": "DIED", "unknown": "ELSEWHERE"}[alive]


def _step(folder: RunFolder, result: dict) -> int | None:
    if "trials" in result and isinstance(result["trials"], dict):
        return int(result["trials"].get("ended", 0))
    if result.get("steps") is not None and not isinstance(result["steps"], list):
        return int(result["steps"])
    saved = [
        int(name.removeprefix("step-")) for name in folder.names(CHECKPOINTS) if name.startswith("step-")
    ]
    return max(saved, default=None)


def _metrics(result: dict) -> dict[str, float]:
    best = result.get("best") or {}
    if "trial" in best and best.get("value") is not None:
        return {f"best {result['metric']}": best["value"]}
    return {name: value for name, value in (result.get("metrics") or {}).items() if value is not None}


def _next(folder: RunFolder, identity: Identity, state: str) -> str:
    if state == "FINISHED":
        return "" if folder.tracked().run_id else f"shoal sync {folder.uri}"
    if state in ("RUNNING", "ELSEWHERE"):
        lease = folder.lease()
        return (
            f"wait: {lease.process} works on it"
            if lease and state == "RUNNING"
            else "wait, or the same command again"
        )
    metadata = folder.load(Metadata)
    typed = metadata.environment.command if metadata and metadata.environment else ""
    again = f"the same command goes on{': ' + typed if typed else ''}"
    reason = " ".join((identity.reason or "").split())
    return f"{reason}; {again}" if state == "FAILED" and reason else again
