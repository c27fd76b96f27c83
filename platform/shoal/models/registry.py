"""Models by name, or a user's own by import path, each with a width and a depth."""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from shoal.config.import_path import call_with, find, is_path, missing_colon
from shoal.data.preprocessing import Transform
from shoal.data.random_state import seeded
from shoal.data.tree import Tree, describe
from shoal.errors import ModelError, UserError, nearest
from shoal.models import huggingface, huggingface_config
from shoal.models.bert import BERT
from shoal.models.call import call_model
from shoal.models.config import ModelConfig
from shoal.models.detector import Detector
from shoal.models.freezing import freeze
from shoal.models.gpt import GPT
from shoal.models.inception import Inception
from shoal.models.inputs import sample_like
from shoal.models.mlp import MLP
from shoal.models.mup import parametrize
from shoal.models.pretrained import load_pretrained
from shoal.models.resnet import ResNet
from shoal.models.speech import Speech

REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "gpt": GPT,
    "bert": BERT,
    "resnet": ResNet,
    "inception": Inception,
    "detector": Detector,
    "speech": Speech,
}
TAKE_TOKENS = ("gpt", "bert")
TAKE_RECORDINGS = ("speech",)
# What the model that a muP model is compared with differs in, besides its width.
AT_BASE_WIDTH: dict[str, Any] = {"parametrization": "standard", "init": None, "freeze": []}


def find_builder(name: str) -> Callable[..., Any]:
    """Return the builder of a `model.name`.

    Raises:
        UserError: there is no such model.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if name.startswith(huggingface_config.SCHEME):
        return huggingface.builder_of(name)
    if is_path(name):
        return find(name, "model.name")
    raise ModelError(
        f"model.name='{name}' is not known{missing_colon(name) or nearest(name, REGISTRY)}: "
        f"write {', '.join(REGISTRY)}, "
        "huggingface:ARCHITECTURE or package.module:Builder"
    )


def build_model(
    config: ModelConfig,
    input_shape: Any,
    outputs: int,
    seed: int,
    vocabulary: int = 0,
    task: str = "",
    builder: Callable[..., Any] | None = None,
    sample: Callable[[nn.Module], Tree] | None = None,
) -> nn.Module:
    """Build a model with weights that are a pure function of the seed: torch, NumPy and `random` are seeded with it.

    A builder receives those of `inputs`, `outputs`, `vocabulary`, `task`, `width`, `depth` that its signature names,
    and all of `model.args`. `inputs` is the shape of a sample for Shoal's own models; a user's builder receives the
    number of features if there is one dimension, and a tree of shapes where a sample has several arrays.

    With `model.parametrization=mup` the model is converted by comparison with the same model at `base_width`. Weights
    of `model.init` are loaded last and unchanged; `model.freeze` names what is not trained.

    Args:
        config: the config section.
        input_shape: of one sample; a tree of shapes where it has several arrays.
        outputs: numbers returned per sample, or per position by a language model.
        seed: of the weights.
        vocabulary: number of token ids; 0 if the inputs are not tokens.
        task: its name.
        builder: None: the one that `model.name` names.
        sample: makes a sample of zeros for a model; None: whole numbers for tokens, else float32.

    Raises:
        UserError: the builder refuses, raises, or returns something other than a module; nothing of `model.init`
            fits, or a pattern of `model.freeze` matches nothing.
    """
    builder = builder or find_builder(config.name)
    is_transformers = config.name.startswith(huggingface_config.SCHEME)
    takes_shape = is_transformers or builder in REGISTRY.values() or not _is_vector(input_shape)
    offered = {
        "inputs": input_shape if takes_shape else input_shape[0],
        "outputs": outputs,
        "vocabulary": vocabulary,
        "task": task,
        "width": config.width,
        "depth": default_depth(builder) if config.depth is None else config.depth,
    } | ({"init": config.init} if is_transformers else {})
    with seeded(seed):
        model = _call_builder(config, builder, offered)
        _fill_lazy_layers(model, sample or _zeros(input_shape, vocabulary), config)
    if config.parametrization == "mup":
        at_base_width = config.model_copy(update=AT_BASE_WIDTH | {"width": config.base_width})
        base = build_model(at_base_width, input_shape, outputs, seed, vocabulary, task, builder, sample)
        _convert_to_mup(model, base, config)
    if config.init is not None:
        load_pretrained(model, config.init)
    freeze(model, config.freeze)
    return model


def _is_vector(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 1 and isinstance(shape[0], int)


def _zeros(shape: tuple[int, ...], vocabulary: int) -> Callable[[nn.Module], Tree]:
    return lambda model: torch.zeros((1, *shape), dtype=torch.int64 if vocabulary else torch.float32)


def _fill_lazy_layers(model: nn.Module, sample: Callable[[nn.Module], Tree], config: ModelConfig) -> None:
    """Give layers that learn their shapes from their first inputs (nn.LazyLinear, ...) shapes and first weights now.

    Else each worker would draw them in its first step, from its own random numbers.
    """
    if not any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        return
    was_training = model.training
    inputs = sample(model)
    try:
        with torch.no_grad():
            call_model(model.eval(), inputs)
    except Exception as error:
        raise ModelError(
            f"model.name='{config.name}' has lazy layers, and does not take a sample of {describe(inputs)} "
            f"({type(error).__name__}: {' '.join(str(error).split())}): give them their shapes, or fix its forward"
        ) from error
    model.train(was_training)


def _call_builder(config: ModelConfig, builder: Callable[..., Any], offered: dict[str, Any]) -> nn.Module:
    """Call a builder with the arguments that it takes; its errors name the config's keys."""
    try:
        model = call_with(builder, offered, config.args)
    except ModelError:
        raise
    except UserError as error:
        raise ModelError(f"model.name='{config.name}', model.args={config.args}: {error}") from None
    except Exception as error:
        raise ModelError(
            f"model.name='{config.name}' raised {type(error).__name__}: {error}: fix the builder or its "
            f"arguments ({', '.join(f'{key}={value}' for key, value in (offered | config.args).items())})"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.name='{config.name}' returned a {type(model).__name__}: a builder returns a torch.nn.Module"
        )
    return model


