"""Which hosts have failed runs, for all runs of a storage folder: a small file for each host and run.

No file has two writers, and none is read to be changed. It knows neither how a host failed nor what follows.
"""

from collections.abc import Mapping, Sequence

from shoal.storage.folder import Folder
from shoal.storage.records import HostFailure

HOSTS = ".hosts"  # no experiment's name begins with a dot
WINDOW_MS = 7 * 24 * 3600 * 1000  # a host that fails once in a month is an ordinary one
MOST_RUNS = 3


class HostLedger:
    """Of the folder that runs are stored in."""

    def __init__(self, storage: str) -> None:
        self._folder = Folder(storage)

    def charge(self, failure: HostFailure) -> None:
        """Note a failure; a run counts once against a host, however often it failed there."""
        self._folder.write(f"{HOSTS}/{failure.host}/{_file_of(failure.run)}", failure.to_bytes())

    def recent(self, now_ms: int) -> dict[str, list[HostFailure]]:
        """Return the failures of the last days by host, the newest first; files that are damaged count for nothing."""
        hosts = {host: self._failures(host) for host in self._folder.names(HOSTS)}
        return {
            host: kept
            for host, found in hosts.items()
            if (kept := [one for one in found if now_ms - one.at_ms < WINDOW_MS])
        }

    def forgive(self, host: str) -> None:
        """Forget what a host failed."""
        self._folder.delete(f"{HOSTS}/{host}")

    def _failures(self, host: str) -> list[HostFailure]:
        found = []
        for name in self._folder.names(f"{HOSTS}/{host}"):
            data = self._folder.poll(f"{HOSTS}/{host}/{name}", most_tries=None)
            try:
                found.append(HostFailure.parse(data or b""))
            except ValueError:
                continue
        return sorted(found, key=lambda failure: -failure.at_ms)


def failing_hosts(recent: Mapping[str, Sequence[HostFailure]]) -> list[str]:
    """Return the hosts that failed too many runs, those with the most first."""
    failing = [host for host, failures in recent.items() if len(failures) >= MOST_RUNS]
    return sorted(failing, key=lambda host: (-len(recent[host]), host))


def _file_of(run: str) -> str:
    return f"{run.replace('/', '.')}.json"
