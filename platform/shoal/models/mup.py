"""The maximal update parametrization (muP): one learning rate for every width.

Depends on the shapes of a model's parameters at two widths; independent of configs and optimizers.

The rules are Table 8 of Yang et al. 2022, "Tensor Programs V", as ratios to the same model at its base width, where
nothing changes. m is the width multiplier, the ratio of a parameter's infinite dimension to that at the base width:
of fan_out for an input weight, of fan_in for the others.

                          init std    multiplier    SGD lr    Adam lr
    input, biases, gains      1            1           m          1
    hidden                1/sqrt(m)        1           1         1/m
    output                    1           1/m          m          1

Of the paper's three equivalent tables, Table 8 allows an embedding and an output layer to share one weight: their rows
differ only in the multiplier, which belongs to the module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from shoal.errors import ModelError, nearest

Role = Literal["input", "hidden", "output", "fixed"]
OPTIMIZERS = ("adam", "adamw", "sgd")
MUP_ATTRIBUTE = "_shoal_mup"  # of a model in muP: its parameters' `ParameterScaling`s, by name

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class ParameterScaling:
    """A parameter's role, and its width multiplier m: the ratio of its infinite dimension to that at the base width."""

    role: Role
    multiplier: float


@dataclass(frozen=True)
class WidthScaling:
    """The factors of a parameter's learning rate and weight decay."""

    lr: float = 1.0
    weight_decay: float = 1.0


def roles(model: nn.Module, other: nn.Module) -> dict[str, Role]:
    """Return each parameter's role by its name: input, hidden, output or fixed.

    Dimensions that differ between the two models are the infinite ones. Both fans infinite: hidden; fan_in alone:
    output; fan_out alone: input, as are biases, gains and every other parameter with one infinite dimension; none:
    fixed. A weight that is tied to an embedding is an input weight. Where the shapes are misleading, the model declares
    roles by a method `roles(self) -> dict[str, str]`, parameter name to role; those of tied weights follow from shapes.

    Args:
        model: at one width.
        other: the same model at another width; it may be on the meta device.

    Raises:
        ModelError: the two differ in more than their shapes, or the model declares an unknown role.
    """
    return {name: scaling.role for name, scaling in _parameter_scalings(_uses(model, other)).items()}


def parametrize(model: nn.Module, base: nn.Module) -> None:
    """Convert a model that was initialized in its standard way to muP, in place.

    Weights are scaled to their measured size in `base`, times the table's ratio. This is right whether the standard
    initialization depends on the fans (PyTorch's layers) or not (GPT-2's std of 0.02), and leaves zeros and ones
    unchanged. A forward hook multiplies the inputs of an output layer by 1/m. A float `attention_scale` of a module,
    assumed proportional to 1/sqrt(head_dim), becomes proportional to 1/head_dim (Definition 4.1); it stays the same if
    the heads do not grow. `width_scalings` returns the factors of learning rates.

    Args:
        model: at the width to train.
        base: the same model from the same seed, at the base width.

    Raises:
        ModelError: as `roles`, or an output weight is in no layer that can be hooked.
    """
    uses = _uses(model, base)
    scalings = _parameter_scalings(uses)
    _rescale(model, base, scalings)
    for use in uses:
        if use.scaling.role == "output":
            _scale_inputs(use)
    _rescale_attention(model, base)
    setattr(model, MUP_ATTRIBUTE, scalings)


def width_scalings(model: nn.Module, optimizer: str) -> dict[str, WidthScaling]:
    """Return each parameter's factors by name; an empty dict for a model in the standard parametrization.

    Args:
        optimizer: one of `OPTIMIZERS`, where the model is in muP.

    Raises:
        ModelError: the table has no rule for this optimizer.
    """
    scalings: dict[str, ParameterScaling] = getattr(model, MUP_ATTRIBUTE, {})
    if scalings:
        check_optimizer(optimizer)
    return {name: _width_scaling(scaling, optimizer) for name, scaling in scalings.items()}


def check_optimizer(optimizer: str) -> None:
    """Refuse an optimizer for which it is not known how its rates scale with the width.

    Raises:
        ModelError: it is none of `OPTIMIZERS`.
    """
    if optimizer not in OPTIMIZERS:
        raise ModelError(
            f"optim.name='{optimizer}' with model.parametrization=mup, which has rules for the learning rates of "
            f"{', '.join(OPTIMIZERS)} alone: take one of them, or set model.parametrization=standard"
        )


def _width_scaling(scaling: ParameterScaling, optimizer: str) -> WidthScaling:
    """Look up Table 8; keep the product of learning rate and weight decay at its value at the base width.

    That product is the share of a weight that decays in a step. Its inverse is the time scale over which AdamW averages
    its updates, and muP transfers only if it is constant (Wang and Aitchison 2024, "How to set AdamW's weight decay as
    you scale model and dataset size"). The same holds for SGD's L2 penalty, but not for Adam's, which is part of the
    gradient that Adam normalizes.
    """
    if optimizer == "sgd":
        lr = scaling.multiplier if scaling.role in ("input", "output") else 1.0
    else:
        lr = 1.0 / scaling.multiplier if scaling.role == "hidden" else 1.0
    return WidthScaling(lr, 1.0 if optimizer == "adam" else 1.0 / lr)


