"""A model without its transform as ONNX: features in, raw outputs out; and such a file joined with its transform again.

The joined file takes raw columns and returns predictions, as that of any other model.
"""

import copy
import importlib
import tempfile
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shoal.data.tree import Tree, only_tensor
from shoal.errors import ModelError
from shoal.export import onnx_file
from shoal.export.interface import BATCH, Input, Output
from shoal.export.module import answers_of, example_inputs, features_of, is_language_model
from shoal.export.tracing import trace
from shoal.inference.onnx_module import FILE, OnnxModule
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.models.cpu_kernels import use_torch_linear
from shoal.tasks.outputs import logits_of

if TYPE_CHECKING:
    from onnx import ModelProto

FEATURES, LOGITS = "features", "logits"
Written = tuple[tuple[Input, ...], tuple[Output, ...], dict[str, int]]


class _Bare(nn.Module):
    """Features, or arrays that need no transform, to raw outputs."""

    def __init__(self, predictor: Predictor, example: Tree) -> None:
        super().__init__()
        transform = predictor.transform
        self.model = copy.deepcopy(predictor.model).eval()
        use_torch_linear(self.model)
        self.inputs, self._tree = features_of(transform, self.model)
        if _takes_features(predictor):
            self.inputs, self._tree = (_array(FEATURES, only_tensor(example)),), nn.Identity()
        elif transform.input_tree is not None and len(self.inputs) > len(transform.columns):
            raise ModelError(
                "the model takes the lengths of its arrays, which ONNX Runtime would be passed by name: of such a "
                "model no 8-bit integers are made"
            )

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        return (logits_of(call_model(self.model, self._tree(*arrays))),)


class _Before(nn.Module):
    """Raw columns to features."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self._features = features

    def forward(self, *raw: Tensor) -> tuple[Tensor, ...]:
        return (self._features(*raw),)


class _After(nn.Module):
    """Raw outputs to predictions."""

    def __init__(self, answers: Any) -> None:
        super().__init__()
        self._answers = answers

    def forward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        return self._answers(*outputs)  # type: ignore[no-any-return]


def _takes_features(predictor: Predictor) -> bool:
    """Whether the model takes what its transform makes of columns, and no tokens or arrays as they are."""
    return predictor.transform.tokenizer is None and predictor.transform.input_tree is None


def _array(name: str, example: Tensor) -> Input:
    dtype = str(example.dtype).removeprefix("torch.")
    return Input(name=name, dtype=dtype, shape=(BATCH, *example.shape[1:]), meaning="as of an array of torch")


def write_bare(predictor: Predictor, example: Tree, folder: Path) -> None:
    """Write `model.onnx` of a model without its transform, for `OnnxModule`.

    Args:
        example: inputs of a few rows.

    Raises:
        ModelError: it has no such form.
    """
    folder.mkdir(parents=True)
    module = _Bare(predictor, example)
    program = trace(module, module.inputs, _context(predictor))
    onnx_file.write(program, module.inputs, (_output(LOGITS),), folder)


def write_joined(predictor: Predictor, folder: Path) -> Written:
    """Write `model.onnx` of a model that ONNX Runtime computes, with its transform; as `onnx_file.write`.

    Raises:
        ModelError: its transform has no form in ONNX.
    """
    onnx = importlib.import_module("onnx")
    assert isinstance(predictor.model, OnnxModule)
    inputs, features = features_of(predictor.transform, predictor.model)
    with torch.no_grad():
        inner = features(*example_inputs(inputs))
        outer = call_model(predictor.model, inner)
    outputs, answers = answers_of(predictor, outer)
    parts = [onnx.load(str(predictor.model.file))]
    if _takes_features(predictor):
        before, inputs, _ = _part(_Before(features), inputs, (_output(FEATURES),))
        parts.insert(0, before)
    if not is_language_model(predictor.transform):
        names = onnx_file.output_names(inputs, outputs)
        named = [one.model_copy(update={"name": name}) for one, name in zip(outputs, names, strict=True)]
        after, _, outputs = _part(_After(answers), (_array(LOGITS, outer),), named)
        parts.append(after)
    joined = _joined(parts)
    onnx.save(joined, str(folder / FILE))
    opset = {one.domain or "ai.onnx": one.version for one in joined.opset_import}
    return inputs, outputs, opset


def _context(predictor: Predictor) -> int | None:
    transform = predictor.transform
    return transform.input_shape[0] if transform.tokenizer else None


def _output(name: str) -> Output:
    return Output(name=name, dtype="float32", shape=(), meaning="")


def _part(
    module: nn.Module, inputs: Sequence[Input], outputs: Sequence[Output]
) -> tuple["ModelProto", tuple[Input, ...], tuple[Output, ...]]:
    """Return a part of the file, what it takes, and what it returns."""
    with tempfile.TemporaryDirectory() as scratch:
        program = trace(module, inputs, None)
        taken, returned, _ = onnx_file.write(program, inputs, outputs, Path(scratch))
        return importlib.import_module("onnx").load(str(Path(scratch, FILE))), taken, returned


def _joined(parts: Sequence["ModelProto"]) -> "ModelProto":
    """Return one model of parts, each of which takes what the one before returns."""
    compose = importlib.import_module("onnx.compose")
    version, last = max(part.ir_version for part in parts), len(parts) - 1
    for part in parts:
        part.ir_version = version
    # Names of values inside are the same in each part.
    renamed = [
        compose.add_prefix(part, f"{place}", rename_inputs=place > 0, rename_outputs=place < last)
        for place, part in enumerate(parts)
    ]

    def join(one: "ModelProto", other: "ModelProto") -> "ModelProto":
        [returned], [taken] = one.graph.output, other.graph.input
        return compose.merge_models(one, other, io_map=[(returned.name, taken.name)])

    return reduce(join, renamed)
