"""Checks of a cluster before anything is spent on it, as pure functions: what was seen comes in, findings go out.

- `node`: what one machine says of itself
- `node_checks`: versions, name resolution, tokens, clocks, shared memory, disk, open files, GPUs, a cluster left behind
- `storage_probe`: files that every node writes and all others read
- `network_probe`: all-reduce over pairs of nodes in two rounds, and which host is bad
- `cluster_checks`: the tracking server, room for the workers, hosts that failed runs, the upload of a job

Depends on `storage` and `runs`; independent of Ray: `cluster.node_actors` calls its functions on the nodes.
"""
