"""A compressed model as files: weights and description in a saved MLflow model, as training writes them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.data.sources.base import Block
from shoal.inference import onnx_module
from shoal.inference.description import DESCRIPTION, WEIGHTS, Description
from shoal.models.layer_sizes import changed_shapes
from shoal.models.weights import Narrow, load_weights
from shoal.registry.package import save_model
from shoal.storage.run_folder import MODEL


def write_pruned(folder: Path, source: Path, before: nn.Module, model: nn.Module, example: Block) -> Path:
    """Save a model whose layers may have other sizes than those of the model it was made of; return where.

    Args:
        folder: that is made.
        source: of weights and description of the model that was pruned.
        before: that model.
        example: a few raw rows.

    Returns:
        the folder of the MLflow model.
    """
    description = Description.load(source / DESCRIPTION)
    shapes = description.shapes | changed_shapes(model, before)
    return write_model(folder, description.model_copy(update={"shapes": shapes}), model, example)


def write_model(folder: Path, description: Description, model: nn.Module, example: Block) -> Path:
    """Save a model that a description builds, as `write_pruned`."""
    return _write(folder, description, model.state_dict(), example)


def write_narrow(folder: Path, source: Path, narrow: Narrow, example: Block) -> Path:
    """Save a model with its float32 weights in fewer bits, as `write_pruned`; loading makes them float32 again.

    Args:
        narrow: `shoal.models.weights.as_bf16` or `as_int8`.
    """
    tensors = narrow(load_weights(source / WEIGHTS))
    return _write(folder, Description.load(source / DESCRIPTION), tensors, example)


def write_onnx(folder: Path, source: Path, file: Path, example: Block) -> Path:
    """Save a model of which ONNX Runtime computes a file, as `write_pruned`.

    Args:
        file: `model.onnx`, which takes features and returns raw outputs.
    """
    description = Description.load(source / DESCRIPTION).model_copy(update={"runtime": "onnxruntime"})
    data = folder / "weights"
    data.mkdir(parents=True)
    shutil.copyfile(file, data / onnx_module.FILE)
    return _save(folder, description, example)


def _write(folder: Path, description: Description, tensors: Mapping[str, Tensor], example: Block) -> Path:
    data = folder / "weights"
    data.mkdir(parents=True)
    # Copies: safetensors writes no tensors that share memory, as tied weights do.
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, data / WEIGHTS
    )
    return _save(folder, description, example)


def _save(folder: Path, description: Description, example: Block) -> Path:
    data = folder / "weights"
    (data / DESCRIPTION).write_text(description.to_json())
    save_model(folder / MODEL, data, example, description.model.name)
    return folder / MODEL
