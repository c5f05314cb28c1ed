"""Row 12, Lite Transformer (S1): a convolution beside attention, against attention alone with as many weights.

Two small byte-level language models, equal in weights, steps, data and learning rate; three seeds, which set weights
and the order of the texts. Measured are the loss on unseen messages and where attention looks. Half the features go to
each branch; the feed-forward network of the LSRA model is wider by what the halves save.
Source: S1, "Sparse Attention - Lite Transformer"; Wu et al. 2020.
"""

import statistics
import time

import torch

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_38 import BATCH, CONTEXT, VOCAB, data, evaluate
from refimpl.language_modelling import next_token_loss
from refimpl.lsra import lite_decoder, local_share, mass_by_distance, matched_ffn, watch_maps
from refimpl.models.llama import fast_attention
from refimpl.shapes import Int, Tensor
from refimpl.transformer import DecoderOnly, TransformerConfig

TITLE = "Lite Transformer: convolution for what is near, attention for what is far"
CONFIG = TransformerConfig(VOCAB, 64, 4, 2, norm_first=True, attend=fast_attention)
KERNELS = (7, 15)  # taps of the two layers' convolutions
BYTES, SEEDS, PEAK_LR = 2**20, 3, 0.01  # the learning rate of row 38
NEAR, START, CROP = 4, 64, 48  # "diagonal": a byte and the 3 before it; queries with 64 keys or more; of the picture
NAMES = ("attention", "lsra")


def build(name: str, config: TransformerConfig = CONFIG, kernels=KERNELS) -> DecoderOnly:
    """The plain model, or the one with LSRA and the matching feed-forward width (of its wider kernel)."""
    if name == "attention":
        return DecoderOnly(config)
    ffn = matched_ffn(config, kernel=max(kernels))
    return lite_decoder(TransformerConfig(**{**vars(config), "ffn": ffn}), kernels=kernels)


def train(name: str, seed: int, tokens: int) -> DecoderOnly:
    """AdamW over bytes that are read once, learning rate up over 5 % of the steps and linearly down: as row 38."""
    training, _ = data()
    torch.manual_seed(seed)
    model = build(name)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0)
    steps = tokens // (BATCH * CONTEXT)
    for step, rows in enumerate(order[: steps * BATCH].split(BATCH)):
        optimizer.param_groups[0]["lr"] = PEAK_LR * min((step + 1) / (0.05 * steps + 1), 1 - step / steps)
        next_token_loss(model(training[rows]), training[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def look(model: DecoderOnly, windows: Int[Tensor, "windows seq"]) -> dict:
    """Per layer: share of attention on the diagonal and mean attention by distance; and one picture, heads averaged."""
    with watch_maps(model) as maps:
        model(windows)
    return {
        "near": [round(local_share(p, near=NEAR, start=START), 4) for p in maps],
        "by_distance": [[round(x, 5) for x in mass_by_distance(p, start=START).tolist()] for p in maps],
        "picture": [[[round(x, 3) for x in row] for row in p[0].mean(0)[:CROP, :CROP].tolist()] for p in maps],
    }


def one(name: str, seed: int, tokens: int) -> dict:
    """One trained model; pictures of the first seed alone."""
    start = time.perf_counter()
    model = train(name, seed, tokens)
    _, validation = data()
    seen = look(model, validation[:32])
    if seed:
        del seen["picture"]
    blocks = sum(p.numel() for p in model.blocks.parameters())
    loss = evaluate(model, validation)
    return {"model": name, "seed": seed, "loss": loss, "block_parameters": blocks,
            "seconds": round(time.perf_counter() - start, 1)} | seen  # fmt: skip


def chance() -> float:
    """The share on the diagonal of attention that looks at every byte alike, mean over the same queries."""
    return statistics.mean(NEAR / (i + 1) for i in range(START, CONTEXT))


def run() -> dict:
    runs = [one(name, seed, BYTES) for seed in range(SEEDS) for name in NAMES]
    return {"bytes": BYTES, "near": NEAR, "chance": chance(), "kernels": KERNELS, "runs": runs}


# --- what it says ----------------------------------------------------------------------------------------------------


def of(result: dict, name: str, key: str) -> list:
    return [row[key] for row in result["runs"] if row["model"] == name]


def claims(result: dict) -> list[Claim]:
    losses = [of(result, name, "loss") for name in NAMES]
    gaps = [a - b for a, b in zip(*losses, strict=True)]
    near = [[statistics.mean(layers) for layers in of(result, name, "near")] for name in NAMES]
    weights = [of(result, name, "block_parameters")[0] for name in NAMES]
    layers = [[statistics.mean(x) for x in zip(*of(result, name, "near"), strict=True)] for name in NAMES]
    first, last = ([f"{pair[at]:.0%}" for pair in layers] for at in (0, -1))
    off = abs(weights[1] / weights[0] - 1)
    return [
        Claim("equal weights", "Wu et al. 2020 compare at equal size", weights[0], weights[1], off < 0.005,
              f"In the blocks; {off:.2%} apart, kernels {', '.join(map(str, result['kernels']))}."),
        Claim("with a branch for local features the same weights learn more", "S1, Lite Transformer; Wu et al. 2020",
              "lower loss", f"{pm(losses[0])} to {pm(losses[1])} nats per byte", min(gaps) > 0,
              f"Unseen messages, {result['bytes']:,} bytes read once; LSRA is better by {pm(gaps)}, mean ± standard "
              f"deviation of {len(gaps)} seeds, which share weights' seed and order of texts."),
        Claim("attention puts too much emphasis on local features", "S1, Lite Transformer: Original Attention",
              "more than an even share", f"{pm(near[0])} on the last {result['near']} bytes",
              min(near[0]) > 2 * result["chance"],
              f"Attention that looks at all alike has {result['chance']:.3f} there. Mean over heads and layers."),
        Claim("in LSRA attention is dedicated to global features: its maps lose their diagonal",
              "S1, Lite Transformer: Attention in LSRA", "less on the diagonal", f"{pm(near[0])} to {pm(near[1])}",
              all(b < a for a, b in zip(*near, strict=True)),
              f"Share on the last {result['near']} bytes: first layer {' to '.join(first)}, last {' to '.join(last)}."),
    ]  # fmt: skip


def pm(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
