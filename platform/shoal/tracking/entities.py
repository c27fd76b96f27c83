"""MLflow's entities that a run folder needs: an experiment, the one run of a key, a data set as an input."""

from collections.abc import Sequence
from typing import Any

from shoal.storage.records import DatasetRecord

MOST_REASON = 5000  # characters


def experiment_id(client: Any, name: str, artifact_location: str | None) -> str:
    """Return the id of an experiment, which is made if there is none, and restored if it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another process was faster
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def only_one(client: Any, runs: Sequence[Any]) -> Any:
    """Return the fullest of several runs of one key, or None; delete the others.

    They were created by a call whose answer was lost, or by two processes at once.
    """
    runs = sorted(runs, key=lambda run: (len(run.data.metrics), len(run.data.params)), reverse=True)
    for other in runs[1:]:
        client.delete_run(other.info.run_id)
    return runs[0] if runs else None


def dataset_input(dataset: DatasetRecord, context: str) -> Any:
    """Return a data set as an input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        dataset.name, dataset.digest, dataset.source_type, dataset.source, dataset.columns, dataset.profile
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def reason_text(reason: str | None) -> str | None:
    """Return the text of the tag that says why a run ended; None: it has no such tag."""
    return reason[:MOST_REASON] if reason else None
