"""Training and attention on many processes: one program per rank, on plain `torch.distributed`.

launch      run a function on several ranks, from a notebook cell, and get back what each returned
"""

from refimpl.parallel.launch import LaunchError, LaunchTimeout, RankError, launch

__all__ = ["LaunchError", "LaunchTimeout", "RankError", "launch"]
