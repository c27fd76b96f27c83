"""Whether storage is one folder for all nodes: each writes a small file, then each reads those of all others."""

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.storage.folder import Folder
from shoal.storage.records import Finding

PROBES = "doctor-probe"  # and a random word: the folder of one check
SLOW_S = 5.0
SHARE = (
    "storage_path must be one folder that all nodes share: mount the same network folder there, or give s3://"
)


@dataclass(frozen=True)
class Written:
    """What became of a node's file.

    Attributes:
        error: in words; None where it was written.
        made: the topmost folder that was made for it, on a disk.
    """

    seconds: float
    error: str | None = None
    made: str | None = None


@dataclass(frozen=True)
class Seen:
    """Which files of others a node does not see, and how long it took to read those that it sees."""

    missing: list[str]
    seconds: float
    error: str | None = None


def write_probe(storage: str, probe: str, node: str) -> Written:
    """Write a node's file, in the process that a worker there would be."""
    made, began_s = _topmost_missing(storage), time.monotonic()
    try:
        folder = _open(storage)
        folder.write(f"{probe}/{node}", socket.gethostname().encode())
    except OSError as error:
        return Written(time.monotonic() - began_s, _in_a_line(error), made)
    return Written(time.monotonic() - began_s, None, made)


def read_probes(storage: str, probe: str, nodes: Sequence[str]) -> Seen:
    """Read the files of all nodes."""
    began_s, missing = time.monotonic(), list[str]()
    try:
        folder = _open(storage)
        for node in nodes:
            try:
                folder.read(f"{probe}/{node}")
            except FileNotFoundError:
                missing.append(node)
    except OSError as error:
        return Seen([], time.monotonic() - began_s, _in_a_line(error))
    return Seen(missing, time.monotonic() - began_s)


def remove_probes(storage: str, probe: str, made: str | None = None) -> None:
    """Remove the files of all nodes, and the folders that were made for them and are empty."""
    try:
        _open(storage).delete(probe)
        if made is not None:
            for path in [Path(storage), *Path(storage).parents]:
                path.rmdir()
                if str(path) == made:
                    return
    except OSError:  # it is not there, cannot be written, or another process uses it
        return


def check_storage(storage: str, written: Mapping[str, Written], seen: Mapping[str, Seen]) -> list[Finding]:
    """Each node must write, and see what the others wrote."""
    findings = []
    for node, one in written.items():
        if one.error:
            findings.append(_fatal(node, f"'{storage}' cannot be written ({one.error})", SHARE))
    for node, read in seen.items():
        if read.error and not written[node].error:
            findings.append(_fatal(node, f"'{storage}' cannot be read ({read.error})", SHARE))
    visible = {
        node: frozenset(written) - frozenset(read.missing)
        for node, read in seen.items()
        if not (read.error or written[node].error)
    }
    findings += [
        _fatal(
            node,
            f"'{storage}' is another folder there: it does not show what {', '.join(hidden)} wrote",
            SHARE,
        )
        for node, hidden in _apart(visible).items()
    ]
    if findings:
        return findings
    slowest = max(written, key=lambda node: written[node].seconds + seen[node].seconds)
    took_s = written[slowest].seconds, seen[slowest].seconds
    value = f"'{storage}': written in {took_s[0]:.2f} s, all read in {took_s[1]:.2f} s, slowest on {slowest}"
    if max(took_s) <= SLOW_S:
        return [Finding(check="storage", where="all", value=value)]
    return [
        Finding(
            check="storage",
            level="warning",
            where=slowest,
            value=value,
            rule=f"a file of some bytes takes less than {SLOW_S:g} s",
            remedy="look into the network of that host, or take storage that is closer",
        )
    ]


def _apart(visible: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Return the nodes that see something else than most, with what they do not see of those."""
    if not visible:
        return {}
    usual = Counter(visible.values()).most_common(1)[0][0]
    return {
        node: sorted(other for other in usual - seen if other in visible)
        for node, seen in visible.items()
        if usual - seen
    }


def _fatal(node: str, value: str, remedy: str) -> Finding:
    rule = "each node writes there, and reads what the others wrote"
    return Finding(check="storage", level="fatal", where=node, value=value, rule=rule, remedy=remedy)


def _open(storage: str) -> Folder:
    folder = Folder(storage)
    folder.set_stopping(True)  # seconds of patience, where a training has minutes
    return folder


def _topmost_missing(storage: str) -> str | None:
    if "://" in storage:
        return None
    missing = [path for path in [Path(storage), *Path(storage).parents] if not path.exists()]
    return str(missing[-1]) if missing else None


def _in_a_line(error: OSError) -> str:
    return " ".join((error.strerror or str(error)).split())
