"""Folders on a disk or in an object store, and the files of a run in one.

- `durable`: files and folders on a disk that are whole after a power cut
- `folder`: whole files, written complete or not at all
- `parts`: a file that grows, in an object store: numbered parts, each asked for once
- `failures`: another try while an object store is away, else one error with path, reason and remedy
- `records`: every JSON file of a run folder, typed
- `run_folder`: the names of a run's files, its records, its lease
- `exclusive`: a file that exactly one of several processes creates
- `host_ledger`: which hosts have failed runs
- `lease`: who is at a run folder, and whether that process lives
- `record_folder`: a folder's records; `leased_folder`: one process at a time works on it

Depends on `config.secrets`, `errors` and pydantic; independent of what a run is.
"""
