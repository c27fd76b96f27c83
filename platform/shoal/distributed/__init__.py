"""How the worker processes of one training act together, by torch.distributed.

- `process_group`: sums and gathers over the workers, of gradients too
- `gradient_sum`: the sum of gradients through shared memory, whatever part of a model a worker's rows use
- `shm_allreduce`: the sum through shared memory, for CPU workers of one host
- `parallelism`: FSDP2 and tensor parallelism, by the units that `blocks` finds in a model
- `sync_batchnorm`: BatchNorm over the rows of all workers
- `dtensor_io`: tensors of which each worker holds a part, to files and back
- `shard_index`: the index of such files, read without running what it names
- `torch_private`: the private interfaces of torch that Shoal uses, listed with their fallbacks

Depends on torch; independent of Ray and of what is trained.
"""
