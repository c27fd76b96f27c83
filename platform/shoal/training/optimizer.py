"""Any optimizer of torch.optim or a user's own, with learning rates and options by parameter group.

It knows a model's parameters and the `optim` section; it does not know when a step is made, nor how state is saved
(`shoal.training.optimizer_state`).
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer

from shoal.config.import_path import find, is_path, missing_colon
from shoal.config.schema import Section
from shoal.distributed.dtensor_io import is_dtensor
from shoal.distributed.torch_private import without_wrappers
from shoal.errors import ConfigError, nearest
from shoal.models.mup import WidthScaling, width_scalings
from shoal.models.patterns import first_matches
from shoal.models.weight_decay import without_decay

SCHEDULES = ("constant", "linear", "cosine", "wsd")

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
FUSED = ("adam", "adamw", "sgd")  # one kernel for all parameters of a group
# Those whose step is another than a loop of one backward and one update makes.
REFUSED = {
    "muon": "it takes 2-D weights alone, and refuses biases and norms: set optim.name=package.module:Optimizer to a "
    "class of your own that gives these to another optimizer, or take adamw",
    "adafactor": "it sets its step from the step's number and the size of each weight, so optim.lr and "
    "optim.schedule would not say what it does: take adamw, whose state scale.strategy=fsdp divides among workers",
    "lbfgs": "it computes the loss several times in a step (a closure), and a step here is one forward and backward: "
    "take adam or adamw",
    "sparseadam": "it takes sparse gradients alone, and gradients here are dense: take adam, and nn.Embedding "
    "without sparse=True",
}
OWN_KEYS = ("lr", "weight_decay")  # options that are keys of the config themselves

Options = dict[str, Any]


class OptimConfig(Section):
    name: str = Field(
        "adam",
        description="adam, adamw, sgd, nadam, radam, rmsprop, ... of torch.optim, or package.module:Optimizer; sgd is "
        "with Nesterov momentum 0.9 unless optim.args sets momentum",
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled for adamw, L2 for the others of torch.optim"
    )
    decay: Literal["matrices", "all"] = Field(
        "matrices",
        description="what weight_decay is of; matrices: not of biases, norms and embeddings, tied ones included",
    )
    schedule: str = Field(
        "constant",
        description="of the learning rate: constant, linear, cosine, wsd (warmup-stable-decay), or "
        "package.module:function of (step, total_steps) that returns a factor of lr",
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to lr")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    args: Options = Field(
        default_factory=dict, description="more arguments of the optimizer, e.g. {betas: [0.9, 0.95]}"
    )
    groups: dict[str, Options] = Field(
        default_factory=dict,
        description="options of parameters or modules by name patterns, of which the first that matches counts, e.g. "
        "{encoder.*: {lr: 1e-5}}; their lr follows optim.schedule too",
    )

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """Return a name of torch.optim as it is spelled here: `AdamW` and `adam_w` are adamw."""
        if is_path(name):
            return name
        plain = name.replace("_", "").lower()
        if plain not in OPTIMIZERS:
            raise ConfigError(
                f"optim.name='{name}' is not known{missing_colon(name) or nearest(plain, _usable())}: write "
                f"{', '.join(_usable())}, or package.module:Optimizer"
            )
        if plain in REFUSED:
            raise ConfigError(f"optim.name='{name}' does not work here: {REFUSED[plain]}")
        return plain

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, schedule: str) -> str:
        if schedule in SCHEDULES or is_path(schedule):
            return schedule
        raise ConfigError(
            f"optim.schedule='{schedule}' is not known{missing_colon(schedule) or nearest(schedule, SCHEDULES)}: "
            f"write {', '.join(SCHEDULES)}, or package.module:function"
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "OptimConfig":
        if is_path(self.schedule) and self.warmup_steps:
            raise ConfigError(
                f"optim.warmup_steps={self.warmup_steps} with optim.schedule='{self.schedule}', which sets the rate "
                "of every step: let your function rise itself, and leave optim.warmup_steps out"
            )
        if not is_path(self.name):  # a user's own is imported where a run is checked
            check_options(OPTIMIZERS[self.name], self)
        return self

    @property
    def kind(self) -> str:
        """The optimizer whose rules for width hold: decoupled weight decay makes adamw of adam."""
        is_adamw = self.name == "adam" and self.args.get("decoupled_weight_decay")
        return "adamw" if is_adamw else self.name


def check_options(kind: Callable[..., Optimizer], config: OptimConfig) -> None:
    """Refuse options that an optimizer does not take, by its signature and, of torch's own, by trying them.

    Raises:
        ConfigError: names the key, the option and the nearest that it takes.
    """
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = [name for name in parameters if name not in ("self", "params", *OWN_KEYS)]
    for key, options in {"optim.args": config.args, **_group_options(config)}.items():
        for name in options:
            if key == "optim.args" and name in OWN_KEYS:
                raise ConfigError(f"optim.args names '{name}', which is a key itself: set optim.{name}")
            if name not in (*taken, *OWN_KEYS) and not takes_any:
                raise ConfigError(
                    f"{key} names '{name}', which optim.name='{config.name}' does not take{nearest(name, taken)}: it "
                    f"takes {', '.join(taken) or 'no more options'}"
                )
    decays = config.weight_decay or any(group.get("weight_decay") for group in config.groups.values())
    for name, is_needed in (("lr", True), ("weight_decay", bool(decays))):
        if is_needed and name not in parameters and not takes_any:
            raise ConfigError(
                f"optim.name='{config.name}' takes no '{name}', which optim.{name} sets: its parameters are "
                f"{', '.join(parameters)}"
            )
    if not is_path(config.name) and (config.args or config.groups):
        _try(kind, config)


def check_optimizer(config: OptimConfig) -> None:
    """Check what a config cannot know by itself: a user's own optimizer, imported.

    Raises:
        UserError: it does not import, is none, or does not take its options.
    """
    if is_path(config.name):
        check_options(_find_own(config.name), config)


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Build the optimizer of the parameters that are trained; torch's adam, adamw and sgd fused.

    A group holds the parameters that scale alike and have the same options, all of them in the standard
    parametrization; where some of them do not decay, these have a group of their own. A group's "lr_scale" is what the
    scheduled learning rate is multiplied with, its "configured" the names of the options that the config sets.

    Raises:
        ConfigError: a pattern of `optim.groups` matches nothing, or a user's own optimizer does not build.
    """
    groups = _groups(model, config)
    if is_path(config.name):
        return _build_own(config, groups)
    options = _options(config)
    if config.name in FUSED and not options.keys() & {"fused", "foreach", "differentiable"}:
        # torch 2.13 has no such kernel of SGD for shards.
        options["fused"] = config.name != "sgd" or not any(map(is_dtensor, model.parameters()))
    return without_wrappers(OPTIMIZERS[config.name])(groups, lr=config.lr, **options)


