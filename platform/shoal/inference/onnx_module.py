"""A model that ONNX Runtime computes, behind the interface of a module of torch: features in, raw outputs out.

Depends on the files of a saved model; independent of transforms and tasks. ONNX Runtime is imported where it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.tree import Tree, tensors
from shoal.errors import ModelError
from shoal.inference.artifact import check_file_format

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FILE = "model.onnx"


def open_session(file: Path) -> "InferenceSession":
    """Load a file, on the CPU, for as many threads as torch has.

    Raises:
        ModelError: it is damaged, names tensors outside its folder, or ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"'{file}' is computed by the package onnxruntime ({error}): pip install 'shoal[export]'"
        ) from None
    check_file_format(file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()  # it does not heed OMP_NUM_THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # of threads that wait
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # classes of its own, without a common base
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"'{file}' does not load in ONNX Runtime ({type(error).__name__}: {lines[0]}): make or export the model "
            "again"
        ) from error


class OnnxModule(nn.Module):
    """A file of ONNX as a module without parameters and without gradients.

    Attributes:
        file: that was loaded.
    """

    def __init__(self, file: Path) -> None:
        """Load it.

        Raises:
            ModelError: as `open_session`.
        """
        super().__init__()
        self.file, self._session = file, open_session(file)
        self._names = [one.name for one in self._session.get_inputs()]

    def forward(self, inputs: Tree, /) -> Tensor:
        """Map features [n, ...], or several arrays in their order, to raw outputs [n, ...]."""
        [outputs] = self._session.run(None, self.arrays(inputs))
        return torch.from_numpy(outputs)

    def arrays(self, inputs: Tree) -> dict[str, np.ndarray]:
        """Return the inputs by the names that they have in the file."""
        return dict(zip(self._names, (one.numpy() for one in tensors(inputs)), strict=True))


def check_is_torch(model: nn.Module, job: str) -> None:
    """Refuse a model that ONNX Runtime computes.

    Args:
        job: what cannot be done with it, e.g. `is not explained`.

    Raises:
        ModelError: it is one.
    """
    if isinstance(model, OnnxModule):
        raise ModelError(
            f"a model of 8-bit integers {job}: ONNX Runtime computes it, without weights of torch and without "
            "gradients; name the model that it was made of"
        )
