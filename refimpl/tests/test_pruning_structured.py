"""Whole parts: gates from outside, the smaller model with the same logits, and gates that are trained to a shape."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from refimpl.language_modelling import next_token_loss
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.pruning import (
    Gates,
    HardConcrete,
    Shearing,
    channel_norms,
    cut,
    dynamic_batch_loading,
    gate_gradients,
    gated,
    head_norms,
    layer_influence,
    loss_difference,
    open_gates,
    sample_domains,
    update_weight,
)
from refimpl.pruning.hard_concrete import BETA, GAMMA, ZETA

CONFIG = LlamaConfig(3, 32, 8, 4, 8, 20, 61, 64, 100.0, 1e-5)  # two query heads read each key/value head
IDS = torch.arange(18).view(2, 9)


def gates(config=CONFIG, seed=0):
    """Two of three layers, 2 of 4 heads, 7 of 20 channels, 19 of 32 features; kept gates between 0.5 and 1.5."""
    rng = torch.Generator().manual_seed(seed)

    def some(rows, size, keep):
        chosen = torch.rand(rows, size, generator=rng).argsort(1)[:, :keep]
        values = 0.5 + torch.rand(rows, size, generator=rng)
        return torch.zeros(rows, size).scatter_(1, chosen, 1.0) * values

    n = config.layers
    return Gates(
        some(1, n, 2)[0], some(n, config.kv_heads, 2), some(n, config.ffn, 7), some(1, config.model, 19)[0],
    )  # fmt: skip


# --- gates and cutting -----------------------------------------------------------------------------------------------


def test_open_gates_change_nothing_and_closed_layers_are_gone():
    """All ones: the same logits. A layer's gate at 0: the model without that layer. Hooks are gone afterwards."""
    lm = toy_llama(CONFIG)
    with gated(lm, open_gates(CONFIG)):
        assert torch.equal(lm(IDS), without := toy_llama(CONFIG)(IDS))
    with gated(lm, Gates(layers=torch.tensor([1.0, 0.0, 1.0]))):
        closed = lm(IDS)
    del lm.layers[1]
    assert_close(closed, lm(IDS))
    assert (closed - without).abs().max() > 0.1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.modules())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kinds", [("layers",), ("heads",), ("ffn",), ("model",), ("layers", "heads", "ffn", "model")])
def test_the_cut_model_has_the_gated_models_logits(tied, kinds):
    """Gates neither 0 nor 1, grouped heads, norms not 1, a large epsilon; doubles, but norms compute in float32."""
    config = replace(CONFIG, tied=tied, norm_eps=1e-2)
    lm = toy_llama(config).double()
    for name, p in lm.named_parameters():
        if p.ndim == 1:
            p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5)
    chosen = Gates(**{kind: getattr(gates(), kind).double() for kind in kinds})
    with gated(lm, chosen):
        expected = lm(IDS)
    small = cut(lm, chosen)
    assert_close(small(IDS), expected, rtol=1e-5, atol=1e-5)


def test_the_cut_model_has_the_shape_of_the_gates():
    """2 layers, 2 groups of 2 heads, 7 channels, 19 features, and the parameters of such a model."""
    small = cut(toy_llama(CONFIG), gates())
    c = small.config
    assert (c.layers, c.heads, c.kv_heads, c.ffn, c.model, c.dim) == (2, 4, 2, 7, 19, 8)
    per_layer = 19 * 8 * (2 * 4 + 2 * 2) + 3 * 19 * 7 + 2 * 19
    assert sum(p.numel() for p in small.parameters()) == 61 * 19 + 2 * per_layer + 19


def test_layers_of_different_sizes_cannot_be_cut():
    """Gates mask them all the same; matrices of one size cannot hold them. A wrong shape is named, too."""
    ragged = gates()
    ragged.heads[0, :] = 1.0
    ragged.layers[0] = 1.0
    with pytest.raises(ValueError, match="same number of heads"):
        cut(toy_llama(CONFIG), ragged)
    with (
        pytest.raises(ValueError, match=r"ffn of this model have the shape \(3, 20\)"),
        gated(toy_llama(CONFIG), Gates(ffn=torch.ones(20))),
    ):
        pass


