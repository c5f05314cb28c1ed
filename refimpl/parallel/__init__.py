"""Training and attention on many processes: one program per rank, on plain `torch.distributed`.

launch      run a function on several ranks, from a notebook cell, and get back what each returned
accounting  collectives, bytes and memory of one rank, counted
timeline    what each rank did when: compute, communication, idle
data        data parallelism: gradients averaged bucket by bucket
zero        ZeRO 1, 2, 3: state, gradients, weights in shards; shards: what a unit of them is
lomo        update fused with the backward pass, one gradient alive at a time
tensor      matrices cut by columns and rows, heads, vocabulary; the loss without whole logits
pipeline    layers over ranks, micro-batches: GPipe and 1F1B as lists, the bubble predicted, simulated, measured
checkpoint  every rank writes its part; any number of ranks, cut in any of these ways, reads it
ring        ring attention: sequences over ranks, keys and values travel; contiguous, striped, zigzag
ulysses     heads for tokens by all-to-all, alone and on a mesh with the ring
fpdt        chunks of a sequence, parked on the host, with a double buffer (stage)
planner     what a run needs, before it runs: bytes, FLOPs, traffic, the least time, the longest sequence (hardware,
            plan_memory); plan_tables: four published tables by it; fake_group: FSDP2's shards on 1,024 ranks
"""

from refimpl.parallel.launch import LaunchError, LaunchTimeout, RankError, launch

__all__ = ["LaunchError", "LaunchTimeout", "RankError", "launch"]
