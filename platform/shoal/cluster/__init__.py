"""All of Ray, and only here.

- `session`: join or start a cluster; `ray_private`: the private interfaces of Ray that Shoal uses
- `shard_store`: workers' rows in the object store; `streaming`: a shard read from there
- `ingest`: a source read by tasks, where it is too large for the driver
- `worker_group`: Ray Train workers around `runs.worker`; `group_watch`: what the driver sees of them meanwhile
- `status_board`: what each worker does at the moment; `worker_process`: their processes, seen from their hosts;
  `worker_failure`: what their ends mean; `free_room`: what they wait for before they start;
  `elastic`: how many there are; `draining`: which nodes are about to leave; `answering`: which take connections;
  `replay`: whether a loss that was not finite is so again; `placement`: which hosts are left out, by a
  `node_selector`
- `actor_pool`, `trial_actor`: processes that run trials, reused; `trial_watch`: which of them hangs; `start_watch`:
  which do not start
- `serving`: models as Ray Serve replicas; `serve_app`: a whole server in each, as an application that others deploy
- `dataset_cache`: the data of a sweep, read once
- `node_actors`: a process on each node, which looks at it
- `batch_inference`: actors that predict the fragments of a source
- `tune_schedulers`: Ray Tune's schedulers: which trial is stopped or paused, or exploits another

Depends on `runs` and `tune`, which do not know it.
"""
