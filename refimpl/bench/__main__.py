"""python -m refimpl.bench: tables of time and memory.

python -m refimpl.bench            on one CPU thread: naive, SDPA, tiled at N = 8192; about a minute
python -m refimpl.bench --check    exit 1 where the tiled form misses its bounds
python -m refimpl.bench --gpu      the Triton kernels against SDPA's FLASH and CUDNN; writes results/<gpu>.json
"""

import argparse
import json
import sys

import torch


def table(rows: list[dict]) -> str:
    """Rows as aligned text, one column per key that any row has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_text(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _text(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m refimpl.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="measure the Triton kernels on the GPU of this machine")
    parser.add_argument("--check", action="store_true", help="exit 1 where the tiled form misses its bounds (CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON after the table")
    parser.add_argument("--save", action="store_true", help="write results/<device>.json (--gpu always does)")
    options = parser.parse_args(argv)
    from refimpl.bench import cpu, gpu, measure

    if options.gpu and not torch.cuda.is_available():
        print("refimpl.bench --gpu: no CUDA device here; without --gpu it measures the CPU", file=sys.stderr)
        return 2
    result = gpu.run() if options.gpu else cpu.run()
    for key in ("rows", "attention", "softmax"):
        if key in result:
            print(table(result[key]), end="\n\n")
    if options.json:
        print(json.dumps(result, indent=1))
    if options.gpu or options.save:
        print("wrote", measure.save(result))
    found = cpu.problems(result) if options.check and not options.gpu else []
    print("\n".join(found), file=sys.stderr) if found else None
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
