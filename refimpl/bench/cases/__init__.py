"""One file per comparison on a CPU, found by itself.

A case has
    TITLE                        one line
    run(runs) -> [row]           flat dicts: times, ratios to named peers, FLOPs and bytes; one thread, interleaved
    problems(rows) -> [text]     the bounds that are missed; a peer that is not installed is a row that says so
and may have gpu(device, repeats) -> [row], which `python -m refimpl.bench --device gpu` runs beside attention's.
"""
