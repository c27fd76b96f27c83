"""What a saved model says of itself, in `description.json`: all that loading needs besides the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from shoal.data.config import DataConfig
from shoal.data.preprocessing import Transform
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.errors import ModelError
from shoal.models.config import ModelConfig
from shoal.models.layer_sizes import resize
from shoal.models.registry import build_model_for
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
    """

    model_config = ConfigDict(protected_namespaces=())

    model: ModelConfig
    transform: Transform
    task: TaskName
    data: DataConfig
    seed: int
    objective: ObjectiveConfig = ObjectiveConfig()
    shapes: dict[str, tuple[int, ...]] = {}

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
