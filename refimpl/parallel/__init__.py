"""Training and attention on many processes: one program per rank, on plain `torch.distributed`.

launch      run a function on several ranks, from a notebook cell, and get back what each returned (engines: clusters)
accounting  collectives, bytes and memory of one rank, counted
timeline    what each rank did when: compute, communication, idle
data        data parallelism: gradients averaged bucket by bucket
zero        ZeRO 1, 2, 3: state, gradients, weights in shards; shards: what a unit of them is
lomo        update fused with the backward pass, one gradient alive at a time
tensor      matrices, heads and vocabulary cut over ranks
pipeline    layers cut over ranks, micro-batches one after the other: GPipe, 1F1B
ring        ring attention: sequences over ranks, keys and values travel; contiguous, striped, zigzag
ulysses     heads for tokens by all-to-all, alone and on a mesh with the ring
fpdt        chunks of a sequence, parked on the host, with a double buffer (stage)
checkpoint  sharded checkpoints that any number of ranks can read
planner     bytes, FLOPs, traffic, time and longest sequence of a model, a machine and methods, before it runs
"""

from refimpl.parallel.launch import LaunchError, LaunchTimeout, RankError, launch

__all__ = ["LaunchError", "LaunchTimeout", "RankError", "launch"]
