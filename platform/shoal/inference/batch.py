"""Batch prediction of a fragment of rows, in one process, without Ray.

Rows are read block by block and predicted slice by slice; each slice is one part file. What a file holds depends on the
fragment alone, not on the process that writes it, or on how often it was killed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shoal.data.images import DEEPEST, encoded_column, holds_images, read_fitted, read_stretched
from shoal.data.packing import as_ragged
from shoal.data.sources.base import Block
from shoal.data.sources.encoded_audio import Encoded
from shoal.data.sources.images import ImageFile, encoded_files
from shoal.data.sources.text import read_chunks
from shoal.data.sources.text_column import texts_of
from shoal.errors import DataError
from shoal.inference.batch_input import PATH, rows_of_slice
from shoal.inference.batch_output import Done, Output, Reject, as_table
from shoal.inference.detection import resized
from shoal.inference.predictor import Predictor
from shoal.inference.recordings import encoded_wave, wave_of
from shoal.inference.rows import TEXT

HOPELESS = 20  # rows that fail one by one, and none before them succeeded: not the rows are bad

Read = Callable[[int], Iterator[Block]]
Reasons = dict[int, str]  # why rows are rejected, by their number in a block


@dataclass(frozen=True)
class Settings:
    """How rows are predicted.

    Attributes:
        text: the column that a model of text takes.
        params: of a language model.
    """

    text: str
    params: Mapping[str, Any]


class RowsToPredict(NamedTuple):
    """Rows as they are predicted.

    Attributes:
        inputs: what the model takes.
        passing: the columns that pass through.
        reasons: why rows are bad.
        sizes: [n, 2] heights and widths of the images in which boxes are found, before they were resized; None: there
            are no such images.
    """

    inputs: Block
    passing: Block
    reasons: Reasons
    sizes: np.ndarray | None = None


class BatchPredictor:
    """A model, and how rows of a source become what it takes."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self._predictor, self._settings = predictor, settings
        self._rows = rows_of_slice(predictor)
        self._has_succeeded = False

    def check(self, block: Block) -> None:
        """Refuse rows that lack a column of the model, or have one that predictions are called.

        Raises:
            DataError: as said.
        """
        transform = self._predictor.transform
        if PATH in block and self._takes_files(block):
            pass
        elif transform.tokenizer:
            if self._settings.text not in block:
                raise DataError(
                    f"column '{self._settings.text}' of texts is missing: the columns are {', '.join(block)}; set "
                    "predict.text=COLUMN"
                )
        else:
            transform.check_columns(transform.columns, block)
        taken = next((name for name in ("prediction", "probabilities") if name in block), None)
        if taken is not None:
            raise DataError(
                f"the input has a column '{taken}' already, as predictions are called: rename it, or leave it out with "
                f"data.columns={{{taken}: drop}}"
            )

    def predict_fragment(self, read: Read, fragment: int, output: Output) -> Done:
        """Read a fragment, predict the slices that are not there yet, and write them."""
        found = output.fragment(fragment)
        if found is not None:
            return found
        there, done, number = output.names(), Done(), 0
        for block in read(fragment):
            for some in self._slices(block):
                rows = len(next(iter(some.values())))
                if output.part(fragment, number) in there:
                    done += Done(rows, output.count_rejects(fragment, number), 1)
                else:
                    table, rejects = self.predict(some)
                    output.write_slice(fragment, number, table, rejects, done.rows)
                    done += Done(rows, len(rejects), int(table is not None))
                number += 1
        output.write_fragment(fragment, done)
        return done

    def predict(self, block: Block) -> tuple[pa.Table | None, list[Reject]]:
        """Return the rows with their predictions, and those that could not be predicted.

        Raises:
            DataError: all rows fail, so that the model or the columns are at fault.
        """
        self.check(block)
        rows = len(next(iter(block.values())))
        inputs, passing, reasons, sizes = self._prepared(block)
        kept = np.array([row for row in range(rows) if row not in reasons], dtype=np.int64)
        parts = list(self._predicted(inputs, kept, reasons)) if len(kept) else []
        rejects = [
            Reject(row, reason, {name: column[row] for name, column in passing.items()})
            for row, reason in sorted(reasons.items())
        ]
        if not parts:
            return None, rejects
        good = np.concatenate([numbers for numbers, _ in parts])
        answers = {name: np.concatenate([part[name] for _, part in parts]) for name in parts[0][1]}
        if sizes is not None:
            answers["boxes"] = resized(
                answers["boxes"], self._predictor.transform.input_shape[1:], sizes[good]
            )
        table = as_table({name: column[good] for name, column in passing.items()} | answers)
        classes = json.dumps([str(name) for name in self._predictor.transform.label.classes])
        return table.replace_schema_metadata({"shoal.classes": classes}), rejects

    def _slices(self, block: Block) -> Iterator[Block]:
        for first in range(0, len(next(iter(block.values()), ())), self._rows):
            yield {name: column[first : first + self._rows] for name, column in block.items()}

    def _predicted(
        self, inputs: Block, rows: np.ndarray, reasons: Reasons
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield numbers of rows with their answers; rows that raise are found by halving, and get a reason.

        Raises:
            DataError: `HOPELESS` rows raise and none has been predicted.
        """
        try:
            some = {name: column[rows] for name, column in inputs.items()}
            answers = self._predictor.arrays(some, self._settings.params)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            if len(rows) > 1:
                half = len(rows) // 2
                yield from self._predicted(inputs, rows[:half], reasons)
                yield from self._predicted(inputs, rows[half:], reasons)
                return
            reasons[int(rows[0])] = " ".join(str(error).split()) or type(error).__name__
            if not self._has_succeeded and len(reasons) >= HOPELESS:
                raise DataError(f"no row can be predicted: {reasons[int(rows[0])]}") from error
            return
        finite = np.ones(len(rows), dtype=bool)
        for values in answers.values():
            if values.dtype.kind == "f":
                finite &= np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
        for row in rows[~finite]:
            reasons[int(row)] = "the model's answer is not finite: a number is too large"
        self._has_succeeded = self._has_succeeded or bool(finite.any())
        if finite.any():
            yield rows[finite], {name: values[finite] for name, values in answers.items()}

    def _takes_files(self, block: Block) -> bool:
        transform = self._predictor.transform
        if transform.tokenizer:
            return self._settings.text not in block
        takes_files = transform.image_bits is not None or transform.audio is not None
        return takes_files and transform.columns[0].name not in block

    def _prepared(self, block: Block) -> RowsToPredict:
        transform, reasons = self._predictor.transform, Reasons()
        if transform.tokenizer:
            return RowsToPredict({TEXT: self._texts(block, reasons)}, block, reasons)
        column = transform.columns[0].name
        if transform.audio is not None:
            passing = {name: values for name, values in block.items() if name != column}
            return RowsToPredict({column: self._recordings(block, column, reasons)}, passing, reasons)
        if transform.image_bits is not None and (self._takes_files(block) or holds_images(block[column])):
            passing = {name: values for name, values in block.items() if name != column}
            pixels, sizes = self._pixels(block, column, reasons)
            return RowsToPredict({column: pixels}, passing, reasons, sizes if transform.categories else None)
        for one in transform.columns:
            if one.kind == "number":
                values = block[one.name]
                for row in np.flatnonzero(one.misfits(values)):
                    reasons[int(row)] = f"column '{one.name}' holds '{values[row]}', which is no number"
        taken = {one.name: block[one.name] for one in transform.columns}
        return RowsToPredict(taken, block, reasons)

    def _pixels(self, block: Block, column: str, reasons: Reasons) -> tuple[np.ndarray, np.ndarray]:
        """Decode images one by one: a broken one is rejected. Return pixels, and the heights and widths there were."""
        transform = self._predictor.transform
        channels, height, width = transform.input_shape
        if column in block:
            encoded = encoded_column(block[column])
        else:
            encoded = encoded_files([ImageFile(path, "") for path in block[PATH]])
        pixels = np.zeros((len(encoded), channels, height, width), dtype=np.uint8)
        sizes = np.zeros((len(encoded), 2))
        # As for training: an image that boxes are found in keeps its edges, another one its proportions.
        read = read_stretched if transform.categories else read_fitted
        for row, image in enumerate(encoded):
            found, broken = read([image], (height, width), channels, transform.image_bits or DEEPEST)
            if broken:
                reasons[row] = f"image {broken[0].removeprefix(image.name).strip()[1:-1]}"
            else:
                sizes[row], pixels[row] = found[0]
        return pixels, sizes

    def _recordings(self, block: Block, column: str, reasons: Reasons) -> np.ndarray:
        """Decode recordings one by one: a broken one is rejected."""
        audio = self._predictor.transform.audio
        assert audio is not None
        waves = []
        for row, cell in enumerate(block[PATH] if column not in block else block[column]):
            try:
                is_path = column not in block
                waves.append(
                    encoded_wave(Encoded(str(cell), str(cell)), audio)
                    if is_path
                    else wave_of("it", cell, audio)
                )
            except DataError as error:
                reasons[row] = str(error)
                waves.append(np.zeros(1, dtype=np.int16))
        return as_ragged(waves)

    def _texts(self, block: Block, reasons: Reasons) -> np.ndarray:
        if self._takes_files(block):
            return np.array(
                [self._text(row, path, reasons) for row, path in enumerate(block[PATH])], dtype=object
            )
        return np.array(texts_of("INPUT", self._settings.text, block), dtype=object)

    def _text(self, row: int, path: str, reasons: Reasons) -> str:
        try:
            return "".join(read_chunks("INPUT", path, self._predictor.preprocessing.data.encoding))
        except (DataError, OSError) as error:
            reasons[row] = " ".join(str(error).split())
            return ""
