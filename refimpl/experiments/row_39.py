"""Row 39, outlook: QLoRA and LongLoRA in one training run, and QMoE's three values on trained experts.

Hybrid: SmolLM2-135M with all 210 matrices in NF4 with double quantization, LoRA of rank 8 beside W_q, W_k, W_v and W_o,
trained under shifted sparse attention, and in groups alone (windows of 512 tokens, groups of 128), on 3 windows of
prose, three seeds for LoRA's start and the windows' order; read before and after on two windows that follow, also with
full attention. Chen et al. 2024 train norms and embeddings as well, on far longer texts.

Experts: a next-byte model over the last 4 bytes with a Switch layer of 8 experts, trained for some seconds on prose;
then its experts in NF4 and in three values (QMoE without the correction of errors that the paper makes with GPTQ).
Sources: S1, "Future"; Frantar and Alistarh 2023.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.attention import naive_attention
from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import perplexity, ratio
from refimpl.experiments.row_20 import mean
from refimpl.experiments.row_24 import losses
from refimpl.experiments.row_25 import rounding, step
from refimpl.meter import Meter
from refimpl.mixture_of_experts import MixtureOfExperts, load
from refimpl.models import SmolLM, corpus, load_smollm2, replace_attention
from refimpl.models.llama import fast_attention
from refimpl.peft.budget import training_bytes
from refimpl.peft.longlora import grouped_attention, shifted_sparse_attention
from refimpl.peft.lora import LoRA
from refimpl.quantization import NF4, quantize_nf4, replaced_linears, rounded
from refimpl.quantization.experts import quantize_experts
from refimpl.quantization.swap import linears
from refimpl.shapes import Float, Int, Tensor

TITLE = "Outlook: QLoRA and LongLoRA in one run, experts in three values"
SEEDS, STEPS, LENGTH, GROUP, HELD_OUT = 3, 3, 512, 128, 2
RATE, TARGETS = 1e-3, ("q_proj", "k_proj", "v_proj", "o_proj")
LAST, WIDTH, HIDDEN, EXPERTS, BYTES = 4, 24, 192, 8, 256  # the next-byte model


def attentions(group: int) -> dict[str, Callable[..., Tensor]]:
    """What the layers may compute in place of full attention."""
    return {
        "full": fast_attention,
        "groups": partial(grouped_attention, group=group, attend=fast_attention),
        "shifted": partial(shifted_sparse_attention, group=group, attend=fast_attention),
    }


def read(lm: SmolLM, ids: Tensor, group: int, ways: tuple[str, ...]) -> dict[str, list[float]]:
    """Losses of the held-out windows, in pieces, by attention."""
    found = {}
    for way in ways:
        with replace_attention(lm.model, attentions(group)[way]):
            found[way] = losses(lm.model, ids)
    return found


def train(lm: SmolLM, lora: LoRA, windows: Int[Tensor, "steps length"], attend: Callable[..., Tensor]) -> list[float]:
    """One step of Adam per window."""
    adam = torch.optim.Adam(lora.parameters(), lr=RATE)
    with lora.attached(lm.model), replace_attention(lm.model, attend):
        return [step(lm, adam, ids[None]) for ids in windows]


def hybrid(lm: SmolLM, text: Int[Tensor, "1 seq"], steps: int, seeds: int, length: int, group: int) -> dict:
    """Read, train on 4-bit weights under groups of either kind, read again."""
    windows = text[0, : (steps + HELD_OUT) * length].view(-1, length)
    held_out, result = windows[steps:], {"runs": []}
    result["float"] = read(lm, held_out, group, ("full",))
    with replaced_linears(lm.model, rounded(rounding(NF4, double=True))):  # `QLoRALinear`'s numbers, sooner
        result["before"] = read(lm, held_out, group, ("full", "groups", "shifted"))
        for seed in range(seeds):
            order, run = torch.randperm(steps, generator=torch.Generator().manual_seed(seed)), {}
            for way, reads in (("shifted", ("full", "shifted")), ("groups", ("full",))):
                lora = LoRA(lm.model, targets=TARGETS, seed=seed)
                seen = train(lm, lora, windows[order], attentions(group)[way])
                with lora.attached(lm.model):
                    run[way] = {"training": seen, "after": read(lm, held_out, group, reads)}
            result["runs"].append({"seed": seed, "trained": lora.numbers} | run)
    return result | {"length": length, "group": group, "steps": steps, "tokens": held_out.numel()}


def sizes(lm: SmolLM) -> dict:
    """Bits per weight of the 4-bit matrices, counted, and bytes of training state beside those of full Adam."""
    matrices = [m.weight.detach() for m in linears(lm.model).values()]
    weights = sum(w.numel() for w in matrices)
    everything, lora = sum(p.numel() for p in lm.model.parameters()), LoRA(lm.model, targets=TARGETS)
    bits = 8 * sum(quantize_nf4(w, double=True).nbytes for w in matrices) / weights
    rest = everything - weights  # embeddings and norms stay as they are
    ours = training_bytes(weights, lora.numbers, tensors=len(list(lora.parameters())), weight_bits=bits)
    full = training_bytes(0, everything, tensors=len(list(lm.model.parameters())))
    return {"weights": weights, "bits": bits, "ours": ours.total + 4 * rest, "full": full.total, "rest": rest}


def attention_flops(seq: int, group: int, heads: int = 2, dim: int = 8) -> dict:
    """Counted FLOPs and largest tensor of one layer's attention, full and in shifted groups."""
    q, found = torch.zeros(1, heads, seq, dim), {}
    for name, run in (
        ("full", lambda: naive_attention(q, q, q, causal=True)),
        ("shifted", lambda: shifted_sparse_attention(q, q, q, group=group, attend=naive_attention)),
    ):
        with Meter() as meter:
            run()
        found[name] = {"flops": meter.flops, "largest": meter.largest_bytes}
    return found | {"seq": seq, "group": group}


