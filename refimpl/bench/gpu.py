"""The Triton kernels on a GPU against PyTorch's attention backends, each named: FLASH (FlashAttention-2) and CUDNN.

They are different peers: on Hopper cuDNN's kernel uses warp specialization, which plain Triton does not expose.
The shapes follow the FlashAttention papers: batch * seq = 16k tokens, heads * dim = 2048, bfloat16.
"""

import itertools
import statistics
import time

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.nn.attention import SDPBackend, sdpa_kernel

from refimpl.bench import suite
from refimpl.bench.measure import provenance
from refimpl.flash_attention.kernel import flash_attention
from refimpl.flash_attention.simulator import attention_flops
from refimpl.online_softmax import fused_softmax

TOKENS, WIDTH = 16384, 2048
PEERS = {"sdpa-flash": SDPBackend.FLASH_ATTENTION, "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION}


def shapes() -> list[dict]:
    """(batch, heads, seq, dim) of every row."""
    return [
        {"batch": TOKENS // seq, "heads": WIDTH // dim, "seq": seq, "dim": dim}
        for dim, seq in itertools.product((64, 128), (1024, 2048, 4096, 8192, 16384))
    ]


def run(
    device: str = "cuda",
    shapes_: list[dict] | None = None,
    softmax_cols=(1024, 4096, 16384),
    repeats=20,
    cases: list[str] | None = None,
) -> dict:
    """Every shape, causal and full, forward and forward + backward, ours and the peers; then what the cases add.

    A missing peer is a row too.
    """
    rows = []
    for shape, causal, backward in itertools.product(shapes_ or shapes(), (True, False), (False, True)):
        rows += attention_rows(device, shape, causal, backward, repeats)
    softmax = [row for cols in softmax_cols for row in softmax_rows(device, cols, repeats)]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    named = suite.names() if cases is None else cases
    more = {n: suite.case(n).gpu(device, repeats) for n in named if hasattr(suite.case(n), "gpu")}
    return {"provenance": provenance(name), "repeats": repeats, "cases": {"flash": rows, "softmax": softmax, **more}}


def attention_rows(device: str, shape: dict, causal: bool, backward: bool, repeats: int) -> list[dict]:
    """Ours and each peer: seconds, TFLOP/s, peak memory beyond the inputs; or the reason why a peer did not run."""
    size = (shape["batch"], shape["heads"], shape["seq"], shape["dim"])
    draw = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v, d_out = (torch.randn(size, generator=draw, device=device, dtype=dtype) for _ in range(4))
    flops = attention_flops(shape["seq"], shape["dim"], causal=causal) * shape["batch"] * shape["heads"]
    flops = flops * 7 // 2 if backward else flops  # backward: 5 matmuls to the forward's 2, the papers' convention
    rows = []
    for name, attend in _contenders(causal).items():
        row = {"implementation": name, **shape, "causal": causal, "backward": backward}
        try:
            seconds, memory = measure(_step(attend, q, k, v, d_out, backward), device, repeats)
            row |= {"seconds": seconds, "tflops": flops / seconds / 1e12, "extra_bytes": memory}
        except RuntimeError as error:  # this backend does not cover this device or shape
            row["unavailable"] = str(error).splitlines()[0]
        rows.append(row)
    return rows


def _contenders(causal: bool) -> dict:
    def sdpa(backend):
        def attend(q, k, v):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return attend

    ours = {"refimpl-triton": lambda q, k, v: flash_attention(q, k, v, causal=causal)}
    return ours | {name: sdpa(backend) for name, backend in PEERS.items()}


def _step(attend, q, k, v, d_out, backward: bool):
    """One forward, or one forward with all three gradients."""
    if not backward:
        return lambda: attend(q, k, v)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(attend(*leaves), leaves, d_out)


def softmax_rows(device: str, cols: int, repeats: int) -> list[dict]:
    """Fused softmax and torch.softmax over 4096 rows: both move 2 elements per score at best, so GB/s compares them."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(4096 if device == "cuda" else 4, cols, device=device, dtype=dtype)
    rows = []
    for name, softmax in {"refimpl-triton": fused_softmax, "torch": lambda x: torch.softmax(x, -1)}.items():
        seconds, _ = measure(lambda softmax=softmax: softmax(x), device, repeats)
        gb_per_s = 2 * x.numel() * x.element_size() / seconds / 1e9
        rows.append(
            {"implementation": name, "rows": x.shape[0], "cols": cols, "seconds": seconds, "gb_per_s": gb_per_s}
        )
    return rows


def measure(call, device: str, repeats: int) -> tuple[float, int | None]:
    """(median seconds, peak bytes beyond what was allocated before)."""
    for _ in range(min(5, repeats)):
        call()  # compiles, and brings the clocks up
    if device != "cuda":  # the same code on a CPU, for the tests: no number of it is kept
        start = time.perf_counter()
        call()
        return time.perf_counter() - start, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    seconds = statistics.median(start.elapsed_time(end) for start, end in events) / 1e3
    return seconds, torch.cuda.max_memory_allocated() - before
