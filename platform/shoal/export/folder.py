"""The files of an exported model: what it takes and returns, golden rows with answers, and a manifest over all.

`load` is for whoever receives such a folder: nothing of it is opened before its files are those that were written, and
nothing is answered before its golden rows are. Golden rows are JSON, which a program without Shoal reads too; null in
them is a missing number.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shoal.errors import ModelError
from shoal.export import interface as interfaces
from shoal.export import onnx_file, torch_file
from shoal.export.comparison import Answers, row_differences
from shoal.export.interface import TEXT, Input, Interface, Output
from shoal.inference.artifact import MANIFEST, check_files, list_files

GOLDEN, TOKENIZER = "golden.json", "tokenizer.json"
AGAIN = "restore it from a copy, or export the model again"
GOLDEN_ROWS, GOLDEN_TOKENS = 32, 8
MOST_NUMBERS = 1 << 19  # of golden rows and answers, which are text
GOLDEN_TOLERANCE = 1e-4  # of other CPUs, in float32


class Runner(Protocol):
    """A file that is loaded."""

    def run(self, arrays: Mapping[str, np.ndarray]) -> Answers:
        """Return the outputs, in order."""
        ...

    def close(self) -> None: ...


RUNNERS: dict[str, Callable[[Path], Runner]] = {
    "onnx": onnx_file.OnnxFile,
    "torch_export": torch_file.TorchFile,
}


class ExportedModel:
    """An exported model whose file is loaded.

    Attributes:
        run: returns the outputs for arrays by input, in order.
        close: ends the process that has loaded it, if that is another one.
    """

    def __init__(self, folder: Path) -> None:
        """Check the files of a folder that `seal` completed, and load the model.

        Raises:
            ModelError: a file is missing, changed, added or could run code.
        """
        check_folder(folder)
        self.interface = read_interface(folder)
        self._folder = folder
        runner = RUNNERS[self.interface.format](folder)
        self.run, self.close = runner.run, runner.close

    def check_golden(self) -> None:
        """Refuse a model that answers its golden rows otherwise than the model that it was made of.

        Raises:
            ModelError: it does.
        """
        interface, golden = self.interface, json.loads((self._folder / GOLDEN).read_bytes())
        arrays = golden_inputs(self._folder, interface)
        expected = [_array(golden["outputs"][one.name], one.dtype) for one in interface.outputs]
        difference = float(row_differences(interface.outputs, self.run(arrays), expected).max())
        if difference > GOLDEN_TOLERANCE:
            raise ModelError(
                f"'{self._folder / interface.file}' does not answer its golden rows as when it was exported: they "
                f"differ by {difference:.3g}; export the model again with the libraries of this machine"
            )


def load(folder: Path) -> ExportedModel:
    """Load an exported model that has answered its golden rows.

    Raises:
        ModelError: a file is missing, changed, added or could run code, or golden rows are answered otherwise.
    """
    model = ExportedModel(folder)
    try:
        model.check_golden()
    except BaseException:
        model.close()
        raise
    return model


def read_interface(folder: Path) -> Interface:
    """Return what the exported model of a folder takes and returns."""
    return Interface.model_validate_json((folder / interfaces.FILE).read_bytes())


def golden_inputs(folder: Path, interface: Interface) -> dict[str, np.ndarray]:
    """Return the golden rows of a folder, by input."""
    golden = json.loads((folder / GOLDEN).read_bytes())
    return {one.name: _array(golden["inputs"][one.name], one.dtype) for one in interface.inputs}


def as_returned(output: Output, values: np.ndarray) -> np.ndarray:
    """Return the model's own answers as an exported file returns them: classes as their places where it does so."""
    if output.classes:
        places = {name: place for place, name in enumerate(output.classes)}
        return np.array([places[str(value)] for value in values], dtype=np.int64)
    return values.astype(object if output.dtype == TEXT else output.dtype)


def seal(
    folder: Path,
    interface: Interface,
    arrays: Mapping[str, np.ndarray],
    answers: Answers,
    tokenizer: str | None,
) -> None:
    """Complete a folder that holds an exported file.

    Args:
        arrays: golden rows, by input.
        answers: of the model itself, by output.
        tokenizer: of the tokens that it takes, as JSON.
    """
    (folder / interfaces.FILE).write_text(interface.model_dump_json(indent=1))
    golden = {
        "inputs": {name: _plain(values) for name, values in arrays.items()},
        "outputs": {one.name: _plain(values) for one, values in zip(interface.outputs, answers, strict=True)},
    }
    (folder / GOLDEN).write_text(json.dumps(golden))
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer)
    write_manifest(folder)


def golden_count(inputs: Sequence[Input], outputs_per_row: int, rows: int) -> int:
    """Return how many of some rows are kept as golden ones."""
    per_row = outputs_per_row + sum(
        int(np.prod([size for size in one.shape if isinstance(size, int)])) for one in inputs
    )
    return max(1, min(rows, GOLDEN_ROWS, MOST_NUMBERS // per_row))


def write_manifest(folder: Path) -> None:
    """Write size and SHA-256 of each file."""
    list_files(folder, sorted(folder.iterdir()), folder / MANIFEST)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files are not those that were written.

    Raises:
        ModelError: with the file.
    """
    if not (folder / MANIFEST).is_file():
        raise ModelError(
            f"'{folder}' holds no exported model, of which '{MANIFEST}' is a part: export it again"
        )
    check_files(folder, folder.iterdir(), folder / MANIFEST, AGAIN)


def _plain(values: np.ndarray) -> Any:
    """Return nested lists, null for what is no number."""
    if values.dtype.kind != "f":
        return values.tolist()
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _array(values: Any, dtype: str) -> np.ndarray:
    return np.array(values, dtype=object if dtype == TEXT else dtype)