class NextByte(nn.Module):
    """Logits of the next byte from the embeddings of the last LAST ones, a Switch layer in between."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(BYTES, WIDTH)
        self.experts = MixtureOfExperts(LAST * WIDTH, HIDDEN, experts=EXPERTS)
        self.norm, self.head = nn.LayerNorm(LAST * WIDTH), nn.Linear(LAST * WIDTH, BYTES)

    def forward(self, last: Int[Tensor, "batch LAST"]) -> Float[Tensor, "batch BYTES"]:
        x = self.embedding(last).flatten(1)
        return self.head(self.norm(x + self.experts(x)))


def fit_bytes(windows: Tensor, steps: int, seed: int) -> NextByte:
    """Adam, 512 places a step, the balance loss with its usual weight of 0.01."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NextByte()
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = windows[torch.randint(len(windows), (512,))]
            loss = F.cross_entropy(model(rows[:, :-1]), rows[:, -1]) + 0.01 * model.experts.balance
            adam.zero_grad()
            loss.backward()
            adam.step()
    return model.requires_grad_(False)


def nats(model: NextByte, windows: Tensor) -> float:
    return F.cross_entropy(model(windows[:, :-1]), windows[:, -1]).item()


def experts(text: str, steps: int, seed: int) -> dict:
    """A trained mixture and its loss with the experts in fewer bits; the other layers stay as they are."""
    windows = torch.tensor(list(text.encode())).unfold(0, LAST + 1, 1)
    cut = len(windows) * 9 // 10
    model, held_out = fit_bytes(windows[:cut], steps, seed), windows[cut:][:20_000]
    layer, found = model.experts, {"seed": seed, "float32": {"bits": 32.0, "loss": nats(model, held_out)}}
    found["load"] = load(layer.routing).tolist()
    kept = layer.w_1.data, layer.w_2.data
    for name, approximate in (
        ("NF4", in_codes),
        ("three values", in_three),
        ("no experts", lambda w: (torch.zeros_like(w), 0.0)),
    ):
        (layer.w_1.data, bits), (layer.w_2.data, more) = (approximate(w) for w in kept)
        found[name] = {"bits": (bits + more) / 2, "loss": nats(model, held_out)}
        found[name]["error"] = ((layer.w_1.data - kept[0]).norm() / kept[0].norm()).item()
    return found


