"""Weights to start from: a folder with safetensors, put into a model that is built already.

It knows tensors by their names and shapes; how the model was built it does not know.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.huggingface import HuggingFace

logger = logging.getLogger(__name__)

# In the folder itself (a checkpoint, save_pretrained's), in a saved model, in a run folder.
_PLACES = ("*.safetensors", "data/*/*.safetensors", "model/data/*/*.safetensors")


def load_pretrained(model: nn.Module, folder: str) -> None:
    """Put a folder's weights into a model, in place; what it lacks stays as it is and is named in the log.

    A model on the meta device has no weights to be put in: of it only the folder is looked up.

    Raises:
        ModelError: the folder is not there or holds no weights, or a tensor is of another shape.
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
            f"model.init='{folder}': '{name}' is of shape {theirs} there and {ours} in the model: give "
            "the model the sizes of these weights (model.width, model.depth, model.args; vocabulary and context are "
            "the data's: data.tokenizer, data.context), or other weights"
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
    _tell(folder, "not there, left as initialised", own.keys() - fitting)
    _tell(folder, "there, not in the model", found.keys() - fitting)


def _files(folder: str) -> list[Path]:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"model.init='{folder}' is no folder, seen from {Path.cwd()}: name a folder of this machine"
        )
    for place in _PLACES:
        if files := sorted(path.glob(place)):
            return files
    raise ModelError(
        f"model.init='{folder}' holds no *.safetensors: name what save_pretrained wrote, a checkpoint, or a run folder"
    )


def _read(
    model: nn.Module, files: list[Path], folder: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Return the tensors of the files, and the shapes of those that are left out because they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if isinstance(model, HuggingFace) and not _is_ours(model, files[0]):
            return model.read(files[0].parent)
        return {name: tensor for file in files for name, tensor in load_file(file).items()}, {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model.init='{folder}' does not read ({error}): write the weights again") from None


def _is_ours(model: nn.Module, file: Path) -> bool:
    """Whether tensors have the names that Shoal gave them, rather than transformers'."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return not model.state_dict().keys().isdisjoint(weights.keys())


def _some(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")


def _tell(folder: str, what: str, names: set[str]) -> None:
    if names:
        logger.info("model.init='%s': %s: %s", folder, what, ", ".join(sorted(names)))