# --- scores ----------------------------------------------------------------------------------------------------------


def test_gate_gradients_are_the_slope_of_the_loss():
    """Central differences of the loss in one gate of each kind. The norms' float32 allows no smaller step."""
    lm = toy_llama(CONFIG).double()
    found, step = gate_gradients(lm, IDS[:1]), 1e-2
    for kind, where in {"layers": (1,), "heads": (0, 2), "ffn": (2, 5), "model": (3,)}.items():
        losses = []
        for sign in (1, -1):
            moved = torch.ones_like(getattr(found, kind), dtype=torch.float64)
            moved[where] += sign * step
            with gated(lm, Gates(**{kind: moved})):
                losses.append(next_token_loss(lm(IDS[:1]), IDS[:1]).item())
        slope = abs(losses[0] - losses[1]) / (2 * step)
        assert getattr(found, kind)[where].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_head_and_channel_norms_are_what_the_parts_add():
    """The difference of a layer's output with and without one part, measured at the first layer."""
    lm = toy_llama(CONFIG)
    x = lm.layers[0].input_layernorm(lm.embed_tokens(IDS))
    positions = torch.arange(IDS.shape[1])

    def attention(gate):
        with gated(lm, Gates(heads=gate)):
            return lm.layers[0].self_attn(x, positions)

    without = torch.ones(3, 4)
    without[0, 2] = 0
    lost = (attention(torch.ones(3, 4)) - attention(without)).norm(dim=-1)
    assert_close(head_norms(lm, IDS)[0, 2], lost.square().mean().sqrt(), rtol=1e-4, atol=1e-6)
    assert channel_norms(lm, IDS).shape == (3, 20)
    stream = lm.residual(IDS, depth=1)
    before = stream - lm.layers[0].mlp(lm.layers[0].post_attention_layernorm(_after_attention(lm)))
    h = lm.layers[0].post_attention_layernorm(before)
    inside = torch.nn.functional.silu(lm.layers[0].mlp.gate_proj(h)) * lm.layers[0].mlp.up_proj(h)
    lost = (inside[..., 5:6] * lm.layers[0].mlp.down_proj.weight[:, 5]).norm(dim=-1)
    assert_close(channel_norms(lm, IDS)[0, 5], lost.square().mean().sqrt(), rtol=1e-3, atol=1e-6)


def _after_attention(lm):
    x = lm.embed_tokens(IDS)
    return x + lm.layers[0].self_attn(lm.layers[0].input_layernorm(x), torch.arange(IDS.shape[1]))


def test_a_layer_that_adds_nothing_has_no_influence():
    """One minus the cosine of what goes in and what comes out."""
    lm = toy_llama(CONFIG)
    for part in (lm.layers[1].self_attn.o_proj, lm.layers[1].mlp.down_proj):
        part.weight.zero_()
    found = layer_influence(lm, IDS)
    assert found[1].abs() < 1e-6 and found[0] > 0.01 and found[2] > 0.01


# --- hard-concrete gates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_the_expected_l0_is_the_share_of_draws_above_zero(log_alpha):
    """200,000 draws against the closed form, within 4 standard errors; also P(z = 1) by the concrete's distribution."""
    gate = HardConcrete(200_000)
    gate.log_alpha.data.fill_(log_alpha)
    z = gate.sample(torch.Generator().manual_seed(0)).detach()
    for share, p in [
        ((z > 0).float().mean().item(), gate.expected()[0].item()),
        ((z == 1).float().mean().item(), 1 / (1 + math.exp(BETA * math.log((1 - GAMMA) / (ZETA - 1)) - log_alpha))),
    ]:
        assert abs(share - p) < 4 * (p * (1 - p) / 200_000) ** 0.5
    assert z.min() == 0 and z.max() == 1


