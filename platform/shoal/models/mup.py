"""The maximal update parametrisation (muP): one learning rate for every width.

Knows a model from outside, by the shapes of its parameters at two widths; knows neither configs nor optimisers.
Yang et al. 2022, "Tensor Programs V", Table 8, as ratios to the same model at its base width, where nothing
changes. m is by how much the infinite dimension has grown: fan_out of an input weight, fan_in of the others.

                          init std    multiplier    SGD lr    Adam lr
    input, biases, gains      1            1           m          1
    hidden                1/sqrt(m)        1           1         1/m
    output                    1           1/m          m          1

Of the paper's three equivalent tables this is the one under which an embedding and an output layer can share one
weight: the two rows agree in everything but the multiplier, and that belongs to the module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from shoal.errors import ModelError, nearest

Role = Literal["input", "hidden", "output", "fixed"]
PLACES = "_shoal_places"


@dataclass(frozen=True)
class Place:
    """What a parameter is to the width, and by how much its infinite dimension has grown from the base width."""

    role: Role
    growth: float


@dataclass(frozen=True)
class WidthScaling:
    """What a parameter's learning rate and weight decay are multiplied with."""

    lr: float = 1.0
    weight_decay: float = 1.0


def roles(model: nn.Module, other: nn.Module) -> dict[str, Role]:
    """Tell by each parameter's name whether it is an input, hidden, output or fixed one.

    Dimensions that differ between the two are the infinite ones. Both fans infinite: hidden; fan_in alone: output;
    fan_out alone: input, as are biases, gains and every other parameter with one infinite dimension; none: fixed.
    A weight that is tied to an embedding is an input weight. Where shapes mislead, the model says otherwise by
    a method `roles(self) -> dict[str, str]`, parameter name to role; tied weights go by their shapes.

    Args:
        model: at one width.
        other: the same model at another width; it may be on the meta device.

    Raises:
        ModelError: the two differ in more than their shapes, or the model's own roles are none.
    """
    return {name: place.role for name, place in _places(_uses(model, other)).items()}


def parametrize(model: nn.Module, base: nn.Module) -> None:
    """Bring a model that was initialised in its own, standard way into muP, in place.

    The initialisation is scaled to what it is in `base`, as measured, times the table's ratio: this is right
    whether the model's own way depends on the fans (PyTorch's layers) or not (GPT-2's std of 0.02), and leaves
    zeros and ones as they are. What goes into an output layer is multiplied by 1/m in a forward hook.
    A float `attention_scale` of a module, taken to go as 1/sqrt(head_dim), becomes one that goes as 1/head_dim
    (Definition 4.1); heads that do not grow keep theirs. Learning rates are told by `width_scalings`.

    Args:
        model: at the width that is to be trained.
        base: built in the same way from the same seed, at the base width.

    Raises:
        ModelError: as `roles`, or an output weight is in no layer that can be hooked.
    """
    uses = _uses(model, base)
    places = _places(uses)
    _rescale(model, base, places)
    for use in uses:
        if use.place.role == "output":
            _multiply(use)
    _soften_attention(model, base)
    setattr(model, PLACES, places)


def width_scalings(model: nn.Module, optimizer: str) -> dict[str, WidthScaling]:
    """Return each parameter's scaling by name; none for a model in its standard parametrisation.

    Args:
        optimizer: sgd, adam or adamw.
    """
    places: dict[str, Place] = getattr(model, PLACES, {})
    return {name: _width_scaling(place, optimizer) for name, place in places.items()}


def _width_scaling(place: Place, optimizer: str) -> WidthScaling:
    """Read Table 8; keep the product of learning rate and weight decay at its value at the base width.

    That product is the share of a weight that a step takes away (Wang and Aitchison 2024, "How to set AdamW's
    weight decay as you scale model and dataset size": its inverse is the time scale over which AdamW averages
    its updates, and muP transfers only when it is kept). It is so for SGD's L2 too, but not for Adam's,
    which is part of the gradient that Adam normalises.
    """
    if optimizer == "sgd":
        lr = place.growth if place.role in ("input", "output") else 1.0
    else:
        lr = 1.0 / place.growth if place.role == "hidden" else 1.0
    return WidthScaling(lr, 1.0 if optimizer == "adam" else 1.0 / lr)


@dataclass(frozen=True)
class _Use:
    """A parameter in one of the modules that hold it: a tied one has several."""

    name: str  # the first of a tied parameter's names
    module: nn.Module
    local: str  # its name in the module
    place: Place


