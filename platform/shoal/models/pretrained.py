"""Pretrained weights of a folder or file, loaded into a model that is built already: those that fit.

Depends on the names and shapes of tensors; independent of how the model was built.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.huggingface import HuggingFace

# In the folder itself (of a checkpoint or of save_pretrained), in a saved model, in a run folder.
PATTERNS = ("*.safetensors", "data/*/*.safetensors", "model/data/*/*.safetensors")
PICKLED = (".pt", ".pth")
STATE_DICT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # where training scripts keep it beside other state
WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning

NOT_LOADED = "_shoal_not_loaded"  # of a model: what of its initial weights did not fit, in words
MOST_NAMES = 20


def load_pretrained(model: nn.Module, path: str) -> None:
    """Load what fits of a file's or folder's weights into a model, in place; the rest keeps its initial values.

    The model's attribute `NOT_LOADED` is a text that names tensors that only one side has or that have another shape.
    For a model on the meta device only the files' existence is checked.

    Raises:
        ModelError: the path does not exist or holds no weights, or none of them fits.
    """
    files = _files(path)
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    own = model.state_dict()
    found, misfits = _read(model, files, path)
    misfits |= {
        name: tuple(t.shape) for name, t in found.items() if name in own and t.shape != own[name].shape
    }
    fitting = [name for name in own if name in found and name not in misfits]
    if not fitting:
        raise _nothing_fits(path, own, found, misfits)
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(found[name])
    differences = {
        "not there, left as initialized": own.keys() - found.keys() - misfits.keys(),
        "there, not in the model": found.keys() - own.keys(),
        "of another shape, left as initialized": [
            f"{name} {shape} there, {tuple(own[name].shape)} in the model" for name, shape in misfits.items()
        ],
    }
    named = "; ".join(f"{what}: {_some(names)}" for what, names in differences.items() if names)
    if named:
        setattr(
            model, NOT_LOADED, f"model.init='{path}': loaded {len(fitting)} of {len(own)} tensors; {named}"
        )


def _nothing_fits(
    path: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], misfits: Mapping[str, tuple[int, ...]]
) -> ModelError:
    if misfits:
        name = next(name for name in own if name in misfits)
        return ModelError(
            f"model.init='{path}' holds no tensor that fits: '{name}' is of shape {misfits[name]} there and "
            f"{tuple(own[name].shape)} in the model: set the model's sizes to those of the weights (model.width, "
            "model.depth, model.args; for vocabulary and context data.tokenizer and data.context), or name other "
            "weights"
        )
    return ModelError(
        f"model.init='{path}' holds none of the model's tensors: it has {_some(found, 3)}, the model has "
        f"{_some(own, 3)}; name weights of the same architecture"
    )


def _files(path: str) -> list[Path]:
    """Return the files of weights at a path."""
    found = Path(path).expanduser()
    if found.is_file():
        if found.suffix in (".safetensors", *PICKLED):
            return [found]
        raise ModelError(
            f"model.init='{path}' is a file of another kind: name a .safetensors file, a .pt or .pth file with a "
            "state_dict, or a folder of safetensors"
        )
    if not found.is_dir():
        raise ModelError(
            f"model.init='{path}' is no folder and no file, seen from {Path.cwd()}: name one of this machine"
        )
    for pattern in PATTERNS:
        if files := sorted(found.glob(pattern)):
            return files
    raise ModelError(
        f"model.init='{path}' holds no *.safetensors: name a folder that save_pretrained wrote, a checkpoint, a run "
        "folder, or a file"
    )


def _read(
    model: nn.Module, files: list[Path], path: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Return the tensors of the files, and the shapes of those that do not fit and are left out."""
    from safetensors import SafetensorError

    from shoal.models.weights import load_weights

    try:
        if files[0].suffix in PICKLED:
            return _by_own_names(_state_dict(files[0], path), model), {}
        if (
            isinstance(model, HuggingFace)
            and Path(path).expanduser().is_dir()
            and not _is_ours(model, files[0])
        ):
            return model.read(files[0].parent)
        tensors = {name: tensor for file in files for name, tensor in load_weights(file).items()}
        return _by_own_names(tensors, model), {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model.init='{path}' does not read ({error}): write the weights again") from None


def _state_dict(file: Path, path: str) -> dict[str, Tensor]:
    """Read a file that torch.save wrote: a state dict, or a dict that holds one under a usual key.

    Code that lies in the file is not run.

    Raises:
        ModelError: it holds something else.
    """
    remedy = "save model.state_dict() alone"
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises almost anything at a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model.init='{path}' does not read as weights ({type(error).__name__}: {reason}): {remedy}"
        ) from None
    for key in STATE_DICT_KEYS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    tensors = (
        {name: t for name, t in value.items() if isinstance(t, Tensor)} if isinstance(value, Mapping) else {}
    )
    if not tensors:
        raise ModelError(f"model.init='{path}' holds a {type(value).__name__}, no state_dict: {remedy}")
    return tensors


def _by_own_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors by the model's own names: wrappers around a model put a prefix before all of them."""
    own = model.state_dict().keys()
    prefixes = [prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in tensors)]
    candidates = [
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()} for prefix in ("", *prefixes)
    ]
    if isinstance(model, HuggingFace):
        candidates.append({f"inner.{name}": tensor for name, tensor in tensors.items()})
    return max(candidates, key=lambda named: len(own & named.keys()))


def _is_ours(model: nn.Module, file: Path) -> bool:
    """Whether tensors have the names of Shoal's own modules, rather than those of transformers."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return not model.state_dict().keys().isdisjoint(weights.keys())


def _some(names: Collection[str], most: int = MOST_NAMES) -> str:
    first = sorted(names)[:most]
    return ", ".join(first) + (f", and {len(names) - most} more" if len(names) > most else "")
