"""Finds the recordings that a list names: where it says, or elsewhere below the list's own folder.

Lists name files in other machines' folders, with the ending from before they were converted, or without one. It knows
paths; independent of what a list looks like and of what is in a recording.
"""

import os
from functools import cached_property
from itertools import takewhile
from pathlib import PureWindowsPath

from shoal.data.sources.encoded_audio import SUFFIXES

CLIPS = ("", "clips", "wavs", "wav", "audio")  # folders beside a list that its paths may begin in


class ListedFiles:
    """The recordings of a list, which lies on a disk or in an object store."""

    def __init__(self, listed_in: str) -> None:
        self._folder = os.path.dirname(listed_in)

    def place(self, path: str) -> str:
        """Return where a listed recording lies; if it is nowhere, where it would lie in the list's folder."""
        found = self._found(path)
        return os.path.join(self._folder, path) if found is None else found

    def is_there(self, path: str) -> bool:
        """Whether there is such a recording; what lies in an object store is not looked up."""
        return self._found(path) is not None and "://" not in self._folder

    def _found(self, path: str) -> str | None:
        if "://" in path:
            return path
        if "://" in self._folder:
            return f"{self._folder}/{path}"
        tried = (*(os.path.join(self._folder, clips, path) for clips in CLIPS), os.path.abspath(path))
        return next(filter(os.path.isfile, tried), None) or self._named_alike(path)

    def _named_alike(self, path: str) -> str | None:
        """Return the one recording of that name, or of that name with another ending, in a folder that fits.

        That of a path without folders is any; the folders of a relative one have to be there; of an absolute one, whose
        first folders are another machine's, at least the last has to, unless the recording lies beside the list.
        """
        *folders, name = path.replace("\\", "/").split("/")
        is_absolute = os.path.isabs(path) or folders[:1] == [PureWindowsPath(path).drive]
        fitting = []
        for place in self._by_name.get(name) or self._by_name.get(os.path.splitext(name)[0]) or ():
            folder = os.path.dirname(place)
            pairs = zip(reversed(folder.split(os.sep)), reversed(folders), strict=False)
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            is_beside = os.path.relpath(folder, self._folder) in (".", *CLIPS)
            if same == len(folders) or (is_absolute and (same or is_beside)):
                fitting.append((same, place))
        most = max(fitting, default=(0, ""))[0]
        best = [place for same, place in fitting if same == most]
        return best[0] if len(best) == 1 else None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The recordings below the list's folder by their file names, and by these without an ending."""
        found: dict[str, list[str]] = {}
        for folder, _, names in os.walk(self._folder):
            for name in names:
                stem, ending = os.path.splitext(name)
                if ending.lower() in SUFFIXES:
                    for called in (name, stem):
                        found.setdefault(called, []).append(os.path.join(folder, name))
        return found