def _uses(model: nn.Module, base: nn.Module) -> list[_Use]:
    held, held_by_base = list(_held(model)), list(_held(base))
    if [(name, local) for name, _, local in held] != [(name, local) for name, _, local in held_by_base]:
        raise ModelError(
            f"the model has {len(held)} parameters and {len(held_by_base)} at the other width, or they are named "
            "differently: muP wants a builder whose `width` changes nothing but shapes"
        )
    told = _declared_roles(model, Counter(name for name, _, _ in held))
    return [
        _Use(name, module, local, _place(_growths(module, other, local), told.get(name)))
        for (name, module, local), (_, other, _) in zip(held, held_by_base, strict=True)
    ]


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield every parameter's name with each module that holds it, and its name there."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for local, parameter in module.named_parameters(recurse=False):
            yield names[id(parameter)], module, local


def _declared_roles(model: nn.Module, holders: Mapping[str, int]) -> dict[str, Role]:
    """Return the roles the model names itself.

    Args:
        holders: by each parameter's name, how many modules hold it.
    """
    own, known = getattr(model, "roles", None), get_args(Role)
    told: dict[str, Role] = dict(own()) if callable(own) else {}
    for name, role in told.items():
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
    return told


def _places(uses: list[_Use]) -> dict[str, Place]:
    """Return each parameter's place; where a tied one's uses disagree it is an input weight."""
    places: dict[str, Place] = {}
    for use in uses:
        if use.name not in places or use.place.role == "input":
            places[use.name] = use.place
    return places


def _place(growths: tuple[float, float], told: Role | None) -> Place:
    of_in, of_out = growths
    if of_in == of_out == 1.0:
        role: Role = "fixed"
    elif of_out == 1.0:
        role = "output"
    else:
        role = "input" if of_in == 1.0 else "hidden"
    role = told or role
    first, second = (of_out, of_in) if role == "input" else (of_in, of_out)
    return Place(role, first if first != 1.0 else second)


def _growths(module: nn.Module, base: nn.Module, local: str) -> tuple[float, float]:
    """Return by how much fan_in and fan_out are larger than in `base`; 1 for a finite dimension."""
    own, theirs = _fans(module, local), _fans(base, local)
    if own and theirs:
        return own[0] / theirs[0], own[1] / theirs[1]
    shapes = zip(getattr(module, local).shape, getattr(base, local).shape, strict=True)
    infinite = [size / other for size, other in shapes if size != other]
    # [out, ..., in], as torch's recurrent and attention modules have it; a single one is a vector's length.
    return (infinite[-1] if len(infinite) > 1 else 1.0, infinite[0] if infinite else 1.0)


def _fans(module: nn.Module, local: str) -> tuple[int, int] | None:
    """Return fan_in and fan_out of a weight whose layout its module's type tells."""
    if local != "weight":
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _ConvNd):
        kernel = module.weight[0, 0].numel()
        return module.in_channels // module.groups * kernel, module.out_channels
    return None


def _rescale(model: nn.Module, base: nn.Module, places: dict[str, Place]) -> None:
    for (name, parameter), other in zip(model.named_parameters(), base.parameters(), strict=True):
        place, size = places[name], _root_mean_square(parameter)
        wanted = _root_mean_square(other) * (place.growth**-0.5 if place.role == "hidden" else 1.0)
        if size > 0.0:
            parameter.data.mul_(wanted / size)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _multiply(use: _Use) -> None:
    if use.local != "weight" or not isinstance(use.module, nn.Linear | _ConvNd):
        raise ModelError(
            f"parameter '{use.name}' of a {type(use.module).__name__} is an output weight: muP multiplies what goes "
            "into it, so let it be the weight of an nn.Linear or a convolution that forward() calls"
        )
    use.module.register_forward_pre_hook(partial(_times, 1.0 / use.place.growth))


def _times(factor: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] * factor, *args[1:])


def _soften_attention(model: nn.Module, base: nn.Module) -> None:
    at_base = dict(base.named_modules())
    for name, module in model.named_modules():
        own = getattr(module, "attention_scale", None)
        if isinstance(own, float):
            # own / theirs is sqrt(base head_dim / head_dim): the missing half of the ratio
            module.attention_scale = own * (own / at_base[name].attention_scale)  # type: ignore[operator, assignment]
