"""Row 28's second half: a byte-level language model teaches one a tenth of its size, in four ways from one start."""

import copy
from collections.abc import Callable, Sequence

import torch

from refimpl.distillation import continuations, forward_kl, kd_loss, minillm_loss, reverse_kl, token_log_probs
from refimpl.experiments.row_27 import schedule
from refimpl.language_modelling import next_token_loss, response_only_loss
from refimpl.models import corpus
from refimpl.models.data import messages
from refimpl.models.llama import fast_attention
from refimpl.shapes import Int, Tensor
from refimpl.transformer import DecoderOnly, TransformerConfig

CONTEXT, PROMPT, WINDOWS = 48, 16, 32  # bytes of a window; of them given; windows of a step
PEAK_LR = {"teacher": 0.01, "start": 0.01, "more": 2e-3}
WAYS = ("labels", "logits", "texts", "MiniLLM")


def windows(held_out: int) -> tuple[Int[Tensor, "training seq"], Int[Tensor, "validation seq"]]:
    """Bytes of the messages since 1900 in windows, shuffled once; the last of them are held out."""
    text = "\n\n".join(corpus("prose", message=m) for m in messages() if int(m[:4]) >= 1900) or corpus("prose")
    ids = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    cut = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    cut = cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(28))]
    return cut[:-held_out], cut[-held_out:]


def language_model(layers: int, width: int, heads: int, seed: int) -> DecoderOnly:
    torch.manual_seed(seed)
    return DecoderOnly(TransformerConfig(256, width, heads, layers, norm_first=True, attend=fast_attention))


def fit(model: DecoderOnly, loss: Callable[[int], Tensor], steps: int, peak: float) -> DecoderOnly:
    """`steps` steps of AdamW on loss(step)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * schedule(step, steps)
        loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def taught(way: str, student: DecoderOnly, teacher: DecoderOnly, text: Tensor, written: Tensor, steps: int, seed: int):
    """The student after `steps` more steps in one of the four ways."""
    rng = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        source = written if way == "texts" else text
        batch = source[torch.randint(len(source), (WINDOWS,), generator=rng)]
        if way == "labels":
            return next_token_loss(student(batch), batch)
        if way == "texts":
            return response_only_loss(student(batch), batch, torch.arange(CONTEXT).expand_as(batch) >= PROMPT)
        if way == "MiniLLM":
            batch = continuations(student, batch[:, :PROMPT], CONTEXT - PROMPT, rng)
        with torch.no_grad():
            judged = teacher(batch)
        if way == "logits":
            return kd_loss(student(batch), judged)
        return minillm_loss(student(batch), judged, batch, PROMPT) / (CONTEXT - PROMPT)

    return fit(student, loss, steps, PEAK_LR["more"])


@torch.no_grad()
def judge(student: DecoderOnly, teacher: DecoderOnly, held_out: Int[Tensor, "windows seq"]) -> dict[str, float]:
    """On unread text: loss, KL(p || q). On its own texts: KL(q || p), and how they surprise the teacher and itself."""
    logits, theirs = student(held_out), teacher(held_out)
    own = continuations(student, held_out[:, :PROMPT], CONTEXT - PROMPT, torch.Generator().manual_seed(0))
    q, p = student(own), teacher(own)
    return {
        "loss": next_token_loss(logits, held_out).item(),
        "forward": forward_kl(logits, theirs)[:, PROMPT - 1 : -1].mean().item(),
        "reverse": reverse_kl(q, p)[:, PROMPT - 1 : -1].mean().item(),
        "teacher_nats": -token_log_probs(p, own, PROMPT).mean().item(),
        "own_nats": -token_log_probs(q, own, PROMPT).mean().item(),
    }


def lm_students(sizes: dict[str, int], seeds: Sequence[int]) -> dict:
    """One teacher; for each seed a student, and four copies of it that go on."""
    text, held_out = windows(sizes["held_out"])
    teacher = language_model(4, 64, 4, 0)

    def next_token(model: DecoderOnly, seed: int) -> Callable[[int], Tensor]:
        rng = torch.Generator().manual_seed(seed)

        def loss(step: int) -> Tensor:
            batch = text[torch.randint(len(text), (WINDOWS,), generator=rng)]
            return next_token_loss(model(batch), batch)

        return loss

    fit(teacher, next_token(teacher, 0), sizes["teacher"], PEAK_LR["teacher"])
    written = continuations(
        teacher, text[: sizes["texts"], :PROMPT], CONTEXT - PROMPT, torch.Generator().manual_seed(1)
    )
    rows = [{"way": "teacher", "seed": 0} | judge(teacher, teacher, held_out)]
    for seed in seeds:
        student = language_model(1, 32, 2, 1 + seed)
        fit(student, next_token(student, 10 + seed), sizes["start"], PEAK_LR["start"])
        rows.append({"way": "start", "seed": seed} | judge(student, teacher, held_out))
        for way in WAYS:
            found = taught(way, copy.deepcopy(student), teacher, text, written, sizes["more"], seed)
            rows.append({"way": way, "seed": seed} | judge(found, teacher, held_out))
    count = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("teacher", teacher), ("student", student))
    }
    return {"parameters": count, "rows": rows}
