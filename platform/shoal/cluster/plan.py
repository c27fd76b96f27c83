"""A run that was checked: config, data, model and machine fit together, and nothing is started yet."""

import sys
from dataclasses import dataclass
from types import ModuleType

import torch

from shoal.cluster import session
from shoal.cluster.config import RunConfig
from shoal.data.opening import open_data, recipe_of
from shoal.data.prepare import Prepared, Recipe, prepare_here
from shoal.data.sources import Source, is_function
from shoal.importing import find
from shoal.models import Size, build_for, find_builder, measure
from shoal.sharding import check_strategy


@dataclass(frozen=True)
class Plan:
    """A config that was checked against its data, its model and this machine; nothing is started yet."""

    config: RunConfig
    source: Source
    recipe: Recipe
    prepared: Prepared | None  # None: the data is too large to look at before there is a cluster
    size: Size | None


def check(config: RunConfig) -> Plan:
    """Check all that can be checked before anything is started.

    Raises:
        UserError: the first rule that is broken.
    """
    session.check_local(config.scale, session.address())
    find_builder(config.model.name)
    if config.scale.num_workers and _uses_ray(config.data.source):
        session.connect(config.scale, spare_cpus=1)  # the user's function would start Ray in its own way
    source = open_data(config.data, config.task, config.seed)
    recipe = recipe_of(config.data, config.task, config.seed, source)
    if config.scale.num_workers and not source.is_small:
        return Plan(config, source, recipe, None, None)
    prepared = prepare_here(source, recipe)
    return Plan(config, source, recipe, prepared, measure_model(config, prepared))


def check_data(config: RunConfig) -> Plan:
    """Check the data of a config alone: those of a trial whose data differ from the others'.

    Raises:
        DataError: the first rule that is broken.
    """
    source = open_data(config.data, config.task, config.seed)
    recipe = recipe_of(config.data, config.task, config.seed, source)
    return Plan(config, source, recipe, prepare_here(source, recipe) if source.is_small else None, None)


def measure_model(config: RunConfig, prepared: Prepared) -> Size:
    """Build the model once, here, and return its size.

    Raises:
        ModelError: it cannot be built, does not take such rows, or cannot be shared as `scale.strategy` says.
    """
    transform = prepared.transform
    first = transform.columns[0]
    is_whole = first.kind == "ready" and first.dtype.startswith(("int", "uint"))
    sample = torch.zeros((1, *transform.input_shape), dtype=torch.int64 if is_whole else torch.float32)
    model = build_for(config.model, transform, config.task, config.seed)
    check_strategy(model, config.scale)
    return measure(model, sample)


def _uses_ray(uri: str) -> bool:
    """Whether a source is a user's function whose module imports Ray."""
    if not is_function(uri):
        return False
    function = find(uri.partition("?")[0], "data.source")
    names = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    modules = (getattr(value, "__name__", "") for value in names.values() if isinstance(value, ModuleType))
    return any(name.partition(".")[0] == "ray" for name in modules)
