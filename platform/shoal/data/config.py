"""The `data` section of the config."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoal.config.schema import Section
from shoal.data.read_options import ReadOptions
from shoal.data.sampler import SplitRule

STANDARD = "standard"  # of `collate`
ColumnKind = Literal["number", "category", "text", "date", "drop"]


def _as_text(value: object) -> object:
    """Return a number, as YAML reads the name 1 or the missing value -200, as text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]


class DataConfig(Section):
    source: str = Field(
        "sklearn:digits",
        description="sklearn:NAME, csv:, parquet:, json: or npz:PATH, images:FOLDER, boxes:PATH, text:PATH, "
        "audio:PATH, huggingface:NAME, synthetic:classification?rows=..., or package.module:function",
    )
    label: Text | tuple[Text, ...] | None = Field(
        "target",
        description="the column to predict, or [a, b, ...] of several; causal_lm and masked_lm have none, and with "
        "null task=custom has its inputs as targets",
    )
    weight: Text | None = Field(
        None,
        description="a column of weights of the samples' losses, which is no feature; scaled to a mean of 1 over the "
        "training rows",
    )
    features: tuple[Text, ...] | None = Field(
        None, description="the columns to predict from; null: all others"
    )
    drop: tuple[Text, ...] = Field((), description="columns that are left out, as data.columns={NAME: drop}")
    shape: tuple[int, ...] | None = Field(
        None,
        description="shape of one sample, e.g. [1, 8, 8] for images in flat rows; encoded images are resized to it",
    )
    flip: bool = Field(
        False, description="of images: mirror those of training left to right at random, and their boxes"
    )
    pad: int = Field(
        0,
        ge=0,
        description="of images: shift those of training at random, and their boxes, by at most this many pixels",
    )
    sample_rate: int | None = Field(
        None,
        ge=4000,
        le=48000,
        description="task=speech_recognition: samples per second to which recordings are resampled; null: the lowest "
        "of the recordings, at most 16000",
    )
    compose: Text | None = Field(
        None,
        pattern=r"^[1-9]\d?(-[1-9]\d?)?$",
        description="task=speech_recognition: string recordings of one split and speaker together, e.g. 3-7 for "
        "strings of three to seven; ten for each training recording, and one for each that is held out",
    )
    mask_bands: int = Field(
        0,
        ge=0,
        description="task=speech_recognition: blank two stripes of at most this many of the 40 bands in training",
    )
    mask_frames: int = Field(
        0,
        ge=0,
        description="task=speech_recognition: blank two stretches of at most this many frames of 10 ms in training",
    )
    on_bad: Literal["stop", "skip"] = Field(
        "stop",
        description="task=speech_recognition: recordings that cannot be used (empty, unreadable, without a text, too "
        "short for it, or much longer than the others) stop the run, or are left out and counted",
    )
    columns: dict[str, ColumnKind] = Field(
        default_factory=dict,
        description="what columns are, e.g. {zip: category, when: date, id: drop}; the kind of the others is learnt "
        "from the training rows",
    )
    missing: tuple[Text, ...] | None = Field(
        None,
        description="texts and numbers that mean a missing value; null: empty cells, NA, N/A, NaN, null, None, ?, -",
    )
    delimiter: str | None = Field(None, description="between the cells of a CSV file; null: detected")
    decimal: Literal[".", ","] | None = Field(
        None, description="the decimal mark of numbers in text; null: detected"
    )
    encoding: str | None = Field(
        None, description="of text files, e.g. latin-1, utf-16 or gb18030; null: detected"
    )
    header: bool | None = Field(
        None, description="whether the first row of a CSV file names the columns; null: detected"
    )
    arrays: dict[str, str] = Field(
        default_factory=dict,
        description="npz: columns by name of the array, by split if it is dotted, e.g. {train.features: x_train, "
        "train.target: y_train, test.features: x_test, test.target: y_test}",
    )
    text: str | None = Field(None, description="the column that holds text")
    tokenizer: str = Field(
        "byte",
        description="byte, or bpe:SIZE, a byte-pair encoding with a vocabulary of SIZE tokens; with "
        "task=speech_recognition char or word, too",
    )
    context: int = Field(128, ge=1, description="tokens per sequence")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of rows held out for evaluation during training"
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of rows held out until training has finished"
    )
    split_seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="seed of the splits; null: the value of seed. A sweep sets it: all trials hold out the same rows",
    )
    collate: str = Field(
        STANDARD,
        description="package.module:function makes the inputs and targets of a batch from a list of (inputs, target), "
        "each array as long as it was; standard: arrays are stacked, and padded to the longest of all rows",
    )
    global_batch_size: int = Field(64, ge=1, description="samples per optimizer step, over all workers")
    group_by_length: bool = Field(
        False,
        description="batches of rows of similar length, with less padding: of recordings, and of arrays of any length",
    )
    resident: bool | Literal["auto"] = Field(
        "auto",
        description="keep each worker's shard in memory; false: stream it through Ray Data; auto: keep it if it fits",
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns to predict."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def composed(self) -> tuple[int, int] | None:
        """The fewest and the most recordings of a string; None: each recording is a row."""
        if self.compose is None:
            return None
        fewest, _, most = self.compose.partition("-")
        return int(fewest), int(most or fewest)

    @property
    def kinds(self) -> dict[str, ColumnKind]:
        """What columns are, as far as the config says."""
        return {**self.columns, **dict.fromkeys(self.drop, "drop")}

    @property
    def read_options(self) -> ReadOptions:
        """How the files of the source are read."""
        return ReadOptions(
            self.delimiter,
            self.decimal,
            self.encoding,
            self.header,
            self.missing,
            tuple(self.kinds.items()),
            tuple(self.arrays.items()),
        )

    def split_rule(self, seed: int) -> SplitRule:
        """Return how rows are split; `seed` is the run's, used where there is no `split_seed`."""
        split_seed = seed if self.split_seed is None else self.split_seed
        return SplitRule(split_seed, self.validation_fraction, self.test_fraction)

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "DataConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction} and data.test_fraction="
                f"{self.test_fraction} leave nothing to train on: their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _composes_something(self) -> "DataConfig":
        if self.composed and self.composed[0] > self.composed[1]:
            raise ValueError(f"data.compose={self.compose} has more at least than at most: write e.g. 3-7")
        return self