def _usable() -> list[str]:
    first = [*FUSED]
    return first + sorted(OPTIMIZERS.keys() - REFUSED.keys() - set(first))


def _group_options(config: OptimConfig) -> dict[str, Options]:
    """Return the options of each group by its key; their rates are checked here, since the schema takes any.

    Raises:
        ConfigError: a learning rate or weight decay is no number in its range.
    """
    for pattern, options in config.groups.items():
        for name in OWN_KEYS:
            value = options.get(name, 0.0)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0.0 <= value < float("inf"):
                raise ConfigError(
                    f"optim.groups['{pattern}'].{name}={value!r}: it should be a number of 0 or more"
                )
    return {f"optim.groups['{pattern}']": options for pattern, options in config.groups.items()}


def _options(config: OptimConfig) -> Options:
    """Return what the constructor receives besides groups and learning rate."""
    if config.name == "sgd" and "momentum" not in config.args:
        return {"momentum": 0.9, "nesterov": True} | config.args
    return dict(config.args)


def _try(kind: Callable[..., Optimizer], config: OptimConfig) -> None:
    """Have one of torch's own check the values of its options."""
    options = [{}, *config.groups.values()]
    groups = [{"params": [nn.Parameter(torch.zeros(1))], **group} for group in options]
    try:
        without_wrappers(kind)(groups, lr=config.lr, **_options(config))
    except Exception as error:
        raise ConfigError(
            f"optim.name='{config.name}' refuses its options, optim.args={config.args} and "
            f"optim.groups={config.groups} ({type(error).__name__}: {error}): change what it names"
        ) from None