def test_the_closed_form_equals_the_integral_of_the_concrete_density():
    """P(s > -gamma / (zeta - gamma)) by the distribution function of the concrete variable, Louizos et al. 2018."""
    gate, cut_at = HardConcrete(5), -GAMMA / (ZETA - GAMMA)
    gate.log_alpha.data.copy_(torch.linspace(-4, 4, 5))
    logit = math.log(cut_at) - math.log(1 - cut_at)
    assert_close(gate.expected(), 1 - (BETA * logit - gate.log_alpha).sigmoid())


def test_gates_start_open_and_learn():
    """The start is as asked, and a penalty on the expected L0 has a gradient in every gate."""
    assert_close(HardConcrete(50, open_at=0.9).expected(), torch.full((50,), 0.9))
    gate = HardConcrete(50)
    assert (gate.typical() == 1).all()
    gate.expected().sum().backward()
    assert (gate.log_alpha.grad > 0).all()


# --- shearing --------------------------------------------------------------------------------------------------------

TARGET = replace(CONFIG, layers=2, heads=4, kv_heads=2, ffn=7, model=19)


def test_the_penalty_vanishes_at_the_target_and_the_multipliers_climb():
    """By hand for one kind: gap in shares, lambda gap + phi gap²; its slope in lambda is the gap itself."""
    shearing = Shearing(CONFIG, TARGET)
    with torch.no_grad():
        shearing.lagrange["layers"].copy_(torch.tensor([0.5, 2.0]))
    shearing.penalty().backward()
    gap = (shearing.open_parts()["layers"].item() - 2) / 3
    assert shearing.penalty().item() == pytest.approx(0.5 * gap + 2 * gap**2, rel=1e-5)
    assert shearing.lagrange["layers"].grad.tolist() == pytest.approx([gap, gap**2], rel=1e-5)
    assert abs(shearing.penalty(progress=0).item()) < abs(shearing.penalty().item())


@pytest.fixture(scope="module")
def sheared():
    """Gates pressed to the target for 300 steps by a loss that says what each part is worth, and those worths."""
    shearing, rng = Shearing(CONFIG, TARGET), torch.Generator().manual_seed(0)
    worth = {kind: torch.rand(gate.log_alpha.shape, generator=rng) / 10 for kind, gate in shearing.gates.items()}
    down = torch.optim.Adam(shearing.log_alphas(), lr=0.1)
    up = torch.optim.Adam(shearing.multipliers(), lr=1.0, maximize=True)
    for step in range(300):
        loss = sum((worth[kind] * (1 - z)).sum() for kind, z in vars(shearing.sample(rng)).items())
        (loss + shearing.penalty(min(1.0, step / 150))).backward()
        for optimizer in (down, up):
            optimizer.step()
            optimizer.zero_grad()
    return shearing, worth


def test_multipliers_bring_every_expected_count_to_its_target(sheared):
    """Within 5 % of the source's parts, in every layer."""
    shearing, _ = sheared
    for kind, found in shearing.open_parts().items():
        most = shearing.gates[kind].log_alpha.shape[-1]
        assert ((found - shearing.wanted[kind]).abs() / most).max() < 0.05, kind


def test_the_gates_that_stay_are_those_of_the_parts_that_matter(sheared):
    """Worth of what stays, over all kinds: nearer to the best choice of so many parts than to the average one."""
    shearing, worth = sheared
    found = best = average = 0.0
    for kind, gate in vars(shearing.rounded()).items():
        value = worth[kind].view(-1, gate.shape[-1])
        found += worth[kind][gate > 0].sum()
        best += value.topk(shearing.wanted[kind], dim=1).values.sum()
        average += value.mean() * (gate > 0).sum()
    assert found > (best + average) / 2


