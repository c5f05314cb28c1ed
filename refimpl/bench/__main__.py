"""python -m refimpl.bench [CASE ...]: ratios to named peers, with FLOPs and bytes beside the times.

python -m refimpl.bench                 every case on one CPU thread; a few minutes
python -m refimpl.bench attention       one case
python -m refimpl.bench --check         exit 1 where a case misses its bounds
python -m refimpl.bench --device gpu    the Triton kernels against their peers; writes results/<gpu>.json
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
    from refimpl.bench import gpu, measure, suite

    parser = argparse.ArgumentParser(
        prog="python -m refimpl.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(suite.names())} [default: all]")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="[default: cpu]")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds of each CPU measurement [default: 5]")
    parser.add_argument("--check", action="store_true", help="exit 1 where a case misses its bounds (CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON after the tables")
    parser.add_argument("--save", action="store_true", help="write results/<device>.json (--device gpu always does)")
    options = parser.parse_args(argv)
    on_gpu = options.device == "gpu"
    if on_gpu and not torch.cuda.is_available():
        print("refimpl.bench --device gpu: no CUDA device here; --device cpu measures the CPU", file=sys.stderr)
        return 2
    if unknown := [name for name in options.cases if name not in suite.names()]:
        print(f"there is no case {', '.join(unknown)}; here are {', '.join(suite.names())}", file=sys.stderr)
        return 2
    result = gpu.run() if on_gpu else suite.run(options.cases, options.runs)
    for name, rows in result["cases"].items():
        print(f"{name}: {TITLES.get(name) or suite.case(name).TITLE}\n{table(rows)}", end="\n\n")
    if options.json:
        print(json.dumps(result, indent=1))
    if on_gpu or options.save:
        print("wrote", measure.save(result))
    found = suite.problems(result) if options.check and not on_gpu else []
    if found:
        print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


# What only a GPU run has: no case of its own.
TITLES = {"flash": "flash attention against SDPA's backends by name", "softmax": "fused softmax against torch.softmax"}


if __name__ == "__main__":
    sys.exit(main())
