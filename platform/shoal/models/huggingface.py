"""Any architecture of `transformers`, built from a config: nothing is downloaded.

It knows what architectures call their width, depth, vocabulary and context, and how their models are called.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.tokenizer import END, PAD
from shoal.errors import ModelError, nearest
from shoal.models.transformer import check_length, context_length

SCHEME = "huggingface:"

_AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
}
# What architectures call the width between the two layers of a feed-forward block.
_FEED_FORWARD = (
    *("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff"),
    *("encoder_ffn_dim", "decoder_ffn_dim"),
)
# What describes a saved model rather than its architecture.
_DESCRIPTIVE = (
    "model_type",
    "id2label",
    "label2id",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
)
_PATCHES = 8  # along each side of an image, at least


class HuggingFace(nn.Module):
    """A model of `transformers` that takes one tensor and returns its logits."""

    def __init__(self, inner: nn.Module, context: int | None, is_masked: bool) -> None:
        """Wrap it.

        Args:
            inner: a model with a head.
            context: largest number of tokens; None for a model of images.
            is_masked: whether it is told which tokens are padding.
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
        """Map [n, t] token ids or [n, channels, height, width] images to what the head puts out.

        Raises:
            ModelError: t is more than the context.
        """
        if self.context is None:
            return self.inner(pixel_values=x).logits  # type: ignore[no-any-return]
        check_length(x, self.context)
        if not self.is_masked:
            return self.inner(input_ids=x).logits  # type: ignore[no-any-return]
        there = x != PAD
        there = there | ~there.any(dim=1, keepdim=True)  # a row of padding alone sees itself: 0 / 0 else
        return self.inner(input_ids=x, attention_mask=there.long()).logits  # type: ignore[no-any-return]

    def read(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
        """Read what save_pretrained wrote, by the names this model's tensors have; its own stay as they are.

        Returns:
            the tensors that are there and fit; the shapes of those that are there and do not.
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
    """Return the builder that `huggingface:ARCHITECTURE` means.

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

    Heads are as large as in the architecture's own config, or as nearly as the width allows, and what is between
    the layers of a feed-forward block is four times the width. Of an architecture in stages, each has `depth`
    blocks and the first `width` channels. With BatchNorm (resnet, regnet, ...) the result depends on how a batch is
    split over workers.

    Args:
        kind: the architecture: transformers' model_type.
        inputs: (context,) of token ids, or (channels, height, width) of images.
        outputs: numbers put out per sample, or per position by a language model.
        vocabulary: token ids; 0 for images.
        task: decides the head.
        width: hidden size.
        depth: hidden layers.
        init: a folder; the config.json in it, if there is one, stands in for the architecture's own config.
        args: further names of the architecture's config; they beat all else.

    Raises:
        ModelError: a name is unknown, sizes contradict `init`, or the architecture cannot do the task.
    """
    with _quiet():
        own = _Config(kind, init)
        given = own.named(args)
        width = given.get(own.real("hidden_size"), width)
        depth = given.get(own.real("num_hidden_layers"), depth)
        sizes = own.agreed(width, depth) if own.is_saved else own.sizes(width, depth)
        is_image = len(inputs) == 3
        if not is_image:
            _check_positions(own.real("max_position_embeddings"), given, context_length(inputs))
        shapes = own.of_images(inputs) if is_image else own.of_text(vocabulary, context_length(inputs))
        fields = own.known(sizes | shapes | {"is_decoder": task == "causal_lm", "use_cache": False})

        def make(**more: int) -> nn.Module:
            return _from_config(own, task, is_image, {**fields, "num_labels": outputs, **more, **given})

        shift = 0 if is_image or own.is_saved else _position_shift(make)
        inner = make(max_position_embeddings=inputs[0] + shift) if shift else make()
    # A causal model needs no mask, for padding is on the right; without one attention has its fastest kernel.
    takes_mask = not is_image and "attention_mask" in inspect.signature(inner.forward).parameters
    is_masked = takes_mask and task != "causal_lm"
    if not is_masked:
        # Else every forward pass looks for padding that no mask tells of, and waits for the GPU's answer.
        inner.config.pad_token_id = None  # type: ignore[union-attr]
    return HuggingFace(inner, None if is_image else inputs[0], is_masked)


class _Config:
    """An architecture's config, its own or that of a saved model, and how it names things."""

    def __init__(self, kind: str, folder: str | None) -> None:
        from transformers import AutoConfig

        self.kind, self.folder = kind, folder
        self.is_saved = folder is not None and (Path(folder) / "config.json").is_file()
        if self.is_saved:
            self.values = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._check_kind()
        else:
            self.values = AutoConfig.for_model(kind)
        self._names = set(self.values.to_dict()) | set(self.values.attribute_map)

    def _check_kind(self) -> None:
        if self.values.model_type != self.kind:
            raise ModelError(
                f"model.init='{self.folder}' holds a model of the architecture '{self.values.model_type}': "
                f"set model.name={SCHEME}{self.values.model_type}"
            )

    def real(self, name: str) -> str:
        """Return what this architecture calls what others call `name`."""
        return str(self.values.attribute_map.get(name, name))

    def get(self, name: str) -> Any:
        """Return a value, None where there is no such name."""
        return getattr(self.values, name, None) if name in self._names else None

    def known(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that this architecture has, by their real names."""
        return {self.real(name): value for name, value in fields.items() if name in self._names}

    def named(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return a user's fields by their real names.

        Raises:
            ModelError: one is unknown.
        """
        for name in args:
            if name not in self._names:
                raise ModelError(
                    f"model.args holds '{name}', which the config of '{self.kind}' has not"
                    f"{nearest(name, self._names)}: it has {', '.join(sorted(self._names))}"
                )
        return {self.real(name): value for name, value in args.items()}

    def base(self) -> dict[str, Any]:
        """Return what a config begins with: of a saved model everything, else nothing but defaults."""
        if not self.is_saved:
            return {}
        return {name: value for name, value in self.values.to_dict().items() if name not in _DESCRIPTIVE}

    def agreed(self, width: int, depth: int) -> dict[str, Any]:
        """Check a saved model's sizes against those that are wanted; all of them stay as they were saved.

        Raises:
            ModelError: they differ.
        """
        has = self.get("hidden_size"), self.get("num_hidden_layers")
        if None not in has and has != (width, depth):
            raise ModelError(
                f"model.width={width} and model.depth={depth}, but model.init='{self.folder}' holds a model of width "
                f"{has[0]} and depth {has[1]}: set model.width={has[0]} model.depth={has[1]}"
            )
        return {}

    def sizes(self, width: int, depth: int) -> dict[str, Any]:
        """Return everything that follows from width and depth."""
        if self.get("depths") is not None:
            return self._stages(width, depth)
        fields: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth, "decoder_layers": depth}
        fields |= dict.fromkeys(_FEED_FORWARD, 4 * width)
        own_width, own_heads = self.get("hidden_size"), self.get("num_attention_heads")
        if not own_width or not isinstance(own_heads, int):
            return fields
        heads = _heads(width, own_width // own_heads)
        groups = own_heads // (self.get("num_key_value_heads") or own_heads)
        keys = heads // groups if heads % groups == 0 else heads
        fields |= {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": width // heads}
        return fields | {"decoder_attention_heads": heads}

    def _stages(self, width: int, depth: int) -> dict[str, Any]:
        """Scale an architecture in stages by its first one."""
        fields: dict[str, Any] = {"depths": [depth] * len(self.get("depths")), "embed_dim": width}
        sizes, heads = self.get("hidden_sizes"), self.get("num_attention_heads")
        if sizes:
            fields["hidden_sizes"] = [size * width // sizes[0] for size in sizes]
            fields["embedding_size"] = max(1, (self.get("embedding_size") or 0) * width // sizes[0])
        elif heads:
            first = _heads(width, self.get("embed_dim") // heads[0])
            fields["num_attention_heads"] = [first * count // heads[0] for count in heads]
        return fields

    def of_text(self, vocabulary: int, context: int) -> dict[str, Any]:
        """Return what token ids of a vocabulary, in rows as long as the context, determine."""
        if vocabulary < 1:
            raise ModelError(
                f"vocabulary={vocabulary}: '{self.kind}' was given rows of {context} numbers, which are no token ids; "
                "use text data, images of three dimensions, or another model.name"
            )
        saved = self.get("max_position_embeddings") if self.is_saved else None
        return {
            "vocab_size": vocabulary,
            "max_position_embeddings": max(context, saved or 0),
            "pad_token_id": PAD,
            "bos_token_id": END,
            "eos_token_id": END,
        }

    def of_images(self, inputs: tuple[int, ...]) -> dict[str, Any]:
        """Return what images of (channels, height, width) determine."""
        channels, height, width = inputs
        fields: dict[str, Any] = {
            "num_channels": channels,
            "image_size": height if height == width else [height, width],
        }
        patch = self.get("patch_size")
        if isinstance(patch, int) and not self.is_saved:
            fits = [size for size in range(1, patch + 1) if height % size == width % size == 0]
            fields["patch_size"] = max(
                size for size in fits if size == 1 or size * _PATCHES <= min(height, width)
            )
        return fields


def _check_positions(name: str, given: Mapping[str, Any], context: int) -> None:
    positions = given.get(name, context)
    if isinstance(positions, int) and positions < context:
        raise ModelError(
            f"model.args.{name}={positions}: sequences of data.context={context} tokens are longer than that: set "
            f"data.context={positions} or less, or leave model.args.{name} out"
        )


def _from_config(own: _Config, task: str, is_image: bool, fields: Mapping[str, Any]) -> nn.Module:
    import transformers

    by_default = "image_classification" if is_image else "sequence_classification"
    auto = getattr(transformers, _AUTO.get(task, _AUTO[by_default]))
    config = transformers.AutoConfig.for_model(own.kind, **{**own.base(), **fields})
    if type(config) not in auto._model_mapping:
        raise ModelError(
            f"model.name={SCHEME}{own.kind}: transformers has no {auto.__name__} of '{own.kind}': "
            "name an architecture that has one"
        )
    found = auto._model_mapping[type(config)]
    return (found[0] if isinstance(found, tuple) else found)(config)  # type: ignore[no-any-return]


def _position_shift(make: Callable[..., nn.Module]) -> int:
    """Return how many vectors for positions are left out at the beginning.

    RoBERTa and its kin count positions from the padding's id on.
    """
    with torch.device("meta"):
        layers = dict(make().named_modules())
    numbers = [layer.padding_idx for name, layer in layers.items() if name.endswith("position_embeddings")]
    return max((number + 1 for number in numbers if isinstance(number, int)), default=0)


def _heads(width: int, head_dim: int) -> int:
    """Return the number of heads of an even size nearest to `head_dim`, or of any size if none is even."""
    splits = [count for count in range(1, width + 1) if width % count == 0]
    even = [count for count in splits if width // count % 2 == 0] or splits
    return min(even, key=lambda count: abs(math.log(width / count / head_dim)))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Reports and progress bars of transformers are its own; what matters of them is told elsewhere."""
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