@pytest.mark.parametrize("trained", [False, True])
def test_after_rounding_the_shape_is_exactly_the_target(sheared, trained):
    """Before training and after it; the cut model has the target's sizes and the gated model's logits."""
    lm = toy_llama(CONFIG)
    chosen = (sheared[0] if trained else Shearing(CONFIG, TARGET)).rounded()
    small = cut(lm, chosen)
    assert replace(small.config, norm_eps=TARGET.norm_eps) == TARGET
    blank = Llama(TARGET).state_dict()
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in blank.items()}
    with gated(lm, chosen):
        assert_close(small(IDS), lm(IDS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"layers": 4}, {"kv_heads": 4, "heads": 4}, {"dim": 4}])
def test_a_target_that_cannot_be_cut_is_refused(wrong):
    """More layers than there are; groups of another size; narrower heads."""
    with pytest.raises(ValueError, match="Shearing"):
        Shearing(CONFIG, replace(TARGET, **wrong))


# --- dynamic batch loading -------------------------------------------------------------------------------------------


def test_weights_follow_w_exp_delta_by_hand():
    """w = (.5, .3, .2), losses 2.0, 3.0, 1.0 against 1.5, 2.0, 1.2: differences .5, 1, 0."""
    delta = loss_difference(torch.tensor([2.0, 3.0, 1.0]), torch.tensor([1.5, 2.0, 1.2]))
    assert delta.tolist() == [0.5, 1.0, 0.0]
    a = [0.5 * math.exp(0.5), 0.3 * math.exp(1.0), 0.2]
    assert update_weight(torch.tensor([0.5, 0.3, 0.2]), delta).tolist() == pytest.approx([x / sum(a) for x in a])


def test_a_domain_of_weight_zero_stays_out_and_huge_differences_do_not_overflow():
    """exp(1000) is infinite; the proportion is not."""
    w = update_weight(torch.tensor([0.0, 0.5, 0.5]), torch.tensor([5.0, 1000.0, 0.0]))
    assert w.tolist() == [0.0, 1.0, 0.0]


def test_domains_are_drawn_in_proportion():
    """100,000 draws, chi-square with two degrees of freedom below its 99.9 % point."""
    w = torch.tensor([0.7, 0.2, 0.1])
    counts = torch.bincount(sample_domains(w, 100_000, torch.Generator().manual_seed(0)), minlength=3)
    assert ((counts - 100_000 * w).square() / (100_000 * w)).sum() < 13.8


def test_algorithm_1_updates_every_m_steps_from_the_weights_before():
    """Seven steps, m = 3: updates at 3 and 6, before that step's batch; the second starts from the first's weights."""
    seen, order = [], []

    def train(domains):
        seen.append(domains)
        order.append("train")

    def validate():
        order.append("validate")
        return [2.0, 1.0]

    updates = list(
        dynamic_batch_loading(train, validate, [1.5, 1.0], [3, 1], steps=7, interval=3, batch=5, rng=torch.Generator())
    )
    assert order == ["train"] * 2 + ["validate"] + ["train"] * 3 + ["validate"] + ["train"] * 2
    assert [u.step for u in updates] == [3, 6] and all(len(x) == 5 for x in seen) and len(seen) == 7
    grow = math.exp(0.5)
    first = 3 * grow / (3 * grow + 1)
    assert updates[0].weights[0] == pytest.approx(first)
    assert updates[1].weights[0] == pytest.approx(first * grow / (first * grow + 1 - first))


def test_constant_loading_never_validates():
    """interval beyond the steps; a weight per domain is asked for."""
    steps = []
    run = dynamic_batch_loading(steps.append, lambda: 1 / 0, [1.0], [1.0], steps=4, interval=5, batch=2)
    assert list(run) == [] and len(steps) == 4
    with pytest.raises(ValueError, match="every domain needs a weight"):
        list(dynamic_batch_loading(steps.append, lambda: [1.0], [1.0, 2.0], [1.0], steps=1, interval=1, batch=1))
