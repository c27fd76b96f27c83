"""Spectrograms of recordings, with what a model hears in them and when, as a picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shoal.plots.figure import new_panels, to_png


class Heard(NamedTuple):
    """A recording as a panel of the picture.

    Attributes:
        spectrogram: [frames, bands].
        marks: (frame, unit) where a unit begins.
        text: what is heard.
        said: what was said.
    """

    spectrogram: np.ndarray
    marks: Sequence[tuple[int, str]]
    text: str
    said: str


def spectrograms(heard: Sequence[Heard], frame_s: float, title: str) -> bytes:
    """Return a PNG with a panel for each recording: its bands over time, and a line where each unit begins.

    Args:
        frame_s: from one frame to the next.
    """
    figure, panels = new_panels(title, rows=len(heard), columns=1, shared="none")
    for [axes], one in zip(panels, heard, strict=True):
        frames, bands = one.spectrogram.shape
        axes.imshow(
            one.spectrogram.astype(np.float32).T,
            origin="lower",
            aspect="auto",
            extent=(0.0, frames * frame_s, 0.0, float(bands)),
            cmap="magma",
        )
        for frame, unit in one.marks:
            axes.axvline(frame * frame_s, color="white", linewidth=0.6)
            axes.text(frame * frame_s, bands, f" {unit}", color="white", va="top", fontsize=8)
        axes.set_title(f"heard: {one.text or '(nothing)'}\nsaid: {one.said}", fontsize=9, loc="left")
        axes.set_ylabel("band")
    panels[-1][0].set_xlabel("seconds")
    return to_png(figure)
