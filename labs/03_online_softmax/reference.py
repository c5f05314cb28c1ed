"""Oracles of this lab that `refimpl` has in another form."""

import torch

from refimpl.online_softmax import running_stats as stats_of_rows


def running_stats(blocks):
    """The maximum and the sum of whole rows: the judge's side may keep every block."""
    rows = torch.cat([block.clone() for block in blocks], dim=-1)
    return stats_of_rows(rows, block=5)  # cut elsewhere than the student's stream
