"""8-bit integers by ONNX Runtime: a file of ONNX whose linear layers or convolutions compute with them.

Linear layers are quantized dynamically: the scale of their inputs is that of the batch. Convolutions are quantized
statically (QDQ), with scales from training rows. Weights have 7 bits of the 8: sums of products then fit 16 bits on
CPUs without VNNI too, so that the file answers the same on both.
"""

import importlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import nn

from shoal.errors import ModelError
from shoal.export.tracing import quiet, reason
from shoal.inference.onnx_module import FILE
from shoal.inference.predictor import Predictor
from shoal.models.layer_sizes import CONVOLUTIONS
from shoal.tasks.custom import Custom
from shoal.tasks.speech_recognition import SpeechRecognition

CALIBRATION_ROWS = 256

Arrays = Mapping[str, np.ndarray]


class _Rows:
    """Training rows for calibration, as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


def has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(layer, CONVOLUTIONS) for layer in model.modules())


def check_model(predictor: Predictor, name: str) -> None:
    """Refuse a model that has nothing to quantize, or no form in ONNX.

    Raises:
        ModelError: with the reason.
    """
    if not any(isinstance(layer, (nn.Linear, *CONVOLUTIONS)) for layer in predictor.model.modules()):
        raise ModelError(
            f"model.name='{name}' has neither linear layers nor convolutions, which compress.quantize=int8 is of"
        )
    if predictor.task.name == Custom.name:
        raise ModelError(
            "compress.quantize=int8 with task=custom, whose loss takes what the model returns, and ONNX Runtime "
            "returns arrays alone: set compress.quantize=int8-weight-only"
        )
    if isinstance(predictor.task, SpeechRecognition):
        raise ModelError(
            f"compress.quantize=int8 with task={predictor.task.name}, whose recordings differ in length, which ONNX "
            "Runtime is not told: set compress.quantize=int8-weight-only"
        )


def write(exported: Path, folder: Path, is_convolutional: bool, calibration: Iterable[Arrays]) -> None:
    """Quantize a file of ONNX into a folder.

    Args:
        exported: the float32 model, `model.onnx`.
        calibration: batches of training rows, by input; read where there are convolutions.

    Raises:
        ModelError: ONNX Runtime cannot quantize it.
    """
    folder.mkdir(parents=True)
    try:
        with quiet(), tempfile.TemporaryDirectory() as scratch:
            _quantize(exported, Path(scratch), folder, is_convolutional, calibration)
    except Exception as error:  # of ONNX Runtime, in many classes
        raise ModelError(f"ONNX Runtime cannot quantize the model ({reason(error)})") from error


def _quantize(
    source: Path, scratch: Path, folder: Path, is_convolutional: bool, calibration: Iterable[Arrays]
) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    prepared, made = scratch / FILE, folder / FILE
    # Symbolic shape inference knows no texts; fused operators of the optimizer would tie the file to one version.
    quantization.quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
    kinds = quantization.QuantType
    if is_convolutional:
        quantization.quantize_static(
            prepared,
            made,
            _Rows(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=kinds.QUInt8,
            weight_type=kinds.QInt8,
        )
    else:
        quantization.quantize_dynamic(
            prepared,
            made,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=kinds.QInt8,
        )
