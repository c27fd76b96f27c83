"""The coordinate check of a run's config, on its own data, recorded as a run of its own. Needs no ray.

Data, model, task and optimiser come as they come to `jobs/train.py`; what is measured and judged is
`shoal.coordinates`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import nn

from shoal.cluster import session
from shoal.cluster.config import RunConfig, resolve_tracking_uri
from shoal.cluster.facts import facts_of
from shoal.cluster.plan import Plan, check
from shoal.cluster.record import Record, keep
from shoal.cluster.worker import Assignment, resident_shard
from shoal.config import Section
from shoal.coordinates import (
    TOLERANCE,
    Coordinate,
    Verdict,
    coordinate_check,
    coordinate_picture,
    growth,
    verdict,
)
from shoal.data.prepare import deal_here
from shoal.data.shard import Batch, Shard, ViewedShard
from shoal.models import build_for
from shoal.onednn import use_onednn
from shoal.optim import build_optimizer
from shoal.runfolder import RunFolder
from shoal.tasks import make_task

FACTORS = (1, 2, 4, 8, 16)
WIDEST = 1024
# Of a batch: the sequences that hold so many. What a layer puts out grows with the width as in a whole batch.
MOST_TOKENS = 1024
# In this process, whole, and from the initialisation: a folder's weights are of one width.
HERE = {"scale.num_workers": 0, "scale.strategy": "ddp", "scale.tp_size": None, "model.init": None}


class CheckConfig(Section):
    widths: tuple[int, ...] | None = Field(
        None,
        description="two or more; null: model.base_width, else model.width, times 1, 2, 4, 8, 16 up to 1024",
    )
    steps: int = Field(4, ge=1, description="optimiser steps at each width")
    seeds: int = Field(2, ge=1, description="models of each width, which differ by their initialisation")
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
class Checked:
    """What was measured at every width, and what it means."""

    config: CoordinateConfig
    plan: Plan
    records: list[Coordinate]
    exponents: dict[str, float]  # of each module's change at the last step
    verdict: Verdict

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


def check_coordinates(config: CoordinateConfig, tell: Callable[[int], None] = lambda width: None) -> Checked:
    """Train for some steps at every width, on the first batches of the config's data.

    Args:
        tell: called with each width when it has been trained.

    Raises:
        UserError: the config, its data or its model at one of the widths cannot be trained.
    """
    plan = check(config.replace(HERE))
    assert plan.prepared is not None
    prepared, transform = plan.prepared, plan.prepared.transform
    device = torch.device("cuda:0" if config.scale.use_gpu and session.local_gpus() else "cpu")
    told = Assignment(plan.config, "", 0, prepared, plan.recipe)
    task = make_task(config.task, transform, config.data, config.seed)
    shard: Shard = resident_shard(told, deal_here(plan.source, plan.recipe, prepared, 1)[0], 0, 1, device)
    shard = ViewedShard(shard, task.view) if task.view else shard

    def build_at(width: int, seed: int) -> nn.Module:
        model = plan.config.model.model_copy(update={"width": width})
        built = build_for(model, transform, config.task, seed).to(device)
        use_onednn(built)
        return built

    records = coordinate_check(
        build_at,
        lambda model: _optimizer(model, config),
        [(batch.inputs, batch) for batch in map(_part, itertools.islice(_stream(shard), config.check.steps))],
        lambda outputs, batch: task.loss(outputs, batch) / batch.count,
        config.widths,
        config.check.steps,
        [config.seed + number for number in range(config.check.seeds)],
        tell,
    )
    exponents = growth(records)
    return Checked(config, plan, records, exponents, verdict(exponents, config.check.tolerance))


def record(checked: Checked, folder: RunFolder) -> dict[str, Any]:
    """Draw the picture and keep all that was found, in the run folder and in MLflow."""
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
    pictures = {"coordinate_check": coordinate_picture(checked.records, checked.exponents, title)}
    kept = Record(config, _facts(checked), metrics, pictures, result)
    return keep(folder, kept, config.experiment_name, resolve_tracking_uri(config.track))


def _facts(checked: Checked) -> dict[str, Any]:
    """What MLflow is told of the check besides exponents."""
    config, plan = checked.config, checked.plan
    assert plan.prepared is not None
    assert plan.size is not None
    facts = facts_of(plan.config, plan.prepared, plan.size)
    for of_one_width in ("model.width", "model.parameters"):
        del facts["params"][of_one_width]
    facts["params"] |= {
        "model.parametrization": config.model.parametrization,
        "model.base_width": config.model.base_width,
        "check.widths": ", ".join(map(str, config.widths)),
        "check.steps": config.check.steps,
    }
    facts["tags"] |= {
        "shoal.job": "coordinate_check",
        "shoal.coordinate_check": "PASS" if checked.verdict.passes else "FAIL",
        "mlflow.note.content": f"{config.data.source}, {config.model.name}: {checked.verdict}",
    }
    return facts


def _stream(shard: Shard) -> Iterator[Batch]:
    return itertools.chain.from_iterable(shard.batches(epoch, 0) for epoch in itertools.count())


def _part(batch: Batch) -> Batch:
    """Return the first sequences of a batch of tokens; of others, whose samples are no sequences, the batch."""
    if batch.inputs.dtype.is_floating_point or batch.inputs.ndim != 2:
        return batch
    rows = max(1, MOST_TOKENS // batch.inputs.shape[1])
    return Batch(batch.inputs[:rows], batch.targets[:rows], min(batch.count, rows))


def _optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Build the config's optimiser, at its peak learning rate from the first step on; it clips as the loop does."""
    optimizer, clip_norm = build_optimizer(model, config.optim), config.optim.clip_norm

    def clip(*_: Any) -> None:
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
