"""Time and memory of `refimpl` against named peers; `python -m refimpl.bench`, `--device gpu` on a GPU.

Ratios are taken within one process, with interleaved runs, so that another machine gives about the same ones.
Committed results carry the machine, the versions and the date: `results/*.json`.
"""