@dataclass(frozen=True)
class _Use:
    """A parameter in one of the modules that hold it: a tied one has several.

    Attributes:
        name: in the model; of a tied parameter the first one.
        module: that holds it.
        local: its name in the module.
        scaling: by its shape in this module.
    """

    name: str
    module: nn.Module
    local: str
    scaling: ParameterScaling


def _uses(model: nn.Module, base: nn.Module) -> list[_Use]:
    held, held_by_base = list(_held(model)), list(_held(base))
    if [(name, local) for name, _, local in held] != [(name, local) for name, _, local in held_by_base]:
        raise ModelError(
            f"the model has {len(held)} parameters and {len(held_by_base)} at the other width, or they are named "
            "differently: muP needs a builder whose `width` changes nothing but shapes"
        )
    declared = _declared_roles(model, Counter(name for name, _, _ in held))
    return [
        _Use(name, module, local, _parameter_scaling(_fan_ratios(module, other, local), declared.get(name)))
        for (name, module, local), (_, other, _) in zip(held, held_by_base, strict=True)
    ]


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield every parameter's name with each module that holds it, and its name there."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for local, parameter in module.named_parameters(recurse=False):
            yield names[id(parameter)], module, local


def _declared_roles(model: nn.Module, holders: Mapping[str, int]) -> dict[str, Role]:
    """Return the roles that the model's own method `roles` declares.

    Args:
        holders: by each parameter's name, how many modules hold it.
    """
    method, known = getattr(model, "roles", None), get_args(Role)
    declared: dict[str, Role] = dict(method()) if callable(method) else {}
    for name, role in declared.items():
        if holders.get(name) != 1:
            what = "a tied weight" if name in holders else f"no parameter{nearest(name, holders)}"
            raise ModelError(
                f"{type(model).__name__}.roles() names '{name}', which is {what}: "
                "name untied parameters as named_parameters() does"
            )
        if role not in known:
            raise ModelError(
                f"{type(model).__name__}.roles() calls '{name}' '{role}': a role is one of {', '.join(known)}"
            )
    return declared


def _parameter_scalings(uses: list[_Use]) -> dict[str, ParameterScaling]:
    """Return each parameter's scaling; a tied parameter whose uses disagree is an input weight."""
    scalings: dict[str, ParameterScaling] = {}
    for use in uses:
        if use.name not in scalings or use.scaling.role == "input":
            scalings[use.name] = use.scaling
    return scalings


def _parameter_scaling(fan_ratios: tuple[float, float], declared: Role | None) -> ParameterScaling:
    fan_in, fan_out = fan_ratios
    if fan_in == fan_out == 1.0:
        role: Role = "fixed"
    elif fan_out == 1.0:
        role = "output"
    else:
        role = "input" if fan_in == 1.0 else "hidden"
    role = declared or role
    first, second = (fan_out, fan_in) if role == "input" else (fan_in, fan_out)
    return ParameterScaling(role, first if first != 1.0 else second)


def _fan_ratios(module: nn.Module, base: nn.Module, local: str) -> tuple[float, float]:
    """Return the ratios of fan_in and fan_out to those in `base`; 1 for a finite dimension."""
    fans, base_fans = _fans(module, local), _fans(base, local)
    if fans and base_fans:
        return fans[0] / base_fans[0], fans[1] / base_fans[1]
    shapes = zip(getattr(module, local).shape, getattr(base, local).shape, strict=True)
    infinite = [size / other for size, other in shapes if size != other]
    # The layout is [out, ..., in], as in torch's recurrent and attention modules; a single one is a vector's length.
    return (infinite[-1] if len(infinite) > 1 else 1.0, infinite[0] if infinite else 1.0)


def _fans(module: nn.Module, local: str) -> tuple[int, int] | None:
    """Return fan_in and fan_out of a weight; None if the module's type does not determine its layout."""
    if local != "weight":
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Convolution):
        kernel = module.weight[0, 0].numel()
        return module.in_channels // module.groups * kernel, module.out_channels
    return None


def _rescale(model: nn.Module, base: nn.Module, scalings: dict[str, ParameterScaling]) -> None:
    for (name, parameter), other in zip(model.named_parameters(), base.parameters(), strict=True):
        scaling, size = scalings[name], _root_mean_square(parameter)
        ratio = scaling.multiplier**-0.5 if scaling.role == "hidden" else 1.0
        if size > 0.0:
            parameter.data.mul_(_root_mean_square(other) * ratio / size)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _scale_inputs(use: _Use) -> None:
    if use.local != "weight" or not isinstance(use.module, nn.Linear | Convolution):
        raise ModelError(
            f"parameter '{use.name}' of a {type(use.module).__name__} is an output weight: muP scales the inputs of "
            "its layer, so make it the weight of an nn.Linear or a convolution that forward() calls"
        )
    use.module.register_forward_pre_hook(partial(_multiply_input, 1.0 / use.scaling.multiplier))


def _multiply_input(factor: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] * factor, *args[1:])


def _rescale_attention(model: nn.Module, base: nn.Module) -> None:
    base_modules = dict(base.named_modules())
    for name, module in model.named_modules():
        scale = getattr(module, "attention_scale", None)
        if isinstance(scale, float):
            # scale / base scale is sqrt(base head_dim / head_dim): the missing half of the ratio
            module.attention_scale = scale * (scale / base_modules[name].attention_scale)  # type: ignore[operator, assignment]
