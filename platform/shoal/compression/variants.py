"""The variants of a model: each made, saved, and loaded from its files beside the model that it was made of."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import nn

from shoal.compression import distillation, files, int8, magnitude, measure, structured
from shoal.compression.agreement import attribution_agreement
from shoal.compression.config import StudentSize
from shoal.compression.fine_tuning import FineTuning, fine_tune
from shoal.compression.loaded import LoadedModel, flips
from shoal.data.sampler import TRAIN
from shoal.data.sources.base import Block, Source
from shoal.data.tree import only_tensor
from shoal.export.bare import write_bare
from shoal.inference import onnx_module
from shoal.inference.description import DESCRIPTION, WEIGHTS, Description
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.inference.golden import COUNT
from shoal.inference.onnx_module import OnnxModule
from shoal.inference.predictor import Predictor, weights_folder
from shoal.models.cpu_kernels import use_torch_linear
from shoal.models.size import measure_size
from shoal.models.weights import Narrow, as_bf16, as_int8
from shoal.storage.records import MeasuredModel
from shoal.storage.run_folder import MODEL, RunFolder

# How weights are stored in fewer bits, and the words for it.
NARROW: dict[str, tuple[Narrow, str]] = {
    "int8-weight-only": (as_int8, "8-bit integers"),
    "bf16": (as_bf16, "bfloat16"),
}


@dataclass(frozen=True)
class HeldOut:
    """Rows that a model was not trained on.

    Attributes:
        source: which holds the training rows too.
        blocks: reads them, each time from the start.
    """

    source: Source
    blocks: Callable[[], Iterator[Block]]
    split: str

    @cached_property
    def some(self) -> Block:
        """The first rows."""
        return next(first_rows(self.blocks(), COUNT))

    @property
    def few(self) -> Block:
        """As many as show what a batch is."""
        return measure.rows_of(self.some, 2)


@dataclass(frozen=True)
class SavedModel:
    """A model of torch with the folder of its weights and description.

    Attributes:
        unpruned: what it was before the earlier steps of a gradual pruning; None: it had none.
    """

    predictor: Predictor
    folder: Path
    unpruned: nn.Module | None = None


class Comparison(NamedTuple):
    """A variant beside the original; `flips` and `agreement` are those of `CompressedVariant`."""

    original: MeasuredModel
    variant: MeasuredModel
    flips: float | None
    agreement: float | None


@dataclass(frozen=True)
class Variant:
    """A compressed model, loaded.

    Attributes:
        name: e.g. `prune-0.5`.
        method: in words.
        original, variant: loaded, for the same runtime.
        original_weights, weights: their files.
        original_predictor, predictor: of torch, whose parameters they have.
        folder: its files, to be kept.
        file: of the weights, below the run folder.
        saved: as a model of Shoal.
        is_for_speed: whether it has failed when it is slower.
        steps: of fine-tuning.
    """

    name: str
    method: str
    original: LoadedModel
    variant: LoadedModel
    original_weights: Path
    weights: Path
    original_predictor: Predictor
    predictor: Predictor
    folder: Path
    file: str
    saved: SavedModel
    is_for_speed: bool
    steps: int = 0

    def measure(self, rows: HeldOut) -> Comparison:
        """Measure the original and the variant in turns."""
        loaded, predictors = (self.original, self.variant), (self.original_predictor, self.predictor)
        timed = {
            str(count): measure.latencies([one.call(measure.rows_of(rows.some, count)) for one in loaded])
            for count in measure.BATCHES
        }
        found = []
        for one, predictor, weights, latency in zip(
            loaded,
            predictors,
            (self.original_weights, self.weights),
            zip(*timed.values(), strict=True),
            strict=True,
        ):
            parameters, zeros = measure.parameters_of(predictor.model)
            one_row, most_rows = (
                predictor.inputs(measure.rows_of(rows.some, count)) for count in (1, measure.BATCHES[-1])
            )
            found.append(
                MeasuredModel(
                    runtime=one.runtime,
                    metrics=one.metrics(rows.blocks()),
                    bytes=measure.bytes_of(weights),
                    parameters=parameters,
                    zeros=zeros,
                    latency=dict(zip(timed, latency, strict=True)),
                    flops=measure_size(predictor.model, one_row).flops_per_sample,
                    memory_bytes=measure.memory_of(predictor.model, most_rows)
                    if one.runtime == "torch"
                    else None,
                )
            )
        original, variant = found
        return Comparison(
            original,
            variant,
            flips(*loaded, rows.blocks()) if self.original.has_classes else None,
            attribution_agreement(*predictors, rows.some) if self.variant.runtime == "torch" else None,
        )


def pruned_name(ratio: float, is_structured: bool) -> str:
    """Return what a pruned variant is called."""
    return f"{'prune' if is_structured else 'magnitude'}-{ratio:g}"


def student_name(size: StudentSize) -> str:
    """Return what a student is called, e.g. `distill-width-32`."""
    sizes = size.model_dump(exclude_none=True).items()
    return "-".join(["distill", *(f"{key}-{value}" for key, value in sizes)])


def joined(after: str, name: str) -> str:
    """Return the name of a variant of the variant `after`; of the original, if that is empty."""
    return f"{after}-{name}" if after else name


class Maker:
    """Makes variants of one model.

    Attributes:
        original: the model.
    """

    def __init__(self, original: SavedModel, rows: HeldOut, folder: Path) -> None:
        """Set up, without making anything.

        Args:
            folder: for files.
        """
        self.original, self._rows, self._folder = original, rows, folder

    def student(self, of: SavedModel, after: str, size: StudentSize, tuning: FineTuning) -> Variant:
        """Train a smaller model by the outputs of a model; the arguments are those of `pruned`.

        Raises:
            DivergedError: training did.
        """
        description = distillation.student_of(Description.load(of.folder / DESCRIPTION), size)
        model, task = description.build(), distillation.taught_task(of.predictor)
        steps = fine_tune(model, of.predictor, self._rows.source, tuning, task)
        name = joined(after, student_name(size))
        saved = files.write_model(self._folder / name, description, model, self._rows.some)
        method = f"training of a student {size} by its outputs, in {steps} steps"
        return self._of_torch(name, _in_words(after, method), saved, is_for_speed=True, steps=steps)

    def pruned(
        self, of: SavedModel, after: str, ratio: float, is_structured: bool, tuning: FineTuning
    ) -> Variant:
        """Prune a model and train it on.

        Args:
            of: the model: the original, or a variant.
            after: the name of the variant that it is.

        Raises:
            ModelError: no layer is wide enough.
            DivergedError: fine-tuning did.
        """
        predictor = of.predictor
        model = copy.deepcopy(predictor.model)
        use_torch_linear(model)
        if is_structured:
            structured.prune(model, ratio, only_tensor(predictor.inputs(self._rows.few)), of.unpruned)
        else:
            magnitude.mask(model, ratio)
        steps = fine_tune(model, predictor, self._rows.source, tuning)
        if not is_structured:
            magnitude.unmask(model)
        name = joined(after, pruned_name(ratio, is_structured))
        saved = files.write_pruned(self._folder / name, of.folder, predictor.model, model, self._rows.some)
        kind = "channels" if is_structured else "weights, which became zeros,"
        gradual = "gradual " if of.unpruned else ""
        method = f"{gradual}pruning of {ratio:.0%} of the {kind} and {steps} steps of fine-tuning"
        return self._of_torch(name, _in_words(after, method), saved, is_structured, steps)

    def reloaded(self, folder: RunFolder, name: str) -> SavedModel:
        """Return the model of a variant that an earlier job left finished in its run folder."""
        weights = weights_folder(folder.get_folder(MODEL, self._folder / name / MODEL))
        return SavedModel(Predictor.load(weights, trust_code=True), weights)

    def stored_narrow(self, of: SavedModel, kind: str, after: str = "") -> Variant:
        """Store the weights of a model in fewer bits.

        Args:
            kind: of `NARROW`.
            after: the name of the variant that the model is.
        """
        narrow, words = NARROW[kind]
        name = joined(after, kind)
        folder = files.write_narrow(self._folder / name, of.folder, narrow, self._rows.some)
        return self._of_torch(
            name, _in_words(after, f"weights stored as {words}"), folder, is_for_speed=False
        )

    def as_int8(self, of: SavedModel, after: str = "") -> Variant:
        """Make a model that ONNX Runtime computes with 8-bit integers; it is compared with float32 in ONNX Runtime.

        Raises:
            ModelError: it has no form in ONNX, or cannot be quantized.
        """
        name, folder = joined(after, "int8"), self._folder
        is_original = of is self.original
        bare = self._bare_original if is_original else self._write_bare(of, f"{name}-float32")
        is_convolutional = int8.has_convolutions(of.predictor.model)
        int8.write(bare, folder / f"{name}-onnx", is_convolutional, self._calibration(bare, of.predictor))
        made = folder / f"{name}-onnx" / onnx_module.FILE
        saved = files.write_onnx(folder / name, of.folder, made, self._rows.some)
        weights = weights_folder(saved)
        with measure.one_thread():
            loaded = Predictor.load(weights, trust_code=True)
        scales = "static" if is_convolutional else "dynamic"
        return Variant(
            name,
            _in_words(after, f"8-bit integers ({scales} quantization)"),
            LoadedModel(self._original_in_onnx),
            LoadedModel(loaded),
            self._bare_original,
            weights / onnx_module.FILE,
            self.original.predictor,
            of.predictor,
            saved,
            f"{MODEL}/data/{weights.name}/{onnx_module.FILE}",
            SavedModel(loaded, weights),
            is_for_speed=True,
        )

    def _of_torch(self, name: str, method: str, folder: Path, is_for_speed: bool, steps: int = 0) -> Variant:
        """Load a model of torch from its files, as everybody does."""
        weights = weights_folder(folder)
        saved = SavedModel(Predictor.load(weights, trust_code=True), weights)
        return Variant(
            name,
            method,
            LoadedModel(self.original.predictor),
            LoadedModel(saved.predictor),
            self.original.folder / WEIGHTS,
            weights / WEIGHTS,
            self.original.predictor,
            saved.predictor,
            folder,
            f"{MODEL}/data/{weights.name}/{WEIGHTS}",
            saved,
            is_for_speed,
            steps,
        )

    @cached_property
    def _bare_original(self) -> Path:
        """The float32 model as ONNX, with which all 8-bit variants are compared."""
        return self._write_bare(self.original, "original-float32")

    @cached_property
    def _original_in_onnx(self) -> Predictor:
        with measure.one_thread():
            return self.original.predictor.of_other_model(OnnxModule(self._bare_original))

    def _write_bare(self, of: SavedModel, name: str) -> Path:
        """Write a model without its transform as ONNX."""
        write_bare(of.predictor, of.predictor.inputs(self._rows.few), self._folder / name)
        return self._folder / name / onnx_module.FILE

    def _calibration(self, bare: Path, predictor: Predictor) -> Iterator[int8.Arrays]:
        """Yield training rows as a file takes them."""
        module = OnnxModule(bare)
        rows = split_blocks(self._rows.source, predictor.preprocessing, TRAIN)
        for block in first_rows(rows, int8.CALIBRATION_ROWS):
            yield module.arrays(predictor.inputs(block))


def _in_words(after: str, method: str) -> str:
    return f"{after} and {method}" if after else method
