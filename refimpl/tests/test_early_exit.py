"""Exits decide as on the finished text; keys and values are the model's own, or admitted copies; FLOPs are counted."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from refimpl.attention import attention
from refimpl.early_exit import (
    Exit,
    Written,
    _Reader,
    decide,
    early_exit_generate,
    exit_labels,
    frequent_tokens,
    streams,
    train_exit,
)
from refimpl.meter import Meter
from refimpl.models.llama import KVCache, LlamaConfig, generate, replace_attention
from refimpl.models.toy import toy_llama

SMALL = LlamaConfig(
    layers=6, model=16, heads=2, kv_heads=1, dim=8, ffn=24, vocab=40, context=64, rope_base=100.0, norm_eps=1e-5,
    tied=False,  # a random tied model repeats its last token for ever
)  # fmt: skip
IDS = torch.randint(40, (1, 9), generator=torch.Generator().manual_seed(0))


def lively(seed=0):
    """A toy whose blocks write much: else six random ones hardly change what the first two say."""
    model = toy_llama(SMALL, seed=seed)
    for block in model.layers:
        block.mlp.down_proj.weight.mul_(4), block.self_attn.o_proj.weight.mul_(4)
    return model


def model_and_exits(depths=(2, 4), seed=0, tokens=None):
    """A toy whose exits disagree with it and with each other, sure of themselves to different degrees."""
    model, draw = lively(seed), torch.Generator().manual_seed(seed)
    exits = [Exit(model, depth, torch.arange(40) if tokens is None else tokens) for depth in depths]
    for exit_ in exits:
        with torch.no_grad():
            exit_.translate.weight.copy_(torch.randn(16, 16, generator=draw) * 0.1)
    return model, exits


def middle_threshold(model, exits, text=None):
    """One that some tokens reach at the first exit, some at the second, and some nowhere."""
    x, _ = streams(model, IDS if text is None else text, [e.depth for e in exits])
    probability = torch.cat([e.best(stream)[1].flatten() for e, stream in zip(exits, x, strict=True)])
    return probability.detach().quantile(0.7).item()


# --- exits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_exit_is_the_logit_lens(tied):
    """With W and b zero: the model's own head on the stream, and "go on" at 0."""
    model = toy_llama(replace(SMALL, tied=tied))
    x, written = streams(model, IDS, [3])
    logits = Exit(model, 3, torch.arange(40))(x[0])
    assert_close(logits[..., :-1], model.head(x[0]))
    assert (logits[..., -1] == 0).all() and torch.equal(written, model(IDS).argmax(-1))


def test_streams_are_those_of_the_model_cut_short():
    """Against `residual(depth=…)`, and no hook stays behind."""
    model = toy_llama(SMALL)
    x, _ = streams(model, IDS, [1, 5])
    assert torch.equal(x[0], model.residual(IDS, depth=1)) and torch.equal(x[1], model.residual(IDS, depth=5))
    assert not any(block._forward_hooks for block in model.layers)


def test_a_token_that_an_exit_cannot_write_is_go_on():
    """Labels are places among the frequent tokens; ties go to the smaller id."""
    tokens = frequent_tokens(torch.tensor([7, 3, 7, 9, 3, 1]), 3)
    assert tokens.tolist() == [1, 3, 7]
    assert exit_labels(torch.tensor([7, 9, 0, 1]), tokens).tolist() == [2, 3, 3, 0]


def test_training_teaches_what_the_model_writes_and_touches_nothing_else():
    """Agreement of an exit after two blocks rises far above the lens; the model's weights stay to the bit."""
    model = lively()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.randint(40, (8, 64), generator=torch.Generator().manual_seed(1))
    x, written = streams(model, ids, [2])
    exit_ = Exit(model, 2, frequent_tokens(written.flatten(), 30))
    rows, own = x[0].flatten(0, 1), written.flatten()

    def right():
        return (exit_.best(rows)[0] == own).float().mean().item()

    lens = right()
    losses = train_exit(exit_, rows, own, epochs=30, batch=128, lr=1e-2)
    assert len(losses) == 30 * 4 and losses[-1] < losses[0]
    assert right() > lens + 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert sum(p.numel() for p in exit_.parameters() if p.requires_grad) == 16 * 16 + 16 + 16 + 1


@pytest.mark.parametrize("depth", [0, 6])
def test_an_exit_stands_between_two_blocks(depth):
    """Behind none or behind all of them it would not be one."""
    with pytest.raises(ValueError, match="between 1 and 5 blocks"):
        Exit(toy_llama(SMALL), depth, torch.arange(3))


# --- decisions ---------------------------------------------------------------------------------------------


