"""Any architecture of `transformers`, built from a config: nothing is downloaded.

Depends on `transformers`, and on `huggingface_config` for an architecture's names of width, depth and context.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.tokenizer import PAD
from shoal.errors import ModelError, nearest
from shoal.models.huggingface_config import SCHEME, ArchitectureConfig
from shoal.models.transformer import check_length, context_length

# By task, the class of `transformers` that builds the model with its head.
AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
}


class HuggingFace(nn.Module):
    """A model of `transformers` that takes one tensor and returns its logits."""

    def __init__(self, inner: nn.Module, context: int | None, is_masked: bool) -> None:
        """Wrap it.

        Args:
            inner: a model with a head.
            context: largest number of tokens; None for a model of images.
            is_masked: whether it receives an attention mask, which says which tokens are padding.
        """
        super().__init__()
        self.inner = inner
        self.context = context
        self.is_masked = is_masked

    @property
    def blocks(self) -> nn.ModuleList | None:
        """The list of layers, or stages, that holds most of the parameters."""
        lists = [module for module in self.inner.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=_count, default=None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, t] token ids or [n, channels, height, width] images to the outputs of the head.

        Raises:
            ModelError: t is more than the context.
        """
        if self.context is None:
            return self.inner(pixel_values=x).logits  # type: ignore[no-any-return]
        check_length(x, self.context)
        if not self.is_masked:
            return self.inner(input_ids=x).logits  # type: ignore[no-any-return]
        is_token = x != PAD
        # A row of padding only attends to itself: without any position the softmax is 0 / 0.
        is_token = is_token | ~is_token.any(dim=1, keepdim=True)
        return self.inner(input_ids=x, attention_mask=is_token.long()).logits  # type: ignore[no-any-return]

    def read(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
        """Read a folder that save_pretrained wrote, by the names of this model's tensors, which stay unchanged.

        Returns:
            the tensors that fit, and the shapes of those that do not.
        """
        with _quiet():
            found, report = type(self.inner).from_pretrained(  # type: ignore[attr-defined]
                folder,
                config=self.inner.config,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        misfits = {f"inner.{name}": tuple(theirs) for name, theirs, _ in report["mismatched_keys"]}
        absent = {f"inner.{name}" for name in report["missing_keys"]} | set(misfits)
        tensors = {f"inner.{name}": tensor for name, tensor in found.state_dict().items()}
        return {name: tensor for name, tensor in tensors.items() if name not in absent}, misfits


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return the builder of `huggingface:ARCHITECTURE`.

    Raises:
        ModelError: `transformers` is not installed, or has no such architecture.
    """
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        raise ModelError(
            f"model.name='{name}' needs the package transformers, which is not installed: "
            "pip install 'shoal[huggingface]'"
        ) from None
    kind = name.removeprefix(SCHEME)
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"model.name='{name}': transformers has no architecture '{kind}'{nearest(kind, CONFIG_MAPPING_NAMES)}: "
            "write one of its model types, e.g. huggingface:gpt2, huggingface:bert or huggingface:vit"
        )
    return partial(build, kind)


def build(
    kind: str,
    inputs: tuple[int, ...],
    outputs: int,
    vocabulary: int,
    task: str,
    width: int,
    depth: int,
    init: str | None = None,
    **args: Any,
) -> HuggingFace:
    """Build a model with random weights.

    Heads have the size of the architecture's own config, or the nearest that the width allows; the inner layer of a
    feed-forward block has four times the width. Of an architecture in stages, each stage has `depth` blocks and the
    first one `width` channels. With BatchNorm (resnet, regnet, ...) the result depends on how a batch is divided among
    workers.

    Args:
        kind: the architecture: transformers' model_type.
        inputs: (context,) of token ids, or (channels, height, width) of images.
        outputs: numbers returned per sample, or per position by a language model.
        vocabulary: token ids; 0 for images.
        task: determines the head.
        width: hidden size.
        depth: hidden layers.
        init: a folder; its config.json, if there is one, replaces the architecture's own config.
        args: further fields of the architecture's config; they override all others.

    Raises:
        ModelError: a name is unknown, sizes contradict `init`, or the architecture cannot do the task.
    """
    with _quiet():
        own = ArchitectureConfig(kind, init)
        overrides = own.named(args)
        width = overrides.get(own.real("hidden_size"), width)
        depth = overrides.get(own.real("num_hidden_layers"), depth)
        sizes = own.agreed(width, depth) if own.is_saved else own.sizes(width, depth)
        is_image = len(inputs) == 3
        if not is_image:
            _check_positions(own.real("max_position_embeddings"), overrides, context_length(inputs))
        shapes = own.of_images(inputs) if is_image else own.of_text(vocabulary, context_length(inputs))
        fields = own.known(sizes | shapes | {"is_decoder": task == "causal_lm", "use_cache": False})

        def make(**more: int) -> nn.Module:
            return _from_config(own, task, is_image, {**fields, "num_labels": outputs, **more, **overrides})

        shift = 0 if is_image or own.is_saved else _position_shift(make)
        inner = make(max_position_embeddings=inputs[0] + shift) if shift else make()
    # A causal model needs no mask, as padding is on the right; without a mask attention has its fastest kernel.
    takes_mask = not is_image and "attention_mask" in inspect.signature(inner.forward).parameters
    is_masked = takes_mask and task != "causal_lm"
    if not is_masked:
        # Else every forward pass searches the tokens for padding without a mask, which synchronizes with the GPU.
        inner.config.pad_token_id = None  # type: ignore[union-attr]
    return HuggingFace(inner, None if is_image else inputs[0], is_masked)


def _check_positions(name: str, overrides: Mapping[str, Any], context: int) -> None:
    positions = overrides.get(name, context)
    if isinstance(positions, int) and positions < context:
        raise ModelError(
            f"model.args.{name}={positions}: sequences of data.context={context} tokens are longer than that: set "
            f"data.context={positions} or less, or leave model.args.{name} out"
        )


def _from_config(own: ArchitectureConfig, task: str, is_image: bool, fields: Mapping[str, Any]) -> nn.Module:
    import transformers

    by_default = "image_classification" if is_image else "sequence_classification"
    kind = task if task in AUTO_CLASSES else by_default
    config = transformers.AutoConfig.for_model(own.kind, **{**own.base(), **fields})
    known = getattr(transformers, f"MODEL_FOR_{kind.upper()}_MAPPING")
    if type(config) not in known:
        raise ModelError(
            f"model.name={SCHEME}{own.kind}: transformers has no {AUTO_CLASSES[kind]} of '{own.kind}': "
            "name an architecture that has one"
        )
    found = known[type(config)]
    return (found[0] if isinstance(found, tuple) else found)(config)  # type: ignore[no-any-return]


def _position_shift(make: Callable[..., nn.Module]) -> int:
    """Return how many position embeddings are unused at the beginning.

    RoBERTa and related architectures count positions from the padding's id on.
    """
    with torch.device("meta"):
        layers = dict(make().named_modules())
    numbers = [layer.padding_idx for name, layer in layers.items() if name.endswith("position_embeddings")]
    return max((number + 1 for number in numbers if isinstance(number, int)), default=0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the reports and progress bars of transformers; Shoal logs the missing and unused weights itself."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