def default_depth(builder: Callable[..., Any]) -> int:
    """Return a builder's own default depth, or 2 if it has none."""
    named = inspect.signature(builder).parameters.get("depth")
    return named.default if named and isinstance(named.default, int) else 2


def build_model_for(
    config: ModelConfig,
    transform: Transform,
    task: str,
    seed: int,
    builder: Callable[..., Any] | None = None,
) -> nn.Module:
    """Build a model for the rows that a transform makes.

    Args:
        builder: None: the one that `model.name` names.

    Raises:
        UserError: it cannot be built, or takes tokens and the data has none.
    """
    if config.name in TAKE_TOKENS and not transform.tokenizer:
        raise ModelError(
            f"model.name='{config.name}' takes tokens, and the data has none: set task=causal_lm, masked_lm or "
            "sequence_classification, with text as data.source or data.text"
        )
    if config.name in TAKE_RECORDINGS and transform.audio is None:
        raise ModelError(
            f"model.name='{config.name}' takes recordings, and the data has none: set task=speech_recognition, with "
            "data.source=audio:PATH or synthetic:speech"
        )
    takes_one_array = config.name in REGISTRY and config.name not in TAKE_RECORDINGS
    if takes_one_array and transform.input_tree is not None:
        raise ModelError(
            f"model.name='{config.name}' takes one array of one shape, and a row of the data is "
            f"{transform.described_inputs}: set model.name=package.module:Builder, a model that takes them, or join "
            "or pad them in __getitem__"
        )
    shapes, outputs, vocabulary = transform.input_shapes, transform.outputs, transform.vocabulary
    return build_model(
        config, shapes, outputs, seed, vocabulary, task, builder, lambda model: sample_like(transform, model)
    )


def _convert_to_mup(model: nn.Module, base: nn.Module, config: ModelConfig) -> None:
    shapes, at_base = ([tensor.shape for tensor in module.parameters()] for module in (model, base))
    if config.width != config.base_width and shapes == at_base:
        raise ModelError(
            f"model.name='{config.name}' has the same shapes at model.width={config.width} and at "
            f"model.base_width={config.base_width}: for model.parametrization=mup its builder must take `width` "
            "(and model.args must not set it)"
        )
    parametrize(model, base)
