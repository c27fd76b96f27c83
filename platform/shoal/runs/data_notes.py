"""What a person should know of a run's data: lines before training, and a report in the run folder."""

from shoal.config.secrets import mask
from shoal.data.dataset_info import DatasetInfo
from shoal.data.report import data_report
from shoal.data.sampler import TRAIN
from shoal.data.sources.base import Source
from shoal.plots.data_report import data_picture
from shoal.storage.run_folder import PICTURES, REPORTS, RunFolder

REPORT = f"{REPORTS}/data.md"
PICTURE = f"{PICTURES}/data.png"


DRAWN = (
    "items draw random numbers: training rows are read again in every epoch, with draws of (seed, epoch, row)"
)
DRAWN_ONCE = "items draw random numbers: each row is drawn once, the same in every epoch"


def data_notes(source: Source, info: DatasetInfo) -> list[str]:
    """Return a line for each thing that was detected while reading, or is odd about the rows."""
    notes = (*source.notes, *_notes_of_draws(source), *info.notes)
    return [mask(note) for note in notes]  # a source names its files by their address


def _notes_of_draws(source: Source) -> list[str]:
    trained = [part for part in source.parts if part.split in (None, TRAIN)]
    if any(part.drawn for part in trained):
        return [DRAWN]
    return [DRAWN_ONCE] if any(part.encoded and part.encoded[0].drawn for part in trained) else []


def write_data_report(folder: RunFolder, source: Source, info: DatasetInfo) -> None:
    """Write the report, unless an earlier attempt has."""
    if not folder.exists(REPORT):
        folder.write(REPORT, mask(data_report(source.uri, info, data_notes(source, info))).encode())


def draw_data(folder: RunFolder, info: DatasetInfo, title: str) -> None:
    """Draw class balance and missing cells; rows of text have neither."""
    if info.transform.tokenizer:
        return
    rows = max(1, info.rows[TRAIN])
    missing = {
        column.name: (column.missing + column.unreadable) / rows
        for column in info.columns
        if "[" not in column.kind
    }
    folder.write(PICTURE, data_picture(info.rows, info.class_counts, missing, f"{title}: data"))
