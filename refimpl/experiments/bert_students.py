"""Row 28's first half: MiniLM (6 layers, 384 features) teaches a BERT of 3 random layers and 96 features.

Nobody labels anything: the student reads a sentence, the teacher shows what it makes of it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from refimpl.distillation import BertRecord, hidden_loss, nearest_words, read_bert, replace_words, tinybert_loss
from refimpl.experiments.row_27 import schedule
from refimpl.models import MiniLM, corpus
from refimpl.models.bert import Bert, BertConfig, mean_of_tokens
from refimpl.models.data import messages
from refimpl.shapes import Tensor

LONGEST, BATCH, WIDTH, LAYERS = 24, 16, 96, 3  # word pieces of a sentence; sentences of a step; the student
SHARE, NEIGHBOURS = 0.3, 10  # augmentation: words replaced; by one of so many
PEAK_LR = 2e-3


class Batch(NamedTuple):
    """Sentences with what the teacher makes of them."""

    ids: Tensor
    real: Tensor
    teacher: BertRecord


def sentences(count: int) -> list[str]:
    """Sentences of 40 to 120 characters, spread over all messages, in an order that mixes them."""
    texts = [corpus("prose", message=m) for m in messages()[::5]] or [corpus("prose")]
    found = [s.strip() for text in texts for s in re.split(r"(?<=[.!?])\s+", text) if 40 <= len(s.strip()) <= 120]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(28))[:count]
    return [found[i] for i in order.tolist()]


@torch.no_grad()
def batches(lm: MiniLM, texts: Sequence[str], *, variants: int = 0) -> list[Batch]:
    """Each batch with the teacher's record; variants > 0 replaces the texts by so many augmented ones of each."""
    ids, real = lm.ids(texts, longest=LONGEST)
    if variants:
        used, places = ids.unique(return_inverse=True)  # neighbours among the words of these texts
        fixed = ~real | (torch.arange(ids.shape[1]) == 0)
        near, rng = nearest_words(lm.model.words.weight[used], min(NEIGHBOURS, len(used) - 1)), torch.Generator()
        ids = torch.cat([used[replace_words(places, near, fixed, SHARE, rng.manual_seed(v))] for v in range(variants)])
        real = real.repeat(variants, 1)
    parts = zip(ids.split(BATCH), real.split(BATCH), strict=True)
    return [Batch(i, r, read_bert(lm.model, i, r)) for i, r in parts]


def directions(lm: MiniLM) -> Tensor:
    """(model, WIDTH): the main directions of the teacher's word vectors, in which a narrow student can hold them."""
    words = lm.model.words.weight
    return torch.linalg.eigh(words.T @ words).eigenvectors[:, -min(WIDTH, words.shape[1]) :]


def student_of(lm: MiniLM, seed: int) -> Bert:
    """Random blocks over the teacher's own word and position vectors, cut to the student's width and not trained."""
    c, main = lm.model.config, directions(lm)
    torch.manual_seed(seed)
    student = Bert(BertConfig(LAYERS, main.shape[1], c.heads, 4 * main.shape[1], c.vocab, c.context, c.norm_eps))
    for mine, theirs in ((student.words, lm.model.words), (student.positions, lm.model.positions)):
        mine.weight.data.copy_(theirs.weight @ main)
        mine.requires_grad_(False)
    return student


def distil(lm: MiniLM, data: list[Batch], how: str, steps: int, seed: int) -> Bert:
    """A student after `steps` batches; how: "output" compares the last layer's stream alone, "layers" is TinyBERT's."""
    student = student_of(lm, seed)
    projection = torch.nn.Parameter(directions(lm).T.clone())
    trained = [*(p for p in student.parameters() if p.requires_grad), projection]
    optimizer = torch.optim.Adam(trained, lr=PEAK_LR)
    order = torch.randint(len(data), (steps,), generator=torch.Generator().manual_seed(seed))
    for step, i in enumerate(order.tolist()):
        optimizer.param_groups[0]["lr"] = PEAK_LR * schedule(step, steps)
        batch, found = data[i], read_bert(student, data[i].ids, data[i].real)
        if how == "layers":
            loss = tinybert_loss(found, batch.teacher, projection, batch.real)
        else:
            loss = hidden_loss(found.streams[-1], batch.teacher.streams[-1], projection, batch.real)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


@torch.no_grad()
def agreement(student: Bert, lm: MiniLM, texts: Sequence[str]) -> float:
    """Spearman's correlation of all pairwise cosines, the student's with the teacher's."""
    ids, real = lm.ids(texts, longest=LONGEST)
    pairs = torch.triu_indices(len(texts), len(texts), 1)
    ranks = []
    for model in (student, lm.model):
        x = mean_of_tokens(model(ids, real), real)
        ranks.append((x @ x.T)[pairs[0], pairs[1]].argsort().argsort().double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def bert_students(lm: MiniLM, sizes: dict[str, int], seeds: Sequence[int]) -> list[dict]:
    """Four students per seed: how they are taught, and on what."""
    texts = sentences(sizes["many"] + sizes["test"])
    many, test = texts[: sizes["many"]], texts[sizes["many"] :]
    few = many[: sizes["few"]]
    data = {
        "many": batches(lm, many), "few": batches(lm, few),
        "few, augmented": batches(lm, few, variants=max(1, sizes["many"] // sizes["few"])),
    }  # fmt: skip
    rows = []
    for how, text in (("layers", "many"), ("output", "many"), ("layers", "few"), ("layers", "few, augmented")):
        found = [agreement(distil(lm, data[text], how, sizes["steps"], seed), lm, test) for seed in seeds]
        rows.append({"how": how, "texts": text, "agreement": found})
    return [
        *rows,
        {"how": "none", "texts": "none", "agreement": [agreement(student_of(lm, s), lm, test) for s in seeds]},
    ]
