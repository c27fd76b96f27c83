"""The coordinate check of a run's config, on its own data, logged as a run of its own. Needs no Ray.

`shoal.training.assemble` makes the training loop of each width, as it does for `jobs/train.py`; measurement and
verdict are `shoal.tune.analysis.coordinate_check`'s.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator

from shoal.cluster import session
from shoal.config.schema import Section
from shoal.data.loader import Batch, Shard
from shoal.data.partition import partition_source
from shoal.data.tree import select_rows
from shoal.distributed.process_group import SingleProcess
from shoal.plots.figure import to_png
from shoal.runs.config import RunConfig
from shoal.runs.job_result import JobResult, log_job_result
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.machine import local_device
from shoal.runs.mlflow_metadata import run_metadata
from shoal.runs.resident import resident_shard
from shoal.runs.validate import RunPlan, validate
from shoal.runs.worker import WorkerSpec
from shoal.storage.records import CoordinateCheckResult, Metadata
from shoal.storage.run_folder import RunFolder
from shoal.training.assemble import assemble
from shoal.training.loop import TrainConfig, TrainingLoop
from shoal.tune.analysis.coordinate_check import (
    TOLERANCE,
    Coordinate,
    CoordinateVerdict,
    coordinate_check,
    coordinate_figure,
    growth,
    verdict,
)

FACTORS = (1, 2, 4, 8, 16)
WIDEST = 1024
# Of a batch, the sequences that hold so many tokens: outputs grow with the width as in a full batch.
MOST_TOKENS = 1024
# In this process, unsharded, and from the initialization: a folder's weights are of one width.
HERE = {"scale.num_workers": 0, "scale.strategy": "ddp", "scale.tp_size": None, "model.init": None}


class CheckConfig(Section):
    widths: tuple[int, ...] | None = Field(
        None,
        description="two or more; null: model.base_width, else model.width, times 1, 2, 4, 8, 16 up to 1024",
    )
    steps: int = Field(4, ge=1, description="optimizer steps at each width")
    seeds: int = Field(2, ge=1, description="models of each width, which differ by their initialization")
    tolerance: float = Field(
        TOLERANCE, gt=0, description="largest |k| of changes that go as width^k which passes"
    )

    @field_validator("widths")
    @classmethod
    def _are_several(cls, widths: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if widths is not None and (len(set(widths)) < 2 or min(widths) < 1):
            raise ValueError("a check compares two different widths or more, e.g. [64, 128, 256, 512]")
        return widths


class CoordinateConfig(RunConfig):
    name_prefix: ClassVar[str] = "coordinate-check-"

    check: CheckConfig = Field(default_factory=CheckConfig)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that are compared, narrowest first."""
        first = self.model.base_width or self.model.width
        wide = [first * factor for factor in FACTORS if first * factor <= max(WIDEST, 2 * first)]
        return tuple(sorted(set(self.check.widths or wide)))


@dataclass(frozen=True)
class CoordinateCheck:
    """What was measured at every width, and what it means."""

    config: CoordinateConfig
    plan: RunPlan
    records: list[Coordinate]
    exponents: dict[str, float]  # of each module's change at the last step
    verdict: CoordinateVerdict

    def change(self, module: str, width: int) -> float:
        """Return how far a module's output has moved at the last step, in the mean over seeds."""
        last = self.config.check.steps
        found = [
            record.change
            for record in self.records
            if (record.module, record.width, record.step) == (module, width, last)
        ]
        return sum(found) / len(found)

    @property
    def remedy(self) -> str:
        """What to do about a check that failed."""
        model = self.config.model
        if model.parametrization == "mup" and self.verdict.exponent < 0:
            # Measured on BERT's output layer, widths 32 to 512: -0.24 at 3 steps, -0.17 at 4, within 0.06 at 10.
            return "raise check.steps, since what an untrained output layer adds is less the wider it is, and fades"
        if model.parametrization == "mup":
            return "have the model say by `roles()` which of its parameters are input, hidden and output ones"
        return f"set model.parametrization=mup and model.base_width={model.base_width or model.width}"


