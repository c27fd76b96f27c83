"""Pretrained weights: safetensors of a folder, loaded into a model that is built already.

Depends on the names and shapes of tensors; independent of how the model was built.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.huggingface import HuggingFace

logger = logging.getLogger(__name__)

# In the folder itself (of a checkpoint or of save_pretrained), in a saved model, in a run folder.
PATTERNS = ("*.safetensors", "data/*/*.safetensors", "model/data/*/*.safetensors")


def load_pretrained(model: nn.Module, folder: str) -> None:
    """Load a folder's weights into a model, in place; tensors that the folder lacks keep their initial values.

    The log names tensors that only one side has. For a model on the meta device only the folder's existence is checked.

    Raises:
        ModelError: the folder does not exist or holds no weights, or a tensor has another shape.
    """
    files = _files(folder)
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    found, misfits = _read(model, files, folder)
    own = model.state_dict()
    misfits |= {
        name: tuple(t.shape) for name, t in found.items() if name in own and t.shape != own[name].shape
    }
    if misfits:
        name = next(name for name in own if name in misfits)
        theirs, ours = misfits[name], tuple(own[name].shape)
        raise ModelError(
            f"model.init='{folder}': '{name}' is of shape {theirs} there and {ours} in the model: set "
            "the model's sizes to those of the weights (model.width, model.depth, model.args; for vocabulary and "
            "context data.tokenizer and data.context), or name other weights"
        )
    fitting = own.keys() & found.keys()
    if not fitting:
        raise ModelError(
            f"model.init='{folder}' holds none of the model's tensors: it has {_some(found)}, "
            f"the model has {_some(own)}; name weights of the same architecture"
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(found[name])
    _log_names(folder, "not there, left as initialized", own.keys() - fitting)
    _log_names(folder, "there, not in the model", found.keys() - fitting)


def _files(folder: str) -> list[Path]:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"model.init='{folder}' is no folder, seen from {Path.cwd()}: name a folder of this machine"
        )
    for pattern in PATTERNS:
        if files := sorted(path.glob(pattern)):
            return files
    raise ModelError(
        f"model.init='{folder}' holds no *.safetensors: name a folder that save_pretrained wrote, "
        "a checkpoint, or a run folder"
    )


def _read(
    model: nn.Module, files: list[Path], folder: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Return the tensors of the files, and the shapes of those that do not fit and are left out."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if isinstance(model, HuggingFace) and not _is_ours(model, files[0]):
            return model.read(files[0].parent)
        return {name: tensor for file in files for name, tensor in load_file(file).items()}, {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model.init='{folder}' does not read ({error}): write the weights again") from None


def _is_ours(model: nn.Module, file: Path) -> bool:
    """Whether tensors have the names of Shoal's own modules, rather than those of transformers."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return not model.state_dict().keys().isdisjoint(weights.keys())


def _some(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")


def _log_names(folder: str, what: str, names: set[str]) -> None:
    if names:
        logger.info("model.init='%s': %s: %s", folder, what, ", ".join(sorted(names)))
