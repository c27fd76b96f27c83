"""The config of a `transformers` architecture: its own names for width, depth, heads, vocabulary and context.

Depends on configs alone; independent of the models that are built from them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.data.tokenizer import END, PAD
from shoal.errors import ModelError, nearest

SCHEME = "huggingface:"

# The names that architectures give to the width between the two layers of a feed-forward block.
FEED_FORWARD = (
    *("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff"),
    *("encoder_ffn_dim", "decoder_ffn_dim"),
)
# Fields that describe a saved model rather than its architecture.
DESCRIPTIVE = (
    "model_type",
    "id2label",
    "label2id",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
)
PATCHES = 8  # along each side of an image, at least


class ArchitectureConfig:
    """An architecture's config, its default or that of a saved model, and its names for common sizes."""

    def __init__(self, kind: str, folder: str | None) -> None:
        from transformers import AutoConfig

        self.kind, self.folder = kind, folder
        self.is_saved = folder is not None and (Path(folder) / "config.json").is_file()
        if self.is_saved:
            self.values = _saved_config(str(folder))
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
        """Return this architecture's name for what is commonly called `name`."""
        return str(self.values.attribute_map.get(name, name))

    def get(self, name: str) -> Any:
        """Return a value; None if there is no such field."""
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
                    f"model.args holds '{name}', which is no field of the config of '{self.kind}'"
                    f"{nearest(name, self._names)}: it has {', '.join(sorted(self._names))}"
                )
        return {self.real(name): value for name, value in args.items()}

    def base(self) -> dict[str, Any]:
        """Return the fields that a new config starts from: all of a saved model's, else none."""
        if not self.is_saved:
            return {}
        return {name: value for name, value in self.values.to_dict().items() if name not in DESCRIPTIVE}

    def agreed(self, width: int, depth: int) -> dict[str, Any]:
        """Check a saved model's sizes against those of the run's config; no field is changed.

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
        """Return all fields that follow from width and depth."""
        if self.get("depths") is not None:
            return self._stages(width, depth)
        fields: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth, "decoder_layers": depth}
        fields |= dict.fromkeys(FEED_FORWARD, 4 * width)
        own_width, own_heads = self.get("hidden_size"), self.get("num_attention_heads")
        if not own_width or not isinstance(own_heads, int):
            return fields
        heads = _head_count(width, own_width // own_heads)
        groups = own_heads // (self.get("num_key_value_heads") or own_heads)
        keys = heads // groups if heads % groups == 0 else heads
        fields |= {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": width // heads}
        return fields | {"decoder_attention_heads": heads}

    def _stages(self, width: int, depth: int) -> dict[str, Any]:
        """Scale an architecture in stages by its first stage."""
        fields: dict[str, Any] = {"depths": [depth] * len(self.get("depths")), "embed_dim": width}
        sizes, heads = self.get("hidden_sizes"), self.get("num_attention_heads")
        if sizes:
            fields["hidden_sizes"] = [size * width // sizes[0] for size in sizes]
            fields["embedding_size"] = max(1, (self.get("embedding_size") or 0) * width // sizes[0])
        elif heads:
            first = _head_count(width, self.get("embed_dim") // heads[0])
            fields["num_attention_heads"] = [first * count // heads[0] for count in heads]
        return fields

    def of_text(self, vocabulary: int, context: int) -> dict[str, Any]:
        """Return the fields for token ids of a vocabulary, in rows as long as the context."""
        if vocabulary < 1:
            raise ModelError(
                f"vocabulary={vocabulary}: '{self.kind}' received rows of {context} numbers, which are not token ids; "
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
        """Return the fields for images of (channels, height, width)."""
        channels, height, width = inputs
        fields: dict[str, Any] = {
            "num_channels": channels,
            "image_size": height if height == width else [height, width],
        }
        patch = self.get("patch_size")
        if isinstance(patch, int) and not self.is_saved:
            fits = [size for size in range(1, patch + 1) if height % size == width % size == 0]
            fields["patch_size"] = max(
                size for size in fits if size == 1 or size * PATCHES <= min(height, width)
            )
        return fields


def _saved_config(folder: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.init='{folder}': its config.json does not load ({' '.join(str(error).split())[:200]}): name a "
            "folder of an architecture that transformers has; code that lies in the folder is not run"
        ) from None


def _head_count(width: int, head_dim: int) -> int:
    """Return the number of heads whose size is even and nearest to `head_dim`; of any size if none is even."""
    splits = [count for count in range(1, width + 1) if width % count == 0]
    even = [count for count in splits if width // count % 2 == 0] or splits
    return min(even, key=lambda count: abs(math.log(width / count / head_dim)))
