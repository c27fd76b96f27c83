"""ONNX: written from a recorded graph with texts as categories and classes, checked, and run by ONNX Runtime.

Strings have no tensors in torch, so the graph takes and returns places; operators that look them up are added to the
file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export import ExportedProgram

from shoal.errors import ModelError
from shoal.export.interface import TEXT, Input, Output
from shoal.export.tracing import quiet, reason
from shoal.inference.onnx_module import FILE, open_session
from shoal.tasks.libraries import Library

if TYPE_CHECKING:
    import onnx_ir as ir

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INNER = "/graph/"  # begins the names of values inside
LOOKUP, LOOKUP_OPSET = "ai.onnx.ml", 3
MOST_BYTES = 1_500_000_000  # of weights in the file itself, which cannot have 2 GB


def check_installed(
    asked: str = "export.formats=onnx", otherwise: str = "export.formats=torch_export,safetensors"
) -> None:
    """Refuse a Python without the packages that write and run ONNX.

    Args:
        asked: the setting that needs them.
        otherwise: one that does not.

    Raises:
        ConfigError: with the command that installs them.
    """
    for name in PACKAGES:
        Library(name, "export").check(asked, otherwise)


def write(
    program: ExportedProgram, inputs: Sequence[Input], outputs: Sequence[Output], folder: Path
) -> tuple[tuple[Input, ...], tuple[Output, ...], dict[str, int]]:
    """Write `model.onnx`; weights above `MOST_BYTES` into `model.onnx.data` beside it.

    Returns:
        what the file takes and returns, and its opset by domain.

    Raises:
        ModelError: ONNX has no form of an operation of the model.
    """
    names = output_names(inputs, outputs)
    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
            assert made is not None
    except Exception as error:  # of the exporter, in many classes
        raise ModelError(
            f"the model has no form as ONNX ({reason(error)}): set export.formats=torch_export,safetensors"
        ) from error
    graph = made.model.graph
    # Each has its stack trace: more bytes than a small model, and paths of this machine.
    for node in graph.all_nodes():
        node.metadata_props.clear()
    _name_values(graph, [one.name for one in inputs], names)
    _name_dimensions(graph, inputs)
    taken = tuple(_take_texts(made.model, place, one) for place, one in enumerate(inputs))
    returned = tuple(
        _return_texts(made.model, place, one.model_copy(update={"name": name}))
        for place, (one, name) in enumerate(zip(outputs, names, strict=True))
    )
    size = sum(
        value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None
    )
    made.save(folder / FILE, external_data=size > MOST_BYTES)
    return (
        taken,
        returned,
        {domain or "ai.onnx": number for domain, number in made.model.opset_imports.items()},
    )


def output_names(inputs: Sequence[Input], outputs: Sequence[Output]) -> list[str]:
    """Return names that no column has."""
    columns, names = {one.name for one in inputs}, []
    for one in outputs:
        name = one.name
        while name in columns:
            name += "_"
        names.append(name)
    return names


def _name_values(graph: "ir.Graph", inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name inputs and outputs, and give all other values names that no column has."""
    inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in inner:
        value.name = f"{INNER}{value.name}"
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name


def _name_dimensions(graph: "ir.Graph", inputs: Sequence[Input]) -> None:
    """Call dimensions what the interface calls them, where torch has numbered symbols."""
    import onnx_ir as ir

    names = {
        str(dim): wanted
        for value, one in zip(graph.inputs, inputs, strict=True)
        for dim, wanted in zip(value.shape or (), one.shape, strict=True)
        if isinstance(wanted, str)
    }
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([names.get(str(dim), dim) for dim in value.shape])


def _take_texts(model: "ir.Model", place: int, one: Input) -> Input:
    """Have an input take categories as texts, and the graph look their places up; unknown texts have the last one."""
    import onnx_ir as ir

    if one.categories is None:
        return one
    graph = model.graph
    codes = graph.inputs[place]
    text = ir.Value(name=one.name, type=ir.TensorType(ir.DataType.STRING), shape=codes.shape)
    keys = list(one.categories) or [""]
    attributes = {
        "keys_strings": keys,
        "values_int64s": list(range(len(keys))) if one.categories else [0],
        "default_int64": len(one.categories),
    }
    node = ir.node("LabelEncoder", [text], attributes, domain=LOOKUP)
    found = node.outputs[0]
    found.name, found.type, found.shape = f"{INNER}{one.name}.place", codes.type, codes.shape
    ir.convenience.replace_all_uses_with(codes, found)
    graph.inputs[place] = text
    graph.insert_before(graph[0], node)
    model.opset_imports.setdefault(LOOKUP, LOOKUP_OPSET)
    missing = "''" if "" not in one.categories else "any other text"
    meaning = f"one of categories, or any other text; {missing}: missing"
    return one.model_copy(update={"dtype": TEXT, "meaning": meaning})


def _return_texts(model: "ir.Model", place: int, one: Output) -> Output:
    """Have an output return classes as texts."""
    import onnx_ir as ir

    if not one.classes:
        return one
    graph = model.graph
    places = graph.outputs[place]
    places.name = f"{INNER}{one.name}.place"
    attributes = {"keys_int64s": list(range(len(one.classes))), "values_strings": list(one.classes)}
    node = ir.node("LabelEncoder", [places], attributes, domain=LOOKUP)
    text = node.outputs[0]
    text.name, text.type, text.shape = one.name, ir.TensorType(ir.DataType.STRING), places.shape
    graph.append(node)
    graph.outputs[place] = text
    model.opset_imports.setdefault(LOOKUP, LOOKUP_OPSET)
    return one.model_copy(update={"dtype": TEXT, "meaning": "the likeliest class", "classes": ()})


class OnnxFile:
    """A file that ONNX Runtime has loaded, on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            ModelError: it is damaged, or names tensors outside its folder.
            UserError: a package is not installed.
        """
        check_installed()
        self._session = open_session(folder / FILE)

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs [rows, ...] in order."""
        return list(self._session.run(None, dict(arrays)))

    def close(self) -> None:
        """Do nothing: it is part of this process."""
