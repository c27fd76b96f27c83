"""The `data` section of the config."""

from typing import Literal

from pydantic import Field, model_validator

from shoal.config.schema import Section


class DataConfig(Section):
    source: str = Field(
        "sklearn:digits",
        description="sklearn:NAME, csv:, parquet:, json: or npz:PATH, huggingface:NAME, "
        "synthetic:classification?rows=..., text:PATH, or package.module:function",
    )
    label: str = Field("target", description="the column to predict; tasks on text alone have none")
    shape: tuple[int, ...] | None = Field(
        None, description="of one sample, e.g. [1, 8, 8] for images in flat rows, or to resize image files to"
    )
    flip: bool = Field(False, description="task=image_classification: mirror training images at random")
    pad: int = Field(
        0,
        ge=0,
        description="task=image_classification: move training images at random, so many pixels at most",
    )
    text: str | None = Field(None, description="the column that holds text")
    tokenizer: str = Field("byte", description="byte, or bpe:SIZE")
    context: int = Field(128, ge=1, description="tokens per sequence")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of rows held out while training")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="share of rows held out to the end")
    split_seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="of the splits; null: seed. A sweep sets it: all trials hold out the same rows",
    )
    global_batch_size: int = Field(64, ge=1, description="samples per optimiser step, over all workers")
    resident: bool | Literal["auto"] = Field(
        "auto", description="keep each worker's shard in memory; false streams it through Ray Data"
    )

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "DataConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction} and data.test_fraction="
                f"{self.test_fraction} leave nothing to train on: their sum must be below 1"
            )
        return self
