"""What an exported model takes and returns: `interface.json`, for whoever calls it without Shoal."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Format = Literal["onnx", "torch_export", "safetensors"]

FILE = "interface.json"
BATCH, TOKENS = "batch", "tokens"  # dimensions of any size
TEXT = "string"  # a type that NumPy names otherwise


class Input(BaseModel):
    """One array that is passed.

    Attributes:
        name: of the column, and of the input of the file.
        dtype: NumPy's name, or `string`.
        shape: numbers, and names of dimensions of any size.
        meaning: what is in it, and how a missing value is written.
        categories: of a column of them, each of whose places stands for it, and their number for any other value.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    categories: tuple[str, ...] | None = None


class Output(BaseModel):
    """One array that is returned.

    Attributes:
        scale: differences are relative to the larger of it and the value: 1 for probabilities; else in the unit of the
            values, one for each of the last dimension or one for all.
        classes: to whose places the whole numbers are; empty: the values are what they stand for.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    scale: float | tuple[float, ...] = 1.0
    classes: tuple[str, ...] = ()


class Interface(BaseModel):
    """One exported model.

    Attributes:
        file: that a library loads.
        classes: of the label, in the order of `probabilities`.
        model: where it was loaded from, and 12 digits of its SHA-256.
        opset: of ONNX, by domain.
        versions: of the packages that wrote it.
    """

    model_config = ConfigDict(protected_namespaces=())

    format: Format
    file: str
    task: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    classes: tuple[bool | int | str, ...] = ()
    model: str
    model_digest: str = ""
    opset: dict[str, int] = {}
    versions: dict[str, str]