def _find_own(path: str) -> Callable[..., Optimizer]:
    """Import a user's own optimizer.

    Raises:
        UserError: it does not import, or its step needs more than gradients.
    """
    kind: Callable[..., Optimizer] = find(path, "optim.name")
    refused = {OPTIMIZERS[name]: reason for name, reason in REFUSED.items()}
    if kind in refused:
        raise ConfigError(f"optim.name='{path}' does not work here: {refused[kind]}")
    if isinstance(kind, type):
        if not issubclass(kind, Optimizer):
            raise ConfigError(
                f"optim.name='{path}' is the class {kind.__name__}, no torch.optim.Optimizer: make it a subclass, or "
                "name a function of (params, lr, ...) that returns one"
            )
        _, *needed = inspect.signature(kind.step).parameters.values()
        if any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in needed):
            raise ConfigError(
                f"optim.name='{path}': {kind.__name__}.step() needs {', '.join(p.name for p in needed)}, and a step "
                "here is one forward and backward, then step() without arguments: take another optimizer"
            )
    made: Callable[..., Optimizer] = kind
    return made


def _build_own(config: OptimConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """Build a user's own optimizer.

    Raises:
        ConfigError: it raised, returned something else, or did not keep the groups it received.
    """
    kind = _find_own(config.name)
    numbers = [group["numbers"] for group in groups]
    try:
        optimizer = kind(groups, lr=config.lr, **config.args)
    except Exception as error:
        raise ConfigError(
            f"optim.name='{config.name}' raised {type(error).__name__}: {error}: it is called with params (a list of "
            f"groups), lr={config.lr:g} and optim.args={config.args}"
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optim.name='{config.name}' returned a {type(optimizer).__name__}: return a torch.optim.Optimizer"
        )
    if [group.get("numbers") for group in optimizer.param_groups] != numbers:
        raise ConfigError(
            f"optim.name='{config.name}' made other groups of the parameters than it received: pass `params` on to "
            "torch.optim.Optimizer as it is"
        )
    return optimizer


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    scaling_of = width_scalings(model, config.kind)
    pattern_of = first_matches(model, list(config.groups), "optim.groups")
    alike: dict[tuple[WidthScaling, str | None], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alike[scaling_of.get(name, WidthScaling()), pattern_of.get(name)].append((name, parameter))
    spared = without_decay(model) if config.decay == "matrices" else set[str]()
    groups: list[dict[str, Any]] = []
    numbers = count()
    for (scaling, pattern), members in alike.items():
        options = config.groups.get(pattern or "", {})
        has_decay = options.get("weight_decay", config.weight_decay) > 0
        parts: dict[bool, dict[str, Any]] = {}
        for name, parameter in members:
            decays = not (has_decay and name in spared)
            part = parts.setdefault(decays, _group(config, options, scaling, decays))
            part["params"].append(parameter)
            part["numbers"].append(next(numbers))
        groups += parts.values()
    return groups


def _group(
    config: OptimConfig, options: Mapping[str, Any], scaling: WidthScaling, decays: bool
) -> dict[str, Any]:
    """Return a group without parameters; a learning rate of its own is that of the base width too."""
    lr, weight_decay = (options.get(name, getattr(config, name)) for name in OWN_KEYS)
    made: Options = {
        **options,
        "lr": lr * scaling.lr,
        "weight_decay": weight_decay * scaling.weight_decay if decays else 0.0,
    }
    lr_scale = scaling.lr if "lr" not in options else lr / config.lr * scaling.lr
    configured = sorted({*made, *config.args})
    return {"params": [], "numbers": [], "lr_scale": lr_scale, "configured": configured, **made}
