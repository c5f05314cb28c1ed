"""Oracles of this lab that `refimpl` has in another form."""

import torch

from refimpl.online_softmax import running_stats as stats_of_rows


def running_stats(blocks):
    """The maximum and the sum of whole rows: here the blocks may be collected, since this is the judge's side."""
    rows = torch.cat([block.clone() for block in blocks], dim=-1)
    return stats_of_rows(rows, block=rows.shape[-1])
