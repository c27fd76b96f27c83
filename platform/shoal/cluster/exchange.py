"""Population based training: a trial goes on from another's checkpoint, at a point of its own."""

from typing import Any

from shoal.cluster.progress import Progress
from shoal.runfolder import CHECKPOINTS, FACTS, RunFolder
from shoal.sweep.engine import Clone

LINEAGE = "lineage.json"


def exchange(clone: Clone, progress: Progress, source: Progress, config: Any) -> None:
    """Put the source's checkpoint into the trial's folder, once, and move the trial to its new point.

    Args:
        config: the sweep's.
    """
    lineage = progress.folder.read_json(LINEAGE) or []
    if not any(entry["iteration"] == clone.report.iteration for entry in lineage):
        progress.folder.copy_folder(source.folder, f"{CHECKPOINTS}/step-{clone.report.step:06d}")
        entry = {
            "iteration": clone.report.iteration,
            "step": clone.report.step,
            "from": clone.source.name,
            "point": clone.point,
        }
        progress.folder.write_json(LINEAGE, [*lineage, entry])
        _tag(progress.folder, clone)
    clone.trial.point = clone.point
    progress.config = config.trial(clone.point, clone.trial.repeat, clone.trial.name).replace(
        {"seed": progress.config.seed}
    )


def _tag(folder: RunFolder, clone: Clone) -> None:
    """MLflow's params do not change: what a trial goes on with is a tag."""
    facts = folder.read_json(FACTS)
    if facts:
        changed = ", ".join(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                            for key, value in clone.point.items())  # fmt: skip
        facts["tags"][f"shoal.pbt.{clone.report.iteration:03d}"] = f"from {clone.source.name}: {changed}"
        folder.write_json(FACTS, facts)
