"""What determines how rows are preprocessed, besides the rows."""

from dataclasses import dataclass

from shoal.data.audio import AudioFormat
from shoal.data.config import DataConfig
from shoal.data.preprocessing import ColumnOptions
from shoal.data.sampler import SplitRule
from shoal.data.template import Template, names


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
        keeps_targets: the label is compared with as it is, an array or a tree of several; it is no class or number.
        are_binary: each label is 0 or 1.
        audio: how recordings become spectrograms.
        parts_of_items: which columns each named part of an item is made of; None: the columns are in no tree.
        categories: names of the classes of boxes, by number, where the label is boxes.
    """

    data: DataConfig
    seed: int
    is_classification: bool
    is_ready: bool
    tokenizer: str | None = None
    has_label: bool = True
    image_bits: int | None = None
    keeps_targets: bool = False
    are_binary: bool = False
    parts_of_items: dict[str, Template] | None = None
    audio: AudioFormat | None = None
    categories: tuple[str, ...] = ()

    @property
    def split_rule(self) -> SplitRule:
        return self.data.split_rule(self.seed)

    @property
    def target_tree(self) -> Template:
        """Which columns the label is made of, and how."""
        label = self.data.label
        if isinstance(label, str):
            return (self.parts_of_items or {}).get(label, label)
        return {name: name for name in self.data.labels}

    @property
    def features(self) -> dict[str, Template] | None:
        """The parts of an item without the one that holds the label; None: columns are in no tree."""
        if self.parts_of_items is None or not self.has_label:
            return self.parts_of_items
        return {
            name: part
            for name, part in self.parts_of_items.items()
            if name not in self.data.labels and not set(self.data.labels) & set(names(part))
        }

    def is_feature(self, column: str) -> bool:
        if column == self.data.weight or column not in (self.data.features or (column,)):
            return False
        if self.features is None:
            return not (self.has_label and column in self.data.labels)
        return any(column in names(part) for part in self.features.values())

    @property
    def column_options(self) -> ColumnOptions:
        return ColumnOptions(dict(self.data.kinds), self.data.missing, self.data.decimal)
