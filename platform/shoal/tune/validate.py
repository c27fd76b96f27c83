"""Validates a sweep before anything starts: every corner of its space, and one trial's data, model and memory."""

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from shoal.data.dataset_info import check_batch
from shoal.devices import Kind
from shoal.errors import ConfigError, UserError
from shoal.models.huggingface_config import SCHEME
from shoal.models.registry import build_model_for, find_builder
from shoal.models.size import readable
from shoal.runs.config import RunConfig
from shoal.runs.machine import Connect
from shoal.runs.validate import RunPlan, validate
from shoal.training.loop import total_steps
from shoal.tune.config import SweepConfig
from shoal.tune.engine import Search
from shoal.tune.keys import check_range
from shoal.tune.search import make_search
from shoal.tune.space.domains import Point, is_domain
from shoal.tune.space.sampling import corners, resolve

# Tensors of the model's size that training holds: weights, gradients and Adam's two moments.
TRAINING_COPIES = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPlan:
    """A validated sweep; nothing is started yet.

    Attributes:
        base: the plan of one trial; most trials share its data.
        corners: the extreme points of the space.
        infeasible: corners that cannot be trained, and why.
        total: number of trials.
    """

    config: SweepConfig
    base: RunPlan
    corners: list[Point]
    infeasible: list[tuple[Point, str]]
    total: int

    @property
    def corner_configs(self) -> list[RunConfig]:
        return [self.config.trial(point) for point in self.corners]

    def search(self) -> Search:
        """Make the search; it suggests the same points each time."""
        return make_search(self.config.tune, self.config.domains, self.config.mode, self.config.seed)

    def slots(self, has: dict[str, float], spare_cpus: int, kind: Kind) -> int:
        """Return how many trials run side by side.

        Args:
            has: resources of the cluster, by Ray's names.
            spare_cpus: CPUs kept for Ray Data.
            kind: of the device that each worker has.
        """
        scale = self.config.scale
        fits = math.floor(
            (has.get("CPU", 0.0) - spare_cpus) / (scale.most_workers * scale.cpus_per_worker) + 1e-9
        )
        for resource, amount in kind.resources.items():
            fits = min(fits, math.floor(has.get(resource, 0.0) / (amount * scale.most_workers)))
        most = min(fits, self.config.tune.max_concurrent_trials or fits, self.total)
        learns = self.config.tune.search == "optuna"
        limit = self.config.tune.lag * self.config.tune.repeat if learns else most
        if most > limit:
            logger.warning(
                "tune.search=optuna with tune.lag=%d: %d of %d trials that fit run side by side; a larger tune.lag "
                "lets more, and proposes other points",
                self.config.tune.lag,
                limit,
                most,
            )
        return max(1, min(most, limit))

    def actor_resources(self, kind: Kind) -> dict[str, float]:
        """Return the resources of a trial's actor, by Ray's names; a distributed trial's belong to its workers."""
        if self.config.is_distributed:
            return {}
        return {"CPU": self.config.scale.cpus_per_worker} | kind.resources


def validate_sweep(config: SweepConfig, connect: Connect) -> SweepPlan:
    """Check all that can be checked before anything starts.

    Args:
        connect: see `shoal.runs.validate.validate`.

    Raises:
        UserError: the first broken rule.
    """
    points = corners(config.domains)
    _check_ranges(config, points)
    configs = [config.trial(point) for point in points]
    for given in config.tune.points:
        _check_point(config, given)
    base, refused = _first_valid(configs, connect, [("tune.metric", config.tune.metric)])
    infeasible = [(points[number], reason) for number, reason in refused.items()]
    infeasible += [
        (point, reason)
        for number, (point, corner) in enumerate(zip(points, configs, strict=True))
        if number not in refused and (reason := _why_infeasible(corner, base))
    ]
    search = make_search(config.tune, config.domains, config.mode, config.seed)
    return SweepPlan(config, base, points, infeasible, search.total * config.tune.repeat)


def evaluations(config: RunConfig, steps_per_epoch: int) -> int:
    """Return the number of evaluations of a trial."""
    every = evaluation_steps(config, steps_per_epoch)
    return iteration_at(total_steps(config.train, steps_per_epoch), every)


def evaluation_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps between evaluations."""
    return config.train.evaluate_every_steps or steps_per_epoch


def iteration_at(step: int, every: int) -> int:
    """Return the number of the evaluation at a step, from 1, with one every so many steps."""
    return math.ceil(step / every)


def _check_ranges(config: SweepConfig, points: Sequence[Point]) -> None:
    """Check what the config's schema cannot: ranges that functions return, and those of the builder's arguments."""
    for key, domain in config.domains.items():
        for point in points:
            found = resolve(domain, {name: value for name, value in point.items() if name != key}, key)
            if is_domain(found):
                check_range(key, found, _parameter_type(config.trial(point).model.name, key))


def _parameter_type(builder: str, key: str) -> type | None:
    """Return int if a key is an argument that a model's builder declares as a whole number, else None."""
    name = key.removeprefix("model.args.")
    if name == key or builder.startswith(SCHEME):
        return None
    parameter = inspect.signature(find_builder(builder)).parameters.get(name)
    return int if parameter and parameter.annotation in (int, "int") else None


def _check_point(config: SweepConfig, point: Point) -> None:
    for key in point:
        if key not in config.space:
            raise ConfigError(
                f"tune.points names '{key}', which is not swept: the space has {', '.join(config.space)}"
            )
    config.trial(point)


def _first_valid(
    configs: list[RunConfig], connect: Connect, compared: Sequence[tuple[str, str]]
) -> tuple[RunPlan, dict[int, str]]:
    """Return the plan of the first corner that can be trained, and why each corner before it cannot, by number."""
    refused: dict[int, str] = {}
    first: UserError | None = None
    for number, config in enumerate(configs):
        try:
            return validate(config, connect, compared), refused
        except UserError as error:
            first = first or error
            refused[number] = str(error)
    assert first is not None
    raise first


def _why_infeasible(config: RunConfig, base: RunPlan) -> str | None:
    """Return why a corner cannot be trained, or None, as far as is known without trying."""
    if base.dataset_info is None:
        return None
    try:
        check_batch(config.data, base.dataset_info.rows)
        with torch.device("meta"):
            model = build_model_for(config.model, base.dataset_info.transform, config.task, config.seed)
    except UserError as error:
        return str(error)
    except Exception:  # a builder that does not work on the meta device says nothing here
        return None
    needed = TRAINING_COPIES * sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    has = psutil.virtual_memory().total
    if needed > has:
        return f"needs {readable(needed)}B for weights, gradients and optimizer, this machine has {readable(has)}B"
    return None
