"""Batch prediction by Ray actors: each loads the model once, and reads, predicts and writes fragments by itself.

No row passes through the driver or the object store. An actor that is lost is started again, and does its fragment
again: slices that it had written are there already.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from shoal.cluster.session import connect, disconnect
from shoal.errors import TrainingError, UserError
from shoal.inference.batch import BatchPredictor, Read, Settings
from shoal.inference.batch_output import Done, Format, Output
from shoal.inference.predictor import Predictor
from shoal.runs.config import ScaleConfig


class _Worker:
    """One process that predicts."""

    def __init__(
        self,
        model: dict[str, bytes],
        trust_code: bool,
        settings: Settings,
        read: Read,
        output: tuple[str, Format],
    ) -> None:
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        self._scratch = tempfile.TemporaryDirectory(prefix="shoal-model-")
        for name, data in model.items():
            path = Path(self._scratch.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        [weights] = (Path(self._scratch.name) / "data").iterdir()
        self._batch = BatchPredictor(Predictor.load(weights, trust_code=trust_code), settings)
        self._read, self._output = read, Output(*output)

    def predict(self, fragment: int) -> Done:
        return self._batch.predict_fragment(self._read, fragment, self._output)


def predict_on_cluster(
    scale: ScaleConfig,
    weights: Path,
    trust_code: bool,
    settings: Settings,
    read: Read,
    output: tuple[str, Format],
    fragments: list[int],
) -> Iterator[Done]:
    """Predict fragments by `scale.num_workers` actors; yield what became of each, in the order in which they end.

    Args:
        weights: folder of weights of a saved model, which each actor receives a copy of.

    Raises:
        UserError: as an actor raised it.
        TrainingError: an actor was lost more often than `scale.max_failures`.
    """
    connect(scale, spare_cpus=0)
    try:
        model = weights.resolve().parents[1]
        files = {
            path.relative_to(model).as_posix(): path.read_bytes()
            for path in model.rglob("*")
            if path.is_file()
        }
        make = ray.remote(_Worker).options(
            num_cpus=scale.cpus_per_worker,
            max_restarts=scale.max_failures,
            max_task_retries=scale.max_failures,
        )
        shared, left = [ray.put(files), trust_code, settings, ray.put(read), output], list(fragments)
        actors = [make.remote(*shared) for _ in range(min(scale.most_workers, len(left)))]
        busy = {actor.predict.remote(left.pop(0)): actor for actor in actors}
        while busy:
            [ready], _ = ray.wait(list(busy), num_returns=1)
            actor = busy.pop(ready)
            yield _get(ready)
            if left:
                busy[actor.predict.remote(left.pop(0))] = actor
    finally:
        disconnect()


def _get(ref: Any) -> Done:
    try:
        return ray.get(ref)  # type: ignore[no-any-return]
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(
            f"workers that predict are lost again and again ({reason}): the same command goes on where they were; give "
            "them more memory, or set scale.num_workers lower"
        ) from error
