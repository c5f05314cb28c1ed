"""One small experiment per row of the course's list of facts: what was published, what we measured, whether it shows.

`python -m refimpl.experiments` prints the table; `harness` says how an experiment is written and recorded.
"""