def test_the_first_sure_exit_decides():
    """By hand over three tokens: sure at once, sure at the second exit, never sure."""

    _, exits = model_and_exits()
    says = {2: ([1, 1, 1], [0.9, 0.2, 0.1]), 4: ([2, 2, 2], [0.9, 0.8, 0.3])}
    for exit_ in exits:
        exit_.best = lambda x, depth=exit_.depth: tuple(map(torch.tensor, says[depth]))
    token, depth = decide(exits, torch.zeros(2, 3, 16), torch.tensor([7, 8, 9]), threshold=0.8, layers=6)
    assert token.tolist() == [1, 2, 9] and depth.tolist() == [2, 4, 6]


def test_a_higher_threshold_never_writes_earlier():
    """Depth grows with the threshold, token by token; above 1 everything is the model's own."""
    model, exits = model_and_exits()
    x, written = streams(model, IDS, [2, 4])
    depths = [decide(exits, x[:, 0], written[0], threshold=t, layers=6).depth for t in (0.0, 0.1, 0.3, 0.5, 0.9, 1.01)]
    assert all((low <= high).all() for low, high in pairwise(depths))
    assert (depths[0] == 2).all() and (depths[-1] == 6).all() and depths[1].float().std() > 0


# --- generation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", ["copy", "later"])
def test_exits_that_are_never_sure_leave_the_text_as_it_was(skipped):
    """Token for token the model's own greedy text, 6 blocks each."""
    model, exits = model_and_exits()
    written = early_exit_generate(model, exits, IDS, 12, threshold=1.01, skipped=skipped)
    assert torch.equal(written.ids, generate(model, IDS, 12))
    assert written.depths == [6] * 12 and (written.blocks, written.checks, written.heads) == (72, 24, 12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whoever_waited_is_read_as_if_it_had_never_left(seed):
    """With "later", every token is what the exits say of the finished text, read in one pass by all layers."""
    model, exits = model_and_exits(seed=seed)
    threshold = middle_threshold(model, exits, generate(model, IDS, 20))
    written = early_exit_generate(model, exits, IDS, 20, threshold=threshold)
    x, own = streams(model, written.ids[:, :-1], [2, 4])
    token, depth = decide(exits, x[:, 0], own[0], threshold=threshold, layers=6)
    assert written.depths == depth[8:].tolist() and len(set(written.depths)) > 1
    assert torch.equal(written.ids[0, 9:], token[8:])


def test_the_cache_holds_the_models_own_keys_where_nobody_waits():
    """After a token that went through all layers, keys are those of a plain pass; copies are only in the
    first layer that was skipped, whose input is the stream at the exit itself."""
    model, exits = model_and_exits()
    plain = KVCache(model, 30)
    model.residual(IDS, plain)
    for copies in (False, True):
        reader = _Reader(model, exits, 30, 0.0, copies)
        for n in range(1, 10):
            reader.threshold = 1.01 if n == 9 else 0.0  # eight leave at the first exit, the last one goes through
            reader.read(IDS[:, n - 1 : n], n, Written(IDS))
        gap = (reader.cache.keys[:, :, :, :9] - plain.keys[:, :, :, :9]).abs().amax(dim=(1, 2, 3, 4))
        assert gap[:3].max() < 1e-5
        assert gap[3:].min() > 1e-2 if copies else gap[3:].max() < 1e-5


@pytest.mark.parametrize("skipped", ["copy", "later"])
def test_counted_flops_are_those_of_the_formula(skipped):
    """Blocks, copies, exits and heads of a run, counted by `Meter` while it runs."""
    model, exits = model_and_exits(tokens=torch.arange(0, 40, 2))
    threshold = middle_threshold(model, exits, generate(model, IDS, 20))
    with replace_attention(model, partial(attention, impl="naive")), Meter() as meter:
        written = early_exit_generate(model, exits, IDS[:, :1], 15, threshold=threshold, skipped=skipped)
    assert meter.flops == written.flops(SMALL, 20)
    assert (written.copies > 0) == (skipped == "copy") and len(set(written.depths)) > 1


def test_copies_save_work_and_waiting_only_puts_it_off():
    """All but the last token leave at the first exit: copies skip 4 of 6 blocks, who waited reads them in the end."""
    model, exits = model_and_exits()
    saved = {}
    for skipped in ("copy", "later"):
        reader, done = _Reader(model, exits, 30, 0.0, skipped == "copy"), Written(IDS)
        for n in range(1, 10):
            reader.threshold = 1.01 if n == 9 else 0.0
            reader.read(IDS[:, n - 1 : n], n, done)
        saved[skipped] = 6 * 9 - done.blocks
    assert saved == {"copy": 4 * 8, "later": 0}


@pytest.mark.parametrize("wrong", [{"skipped": "never"}, {"depths": (4, 2)}])
def test_other_ways_and_disorder_are_refused(wrong):
    """The message says what there is."""
    model, exits = model_and_exits(wrong.get("depths", (2, 4)))
    with pytest.raises(ValueError, match="'copy' or 'later', exits come in ascending depth"):
        early_exit_generate(model, exits, IDS, 2, threshold=0.5, skipped=wrong.get("skipped", "copy"))