def check_coordinates(
    config: CoordinateConfig, tell: Callable[[int], None] = lambda width: None
) -> CoordinateCheck:
    """Train for some steps at every width, on the first batches of the config's data.

    Args:
        tell: called with each width when it has been trained.

    Raises:
        UserError: the config, its data or its model at one of the widths cannot be trained.
    """
    plan = validate(config.replace(HERE), session.connect)
    assert plan.dataset_info is not None
    dataset_info, transform = plan.dataset_info, plan.dataset_info.transform
    device = local_device(config.scale)
    spec = WorkerSpec(plan.config, "", 0, dataset_info, plan.preprocessing)
    rows = partition_source(plan.source, plan.preprocessing, dataset_info, 1)[0]
    shard = resident_shard(spec, rows, 0, 1, device)

    def loop_at(width: int, seed: int) -> TrainingLoop:
        """Assemble the loop of a width: in full precision, at the peak learning rate from the first step on."""
        model = plan.config.model.model_copy(update={"width": width})
        at_width = plan.config.model_copy(update={"model": model, "seed": seed, "train": TrainConfig()})
        loop = assemble(at_width, transform, shard, SingleProcess(), device)
        return replace(loop, learning_rate=lambda step: config.optim.lr)

    viewed = loop_at(config.widths[0], config.seed).shard
    batches = list(map(_part, itertools.islice(_stream(viewed), config.check.steps)))
    records = coordinate_check(
        loop_at,
        batches,
        config.widths,
        config.check.steps,
        [config.seed + number for number in range(config.check.seeds)],
        tell,
    )
    exponents = growth(records)
    return CoordinateCheck(config, plan, records, exponents, verdict(exponents, config.check.tolerance))


def log_check(checked: CoordinateCheck, folder: RunFolder) -> CoordinateCheckResult:
    """Draw the picture, and write all that was found to the run folder and to MLflow."""
    config, found = checked.config, checked.verdict
    model = config.model.name
    title = f"{model}, {config.model.parametrization}, {config.optim.name}: {found}"
    finite = {name: value for name, value in checked.exponents.items() if math.isfinite(value)}
    result = {
        "passes": found.passes,
        "parametrization": config.model.parametrization,
        "widths": list(config.widths),
        "steps": config.check.steps,
        "seeds": config.check.seeds,
        "tolerance": config.check.tolerance,
        "worst_module": found.module,
        "worst_exponent": finite.get(found.module),
        "exponents": {name: finite.get(name) for name in checked.exponents},
    }
    metrics = {f"exponent/{name}": value for name, value in finite.items()}
    pictures = {"coordinate_check": to_png(coordinate_figure(checked.records, checked.exponents, title))}
    kept = JobResult(config, _metadata(checked), metrics, pictures, CoordinateCheckResult, result)
    return log_job_result(folder, kept, config.experiment_name, resolve_tracking_uri(config.track))


def _metadata(checked: CoordinateCheck) -> Metadata:
    """Return what MLflow receives of the check besides exponents."""
    config, plan = checked.config, checked.plan
    assert plan.dataset_info is not None
    assert plan.size is not None
    metadata = run_metadata(plan.config, plan.dataset_info, plan.size)
    params = {
        "model.parametrization": config.model.parametrization,
        "model.base_width": config.model.base_width,
        "check.widths": ", ".join(map(str, config.widths)),
        "check.steps": config.check.steps,
    }
    tags = {
        "shoal.job": "coordinate_check",
        "shoal.coordinate_check": "PASS" if checked.verdict.passes else "FAIL",
        "mlflow.note.content": f"{config.data.source}, {config.model.name}: {checked.verdict}",
    }
    of_one_width = ("model.width", "model.parameters")
    common = {key: value for key, value in metadata.params.items() if key not in of_one_width}
    return metadata.replace(params=common).extended(params, tags)


def _stream(shard: Shard) -> Iterator[Batch]:
    return itertools.chain.from_iterable(shard.batches(epoch, 0) for epoch in itertools.count())


def _part(batch: Batch) -> Batch:
    """Return the first sequences of a batch of tokens; of others, whose samples are no sequences, the batch."""
    inputs = batch.inputs
    if not isinstance(inputs, torch.Tensor) or inputs.is_floating_point() or inputs.ndim != 2:
        return batch
    rows = max(1, MOST_TOKENS // inputs.shape[1])
    return Batch(inputs[:rows], select_rows(batch.targets, slice(0, rows)), min(batch.count, rows))
