"""What determines how rows are preprocessed, besides the rows."""

from dataclasses import dataclass

from shoal.data.config import DataConfig
from shoal.data.preprocessing import ColumnOptions
from shoal.data.sampler import SplitRule


@dataclass(frozen=True)
class PreprocessingSpec:
    """What determines how rows are preprocessed, besides the rows.

    Attributes:
        data: the config section.
        seed: of the order, and of the splits unless `data.split_seed` is set.
        is_classification: the label is one of several classes, else a number.
        is_ready: the features are what the model takes; they are not standardized.
        tokenizer: of a source of tokens, as JSON.
        has_label: there is a column to predict.
        image_bits: that values of 16-bit images use.
    """

    data: DataConfig
    seed: int
    is_classification: bool
    is_ready: bool
    tokenizer: str | None = None
    has_label: bool = True
    image_bits: int | None = None

    @property
    def split_rule(self) -> SplitRule:
        return self.data.split_rule(self.seed)

    @property
    def column_options(self) -> ColumnOptions:
        return ColumnOptions(dict(self.data.columns), self.data.missing, self.data.decimal)