def in_codes(w: Tensor) -> tuple[Tensor, float]:
    rows = w.transpose(1, 2).reshape(-1, w.shape[1])
    q = quantize_nf4(rows, double=True)
    return q.dequantize().view(w.shape[0], w.shape[2], -1).transpose(1, 2), q.bits_per_weight


def in_three(w: Tensor) -> tuple[Tensor, float]:
    q = quantize_experts(w.transpose(1, 2))  # a row is what makes one output: (experts, out, in)
    return q.dequantize().transpose(1, 2), q.bits_per_weight


def run(
    lm: SmolLM | None = None, steps: int = STEPS, seeds: int = SEEDS, length: int = LENGTH, group: int = GROUP,
    byte_steps: int = 250,
) -> dict:  # fmt: skip
    lm = lm or load_smollm2()
    text = lm.ids(corpus("prose"), (steps + HELD_OUT) * length)
    return {
        "mark": lm.mark, "hybrid": hybrid(lm, text, steps, seeds, length, group), "sizes": sizes(lm), "real": real(lm),
        "attention": [attention_flops(seq, group // 2) for seq in (length // 2, length)],
        "experts": [experts(corpus("prose"), byte_steps, seed) for seed in range(seeds)],
    }  # fmt: skip


def real(lm: SmolLM) -> dict:
    """Three values on a middle layer's W_gate of SmolLM2."""
    w = lm.model.layers[len(lm.model.layers) // 2].mlp.gate_proj.weight.detach()[None]
    q = quantize_experts(w)
    return {"bits": q.bits_per_weight, "zeros": q.zeros}


def claims(result: dict) -> list[Claim]:
    return [judge(result) for judge in (_memory, _linear, _shift, _trains, _reads, _four_bits, _bits, _quality)]


def _memory(result) -> Claim:
    s = result["sizes"]
    return Claim(
        "QLoRA: training beside 4-bit weights", "S1, Future: QLoRA", "4.127 bits per weight", round(s["bits"], 3),
        round(s["bits"], 3) == 4.127,
        f"Weights, gradients and Adam's state {s['ours'] / 1e6:.0f} MB, of which {4 * s['rest'] / 1e6:.0f} MB are "
        f"embeddings and norms in float32; all weights trained {s['full'] / 1e6:.0f} MB.",
    )  # fmt: skip


def _linear(result) -> Claim:
    short, long = result["attention"]
    times = [x["full"]["flops"] / x["shifted"]["flops"] for x in (short, long)]
    return Claim(
        "LongLoRA: attention in groups grows with the length, not its square", "Chen et al. 2024, section 3.2",
        "2 for twice the tokens", long["shifted"]["flops"] / short["shifted"]["flops"],
        long["shifted"]["flops"] <= 2.1 * short["shifted"]["flops"],
        f"Counted FLOPs at {short['seq']} and {long['seq']} tokens, groups of {long['group']}; full attention needs "
        f"{times[0]:.1f} and {times[1]:.1f} times as many, its largest tensor is "
        f"{long['full']['largest'] / long['shifted']['largest']:.0f} times as large.",
    )  # fmt: skip


def _shift(result) -> Claim:
    h, (shifted, groups) = result["hybrid"], (_after(result, way, "full") for way in ("shifted", "groups"))
    times, error = ratio(shifted, groups)
    before = ", ".join(f"{way} {perplexity(found):.1f}" for way, found in h["before"].items())
    return Claim(
        "the shift is what makes training in groups good", "Chen et al. 2024, section 3.2", "below groups alone",
        f"times {times:.3f} ± {error:.3f}", times + 2 * error < 1,
        f"Full attention after training with the shift {perplexity(shifted):.1f}, without {perplexity(groups):.1f}. "
        f"Untrained, {h['length']} tokens, groups of {h['group']}: {before}.",
    )  # fmt: skip


def _after(result, trained, way) -> list[float]:
    """Losses after training one way, read another way, mean over seeds."""
    return torch.tensor([run[trained]["after"][way] for run in result["hybrid"]["runs"]]).mean(0).tolist()


def _change(result, way) -> tuple[list[float], float, float]:
    """Losses after training with the shift, and their ratio to before."""
    after = _after(result, "shifted", way)
    return after, *ratio(after, result["hybrid"]["before"][way])


def _trains(result) -> Claim:
    after, times, error = _change(result, "shifted")
    each = [perplexity(run["shifted"]["after"]["shifted"]) for run in result["hybrid"]["runs"]]
    return Claim(
        "both together train: LoRA beside 4-bit weights under shifted groups", "S1, Hybrid efficiency", "loss falls",
        f"times {times:.3f} ± {error:.3f}", times + 2 * error < 1,
        f"Held-out perplexity {perplexity(result['hybrid']['before']['shifted']):.1f} -> {perplexity(after):.1f} after "
        f"{result['hybrid']['steps']} steps, mean of {len(each)} seeds ({min(each):.1f} to {max(each):.1f}).",
    )  # fmt: skip


def _reads(result) -> Claim:
    after, times, error = _change(result, "full")
    return Claim(
        "trained in groups, read with full attention", "Chen et al. 2024, section 3.2", "full attention still works",
        f"times {times:.3f} ± {error:.3f}", times - 2 * error < 1,
        f"Perplexity with full attention {perplexity(result['hybrid']['before']['full']):.1f} -> "
        f"{perplexity(after):.1f}; the weights before rounding to 4 bits: "
        f"{perplexity(result['hybrid']['float']['full']):.1f}.",
    )  # fmt: skip


def _four_bits(result) -> Claim:
    d, error = mean([run["NF4"]["loss"] - run["float32"]["loss"] for run in result["experts"]])
    bits = result["experts"][0]["NF4"]["bits"]
    return Claim(
        "experts bear few bits", "Frantar and Alistarh 2023, section 3", "small loss", f"{d:+.3f} ± {error:.3f} nats",
        d < 0.05, f"Nats per byte, experts in NF4 with {bits:.2f} bits per weight, {len(result['experts'])} seeds.",
    )  # fmt: skip


def _bits(result) -> Claim:
    m, error = mean([run["three values"]["bits"] for run in result["experts"]])
    return Claim(
        "QMoE: less than one bit per weight", "S1, Future: QMoE; Frantar and Alistarh 2023", "< 1",
        f"{m:.2f} ± {error:.2f}", m < 1,
        "Entropy of three values and two 16-bit numbers per row of 96 or 192, trained experts; of a W_gate of SmolLM2 "
        f"{result['real']['bits']:.2f} bits, {result['real']['zeros']:.0%} zeros.",
    )  # fmt: skip


def _quality(result) -> Claim:
    names = ("float32", "three values", "no experts")
    loss = {name: mean([run[name]["loss"] for run in result["experts"]])[0] for name in names}
    lost, gave = loss["three values"] - loss["float32"], loss["no experts"] - loss["float32"]
    return Claim(
        "at a minor loss", "Frantar and Alistarh 2023, abstract", "minor", f"{lost:+.2f} nats", lost < 0.05,
        ", ".join(f"{name} {loss[name]:.2f}" for name in names) + f" nats per byte: of what the experts give, three "
        f"values lose {lost / gave:.0%}. Each weight is rounded for itself; the paper corrects the others after each.",
    )  # fmt: skip
