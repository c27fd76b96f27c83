"""Writes the formats of one model, each with golden rows and manifest, and loads them as their receivers do."""

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shoal.data.sources.base import Block
from shoal.export import folder as folders
from shoal.export import onnx_file, torch_file, weights_file
from shoal.export.bare import Written, write_joined
from shoal.export.comparison import Compared, compare, model_answers
from shoal.export.interface import Format, Interface
from shoal.export.module import ModelWithTransform, arrays_of, columns_passed_as_features, is_language_model
from shoal.export.tracing import trace
from shoal.inference import onnx_module
from shoal.inference.onnx_module import OnnxModule
from shoal.inference.predictor import Predictor

logger = logging.getLogger(__name__)


@dataclass
class Writer:
    """Writes formats of one model, and keeps them loaded until the end.

    Attributes:
        source: the folder of weights and description that the model was loaded from.
        folder: where each format gets a folder of its own.
        uri: of the model, for the record.
        some: raw rows, of which the first become golden ones.
    """

    predictor: Predictor
    source: Path
    folder: Path
    uri: str
    some: Block
    _written: dict[str, Compared] = field(default_factory=dict)
    _graph: Any = None  # the module and its recorded graph, which two formats share
    _loaded: list[folders.ExportedModel] = field(default_factory=list)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._loaded:
            one.close()

    def write(self, name: Format) -> None:
        """Write a format, and load it.

        Raises:
            ModelError: the model has no such form.
        """
        folder = self.folder / name
        folder.mkdir(parents=True)
        if name == "safetensors":
            self._written[name] = self._write_weights(folder)
            return
        inputs, outputs, opset = self._write_graph(name, folder)
        transform = self.predictor.transform
        interface = Interface(
            format=name,
            file=onnx_module.FILE if name == "onnx" else torch_file.FILE,
            task=self.predictor.task.name,
            inputs=inputs,
            outputs=outputs,
            classes=transform.label.classes,
            model=self.uri,
            model_digest=self.predictor.digest,
            opset=opset,
            versions=_versions(name),
        )
        self._seal(folder, interface)
        exported = folders.ExportedModel(folder)
        self._loaded.append(exported)
        self._written[name] = Compared(
            lambda block: exported.run(arrays_of(block, transform, interface.inputs)), interface.outputs
        )

    def compare(self, blocks: Iterator[Block]) -> tuple[int, dict[str, float]]:
        """Compare what was written with the model, as `shoal.export.comparison.compare`, and on its golden rows.

        Raises:
            VerificationError: one answers otherwise.
        """
        found = compare(self._written, self.predictor, blocks)
        for one in self._loaded:
            one.check_golden()
        return found

    def _write_graph(self, name: Format, folder: Path) -> Written:
        """Write a graph of operations; return what it takes and returns, and its opset."""
        if isinstance(self.predictor.model, OnnxModule):
            return write_joined(self.predictor, folder)
        module, program = self._graph = self._graph or self._trace()
        if name == "onnx":
            return onnx_file.write(program, module.inputs, module.outputs, folder)
        torch_file.write(program, folder)
        return module.inputs, module.outputs, {}

    def _trace(self) -> tuple[ModelWithTransform, Any]:
        transform = self.predictor.transform
        for column in columns_passed_as_features(transform):
            logger.warning(
                "column '%s' is hashed text, which graphs cannot compute: its %d features are passed instead",
                column.name,
                column.width,
            )
        module = ModelWithTransform(self.predictor)
        return module, trace(module, module.inputs, transform.input_shape[0] if transform.tokenizer else None)

    def _write_weights(self, folder: Path) -> Compared:
        weights_file.write(self.source, folder)
        if self.predictor.transform.tokenizer is not None:
            (folder / folders.TOKENIZER).write_text(self.predictor.transform.tokenizer)
        folders.write_manifest(folder)
        again = weights_file.read(folder, self.predictor)
        one = {name: values[:1] for name, values in self.some.items()}
        return Compared(partial(model_answers, again), weights_file.outputs(model_answers(again, one)))

    def _seal(self, folder: Path, interface: Interface) -> None:
        """Choose golden rows: the first; of a language model few, and the beginnings of them."""
        transform, outputs = self.predictor.transform, interface.outputs
        block = {name: values[: folders.GOLDEN_ROWS] for name, values in self.some.items()}
        if is_language_model(transform):
            arrays = arrays_of(block, transform, interface.inputs)
            block = {name: tokens[:2, : folders.GOLDEN_TOKENS] for name, tokens in arrays.items()}
        answers = model_answers(self.predictor, block)
        numbers = sum(values[:1].size for values in answers)
        count = folders.golden_count(interface.inputs, numbers, len(answers[0]))
        block = {name: values[:count] for name, values in block.items()}
        answers = [
            folders.as_returned(one, values[:count]) for one, values in zip(outputs, answers, strict=True)
        ]
        arrays = arrays_of(block, transform, interface.inputs)
        folders.seal(folder, interface, arrays, answers, transform.tokenizer)


def _versions(name: Format) -> dict[str, str]:
    packages = ("torch", *(onnx_file.PACKAGES if name == "onnx" else ()))
    return {package: importlib.metadata.version(package) for package in packages}
