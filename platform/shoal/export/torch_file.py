"""A file of torch.export: written without pickle, checked before a byte of it is loaded, run in a process of its own.

torch.load of such a file unpickles what the archive's own JSON marks so, whatever is in `sample_inputs`, and SymPy
evaluates the expressions of sizes in it. So all of these are refused, and the rest is a short list.
"""

import base64
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch.export import ExportedProgram

from shoal.errors import ModelError
from shoal.export.tracing import quiet
from shoal.processes import start_answering, stop_signals_blocked

FILE = "model.pt2"
WORKER = "shoal.export.torch_process"
# Weights and constants as raw bytes, the graph as JSON, and what says which version wrote them.
PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
SAMPLES = "data/sample_inputs/model.pt"  # a pickle, unless it is empty
# Of sizes, which SymPy evaluates: names, numbers, and calls of its classes, whose names no function of Python's has.
EXPRESSION = re.compile(r"(?!.*(?:__|\)\s*\(|\b[a-z_]\w*\s*\())(?:[\w\s+\-*/%(),<>=&|~]|'\w+')*")


def write(program: ExportedProgram, folder: Path) -> None:
    """Write `model.pt2`.

    Raises:
        ModelError: a weight of the model has no form but pickle.
    """
    program.example_inputs = None  # they would be pickled
    with quiet():
        torch.export.save(program, folder / FILE)
    check_archive(folder / FILE)


def check_archive(path: Path) -> None:
    """Refuse an archive that torch would unpickle or evaluate a part of, or that holds compiled code.

    Raises:
        ModelError: with the part that is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            for name, info in zip(names, archive.infolist(), strict=True):
                if names.count(name) > 1:
                    raise _refused(path, f"holds '{name}' twice")
                if not PLAIN.fullmatch(name) or (name == SAMPLES and info.file_size):
                    raise _refused(
                        path, f"holds '{name}', which is not weights or a graph and could be a pickle"
                    )
                if name.endswith(".json"):
                    _check_json(path, name, json.loads(archive.read(info)))
    except ModelError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _refused(path, f"is no archive of torch.export ({type(error).__name__}: {error})") from None


def _check_json(path: Path, name: str, tree: Any) -> None:
    for key, value in _leaves(tree):
        if key == "use_pickle" and value is not False:
            raise _refused(path, f"says in '{name}' that a part of it is a pickle")
        if key == "expr_str" and not (isinstance(value, str) and EXPRESSION.fullmatch(value)):
            raise _refused(path, f"holds in '{name}' the expression {str(value)[:60]!r}, which is no size")


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)
    else:
        yield key, tree


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(f"'{path}' {why}: it is not loaded; export the model again")


class TorchFile:
    """A file that a process of its own has loaded; `close` ends the process."""

    def __init__(self, folder: Path) -> None:
        """Check the file, and have it loaded.

        Raises:
            ModelError: it is refused, or does not load.
        """
        self._path = folder / FILE
        check_archive(self._path)
        with stop_signals_blocked():  # the process ends with its input
            self._process, self._answers = start_answering(
                ["-m", WORKER, str(self._path)],
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            self._answer()
        except ModelError:
            self.close()
            raise

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs [rows, ...] in order.

        Raises:
            ModelError: the process has ended.
        """
        assert self._process.stdin is not None
        plain = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        self._process.stdin.write(f"{json.dumps([list(plain), _text(plain)])}\n")
        self._process.stdin.flush()
        found = load(base64.b64decode(self._answer()))
        return [found[str(place)] for place in range(len(found))]

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            _, err = self._process.communicate()
            last = (err.strip().splitlines() or ["no output"])[-1]
            raise ModelError(f"'{self._path}' does not load or run with torch {torch.__version__}: {last}")
        return str(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._answers.close()


def _text(arrays: Mapping[str, np.ndarray]) -> str:
    return base64.b64encode(save(dict(arrays))).decode()
