"""What a saved model says of itself, in `description.json`: all that loading needs besides the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import nn

from shoal.data.config import DataConfig
from shoal.data.preprocessing import Transform
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.errors import ModelError
from shoal.inference import onnx_module
from shoal.inference.onnx_module import OnnxModule
from shoal.models.config import ModelConfig
from shoal.models.cpu_kernels import use_onednn
from shoal.models.layer_sizes import resize
from shoal.models.registry import build_model_for
from shoal.models.weights import load_weights
from shoal.tasks.objective import ObjectiveConfig
from shoal.tasks.open_data import make_preprocessing_spec
from shoal.tasks.registry import TaskName

WEIGHTS, DESCRIPTION = "model.safetensors", "description.json"


class Description(BaseModel):
    """What a saved model's `description.json` holds.

    Attributes:
        data: what the model was trained on.
        seed: of the splits.
        objective: what was minimized, and what is measured.
        shapes: of the weights, by name, that are smaller than the model's builder makes them: it was pruned.
        runtime: what computes the model: torch, from `model.safetensors`, or ONNX Runtime, from `model.onnx`.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: ModelConfig
    transform: Transform
    task: TaskName
    data: DataConfig
    seed: int
    objective: ObjectiveConfig = ObjectiveConfig()
    shapes: dict[str, tuple[int, ...]] = {}
    runtime: Literal["torch", "onnxruntime"] = "torch"

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How the rows are preprocessed that the model was trained on."""
        transform = self.transform
        is_ready = transform.columns[0].kind == "ready"
        return make_preprocessing_spec(
            self.data,
            self.task,
            self.seed,
            is_ready,
            transform.tokenizer,
            transform.image_bits,
            transform.audio,
            transform.categories,
        )

    def build(self, builder: Callable[..., Any] | None = None) -> nn.Module:
        """Build the model, whose weights are to be loaded.

        Args:
            builder: None: the one that `model.name` names.

        Raises:
            UserError: it cannot be built.
        """
        # From its own seed: a builder may draw more than weights.
        model = build_model_for(self.model, self.transform, self.task, self.seed, builder=builder)
        resize(model, self.shapes)
        return model

    def to_json(self) -> str:
        return json.dumps(self.model_dump())

    @classmethod
    def load(cls, path: Path) -> "Description":
        """Read it.

        Raises:
            ModelError: the file is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"'{path}' is damaged ({reason}): restore the file from a copy, or train the model again with "
                "if_exists=new"
            ) from None


def load_model(folder: Path, find: Callable[[str, str], Callable[..., Any]]) -> tuple[Description, nn.Module]:
    """Return the description in a folder, and the model with its weights, by whatever computes it.

    Args:
        find: returns the builder that `model.name` names.

    Raises:
        ModelError: a file is missing or damaged, or ONNX Runtime is not installed.
    """
    try:
        description = Description.load(folder / DESCRIPTION)
        if description.runtime == "onnxruntime":
            return description, OnnxModule(folder / onnx_module.FILE)
        weights = load_weights(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"'{folder}' holds no Shoal model ({error}): name a folder that training wrote"
        ) from None
    model = description.build(find(description.model.name, "model.name"))
    model.load_state_dict(weights)
    use_onednn(model)
    return description, model


def describe_model(
    model: ModelConfig,
    transform: Transform,
    task: TaskName,
    data: DataConfig,
    seed: int,
    objective: ObjectiveConfig | None = None,
) -> str:
    """Return as JSON what `Predictor.load` needs besides the weights, and the data that the model was trained on."""
    trained = model.model_copy(update={"init": None})  # trained weights replace the initial ones
    asked = ObjectiveConfig(
        **(objective or ObjectiveConfig()).model_dump(include=set(ObjectiveConfig.model_fields))
    )
    return Description(
        model=trained, transform=transform, task=task, data=data, seed=seed, objective=asked
    ).to_json()
