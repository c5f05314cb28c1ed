"""Deltas beside a frozen model: each equals its definition written out, counts what it trains, and leaves no trace."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from refimpl.models.bert import Bert, BertConfig
from refimpl.models.llama import KVCache, LlamaConfig, generate
from refimpl.models.toy import toy_llama
from refimpl.peft import IA3, Adapters, Delta, LoRA, LoRAExperts, LoRALinear, Prefix, SoftPrompt, swapped
from refimpl.peft.adapters import Bottleneck
from refimpl.peft.attach import LayerDelta, MergeableDelta, matching
from refimpl.peft.budget import gradient_bytes, layer_shapes, state_bytes, trained_numbers, training_bytes
from refimpl.peft.experts import ExpertsLinear
from refimpl.quantization import Int8Linear, QLoRALinear, nf4_linear, quantize_nf4, replaced_linears

CONFIG = LlamaConfig(2, 32, 4, 2, 8, 48, 97, 64, 100.0, 1e-5)
SMOLLM2 = LlamaConfig(30, 576, 9, 3, 64, 1536, 49_152, 8_192, 100_000.0, 1e-5)
FIVE = torch.tensor([[3, 1, 4, 1, 5]])
METHODS = {
    "lora": lambda m: LoRA(m, rank=3),
    "adapters": lambda m: Adapters(m, width=5),
    "prefix": lambda m: Prefix(m, FIVE),
    "prompt": lambda m: SoftPrompt(m, FIVE),
    "experts": lambda m: LoRAExperts(m, experts=3, rank=2),
    "ia3": IA3,
}
SIZES = {"lora": 3, "adapters": 5, "prefix": 5, "prompt": 5, "experts": 2, "ia3": 0}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def model():
    return toy_llama(CONFIG)


@pytest.fixture
def ids():
    return torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))


def stirred(delta, seed=7):
    """The same delta with other numbers, none of them where it started."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in delta.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.2)
    return delta


# --- what holds for every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_changes_the_output_within_the_with_and_nothing_after_it(name, model, ids):
    """Also when the body fails: the same modules, the same bits, the same weights."""
    delta, plain = stirred(METHODS[name](model)), model(ids)
    weights = {n: w.clone() for n, w in model.state_dict().items()}
    before = dict(model.named_modules())
    with pytest.raises(KeyError), delta.attached(model):
        assert not torch.allclose(model(ids), plain, atol=1e-3)
        raise KeyError
    assert torch.equal(model(ids), plain)
    assert dict(model.named_modules()) == before and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


@pytest.mark.parametrize("name", ["lora", "adapters", "experts", "ia3"])
def test_an_untrained_delta_of_layers_is_the_identity(name, model, ids):
    """B, W_up and the experts' B are zero, the vectors of (IA)³ one."""
    with METHODS[name](model).attached(model):
        inside = model(ids)
    assert_close(inside, model(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_delta_and_nothing_else(name, model, ids):
    """After a backward pass all of a stirred delta's tensors have gradients, the model's none."""
    delta = stirred(METHODS[name](model))
    with delta.attached(model):
        model(ids).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in delta.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_numbers_bytes_and_states_are_counted_as_the_formulas_say(name, model, ids):
    """Trained numbers, gradients and Adam's state of one step, to the byte."""
    delta = METHODS[name](model)
    numbers = trained_numbers(name, CONFIG, size=SIZES[name], experts=3)
    adam, tensors = torch.optim.Adam(delta.parameters()), len(list(delta.parameters()))
    with delta.attached(model):
        model(ids).square().mean().backward()
        adam.step()
    frozen = sum(p.numel() for p in model.parameters())
    want = training_bytes(frozen, numbers, tensors=tensors)
    assert delta.numbers == numbers
    assert (gradient_bytes(delta.parameters()), state_bytes(adam)) == (want.gradients, want.optimizer)
    assert want.weights == sum(p.nbytes for m in (model, delta) for p in m.parameters())
    assert want.total == 4 * frozen + 16 * numbers + 4 * tensors


def test_the_formulas_give_the_published_sizes():
    """SmolLM2, rank 8 on W_q and W_v: 460,800 numbers. GPT-3's 12,288 wide attention, rank 4: 18 million, 35 MB."""
    assert trained_numbers("lora", SMOLLM2) == 460_800
    gpt3 = LlamaConfig(96, 12_288, 96, 96, 128, 49_152, 50_257, 2_048, 10_000.0, 1e-5)
    assert 2 * trained_numbers("lora", gpt3, size=4) == pytest.approx(35 * 2**20, rel=0.03)  # Hu et al., section 4.2
    assert trained_numbers("lora", gpt3, size=4) == pytest.approx(18e6, rel=0.05)
    with pytest.raises(ValueError, match="'bitfit' is unknown; choose one of lora"):
        trained_numbers("bitfit", SMOLLM2)


def test_the_shapes_of_a_block_are_those_of_the_model(model):
    """Seven matrices, name by name."""
    block = model.layers[0]
    for name, shape in layer_shapes(CONFIG).items():
        owner = block.self_attn if hasattr(block.self_attn, name) else block.mlp
        assert getattr(owner, name).weight.shape == shape


def test_a_target_that_no_layer_has_is_refused_with_those_there_are(model):
    """A typing error must not train nothing in silence."""
    with pytest.raises(ValueError, match=r"ends in q_porj; the model has: .*q_proj"):
        LoRA(model, targets=("q_porj",))
    with pytest.raises(ValueError, match="ends in nothing"):
        matching(nn.Identity(), ())


def test_bases_that_say_nothing_are_refused(model):
    """An unfinished method names what it lacks."""
    with pytest.raises(NotImplementedError, match="give it `attached`"):
        Delta().attached(model)
    with pytest.raises(NotImplementedError, match="give it `wrap`"):
        LayerDelta().wrap(0, model)
    with pytest.raises(NotImplementedError, match="give it `merged_weight`"):
        MergeableDelta().merged_weight(0, torch.zeros(1, 1))


def test_two_deltas_stand_in_one_layer(model, ids):
    """LoRA inside (IA)³ on v_proj: (W x + B A x) times the vector; both gone afterwards."""
    lora, ia3 = stirred(LoRA(model, rank=2, targets=("0.self_attn.v_proj",))), stirred(IA3(model))
    layer = model.layers[0].self_attn.v_proj
    with lora.attached(model), ia3.attached(model):
        x = normal(2, 3, 32, dtype=torch.float32)
        i = ia3.names.index("layers.0.self_attn.v_proj")
        want = (layer(x) + lora.scale * x @ lora.a[0].T @ lora.b[0].T) * ia3.vectors[i]
        assert_close(model.layers[0].self_attn.v_proj(x), want)
    assert model.layers[0].self_attn.v_proj is layer


def test_swapping_what_is_not_there_changes_nothing(model):
    """The missing name is found before the first module is replaced."""
    layer = model.layers[0].mlp
    with pytest.raises(AttributeError), swapped(model, {"layers.0.mlp": nn.Identity(), "layers.0.mpl": nn.Identity()}):
        pass
    assert model.layers[0].mlp is layer


# --- LoRA ------------------------------------------------------------------------------------------------------------


def layer64(rank=3, out=10, inner=7, **options):
    linear = nn.Linear(inner, out, dtype=torch.float64).requires_grad_(False)
    a, b = (nn.Parameter(normal(*s, seed=i)) for i, s in enumerate([(rank, inner), (out, rank)]))
    return LoRALinear(linear, a, b, 0.5, **options)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_merged_equals_unmerged_to_rounding_in_float64(out, inner, rank):
    """h = W x + s B A x in two ways, any sizes, ranks above the full one included."""
    layer, x = layer64(rank, out, inner), normal(2, 3, inner, seed=5)
    beside = layer(x)
    want = x @ (layer.base.weight + 0.5 * layer.b @ layer.a).T + layer.base.bias
    layer.merge()
    assert_close(beside, want, rtol=0, atol=1e-13)
    assert_close(layer(x), beside, rtol=0, atol=1e-13)


def test_unmerging_gives_the_weights_back_to_rounding_only():
    """In float64 within an ulp or two; in bfloat16 some weights are lost, which is why `merged` keeps W."""
    layer = layer64()
    before = layer.base.weight.clone()
    layer.merge()
    layer.unmerge()
    assert_close(layer.base.weight, before, rtol=0, atol=1e-15)
    assert not layer.is_merged
    half = layer64().to(torch.bfloat16)
    half.base.weight.mul_(0.01)
    before = half.base.weight.clone()
    half.merge()
    half.unmerge()
    assert not torch.equal(half.base.weight, before)


def test_merging_twice_and_unmerging_first_are_refused():
    """The delta would be in the weights twice, or minus once."""
    layer = layer64()
    with pytest.raises(ValueError, match="not merged"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(ValueError, match="already merged"):
        layer.merge()
    with pytest.raises(TypeError, match="Identity has no weights"):
        LoRALinear(nn.Identity(), layer.a, layer.b).merge()


def test_gradients_of_input_and_factors_are_right():
    """gradcheck in float64, shares per text included."""
    layer, x = layer64(share=normal(2, 3, seed=9)), normal(2, 4, 7, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.a, layer.b))
    with pytest.raises(ValueError, match="no one matrix"):
        _ = layer.delta


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_merged_model_says_the_same_with_the_layers_of_the_plain_one(name, model, ids):
    """No module more than before, the output of the attached delta, and the weights untouched."""
    delta, plain = stirred(METHODS[name](model)), model(ids)
    kinds = {n: type(m) for n, m in model.named_modules()}
    with delta.attached(model):
        beside = model(ids)
    with delta.merged(model):
        assert {n: type(m) for n, m in model.named_modules()} == kinds
        assert_close(model(ids), beside, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(ids), plain)


def test_quantized_layers_take_lora_beside_and_not_inside(model):
    """Over NF4 weights it is QLoRALinear's output; merging them is refused, as is an int8 layer."""
    linear, x = nn.Linear(32, 16, bias=False), normal(4, 32, dtype=torch.float32)
    theirs = QLoRALinear(linear, rank=4, alpha=8, seed=1)
    theirs.lora_b.data.copy_(normal(16, 4))

    class NF4Layer(nn.Module):
        def forward(self, x):
            return nf4_linear(x, quantize_nf4(linear.weight.detach()))

    assert_close(LoRALinear(NF4Layer(), theirs.lora_a, theirs.lora_b, 2)(x), theirs(x))
    lora = LoRA(model)
    with replaced_linears(model, lambda name, layer: Int8Linear(layer)):
        with lora.attached(model):
            model(FIVE)
        with pytest.raises(TypeError, match="q_proj is a Int8Linear"):
            lora.merged(model)


def test_lora_enters_an_encoder_as_well():
    """Any model with linear layers: here a BERT, whose biases stay when merged."""
    bert = Bert(BertConfig(2, 16, 2, 32, 50, 20, 1e-12)).requires_grad_(False)
    lora = stirred(LoRA(bert, rank=2, targets=("query", "value")))
    with lora.attached(bert):
        beside = bert(FIVE)
    with lora.merged(bert):
        assert_close(bert(FIVE), beside, rtol=1e-4, atol=1e-4)
    assert len(lora.names) == 4 and not torch.allclose(bert(FIVE), beside, atol=1e-3)


@pytest.mark.peers
def test_peft_of_the_library_gives_the_same_output():
    """The package peft with our factors copied into its own layers: the same logits, attached and merged."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    net = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5)).requires_grad_(False)
    lora, x = stirred(LoRA(net, rank=2, alpha=6, targets=("0", "2"))), normal(3, 12, dtype=torch.float32)
    with lora.attached(net):
        ours = net(x)
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"]))
    for i, name in enumerate(lora.names):
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(lora.a[i])
        layer.lora_B["default"].weight.data.copy_(lora.b[i])
    assert_close(theirs(x), ours)
    assert_close(theirs.merge_and_unload()(x), ours)


# --- adapters, experts, (IA)³ ----------------------------------------------------------------------------------------


def test_an_adapter_is_its_formula_and_differentiable():
    """h + W_up gelu(W_down h + c) + e, against torch's own layers; gradcheck in float64."""
    ours = Bottleneck(6, 3, torch.Generator().manual_seed(0)).double()
    for i, p in enumerate(ours.parameters()):
        p.data.copy_(normal(*p.shape, seed=i))
    down, up = nn.Linear(6, 3).double(), nn.Linear(3, 6).double()
    for layer, weight, bias in ((down, ours.down, ours.down_bias), (up, ours.up, ours.up_bias)):
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
    h = normal(2, 4, 6, seed=8).requires_grad_()
    assert_close(ours(h), h + up(nn.functional.gelu(down(h))), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(ours, h)


@given(st.integers(1, 5), st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_experts_are_a_sum_over_the_chosen_ones_written_as_a_loop(choices, tokens):
    """Token by token and expert by expert, every number of choices, no token at all included."""
    gate, a, b = normal(5, 6), normal(5, 6, 2, seed=1), normal(5, 2, 4, seed=2)
    base, x = nn.Linear(6, 4).double(), normal(1, tokens, 6, seed=3)
    layer = ExpertsLinear(base, gate, a, b, choices=choices, scale=0.5)
    want = base(x).clone()
    for t in range(tokens):
        scores = gate @ x[0, t]
        best = scores.argsort(descending=True)[:choices]
        weight = scores[best].softmax(0) if choices > 1 else scores.softmax(0)[best]
        for e, w in zip(best, weight, strict=True):
            want[0, t] += 0.5 * w * (x[0, t] @ a[e] @ b[e])
    assert_close(layer(x), want, rtol=0, atol=1e-12)
    assert layer.routing.expert.shape == (tokens, choices)


def test_ia3_scales_what_it_says(model):
    """Keys and values after their layer, the inside of the feed-forward block before down_proj."""
    delta = stirred(IA3(model))
    attention, mlp, x = model.layers[1].self_attn, model.layers[1].mlp, normal(2, 48, dtype=torch.float32)
    k = delta.vectors[delta.names.index("layers.1.self_attn.k_proj")]
    inside = delta.vectors[delta.names.index("layers.1.mlp.down_proj")]
    want = attention.k_proj(x[:, :32]) * k, mlp.down_proj(x * inside)
    with delta.attached(model):
        assert_close((attention.k_proj(x[:, :32]), mlp.down_proj(x)), want)


# --- prefix and soft prompt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Prefix, SoftPrompt])
def test_read_from_a_text_both_are_that_text_in_front(method, model, ids):
    """The logits of the text after these five tokens, as the model itself gives them; a batch of three."""
    want = model(torch.cat((FIVE.expand(3, -1), ids), dim=1))[:, 5:]
    with method(model, FIVE).attached(model):
        assert_close(model(ids), want, rtol=1e-4, atol=1e-4)


def test_a_prefix_is_attention_over_joined_keys_by_hand(model):
    """Any keys and values: softmax over prefix and own past, query by query, in float64; GQA's heads included."""
    delta, seen = stirred(Prefix(model, FIVE)), {}
    attention = model.layers[1].self_attn
    plain = attention.attend
    with delta.attached(model):
        q, k, v = normal(1, 4, 3, 8), normal(1, 2, 3, 8, seed=1), normal(1, 2, 3, 8, seed=2)
        out = attention.attend(q, k, v, causal=True)
    keys, values = (p[1].double() for p in (delta.keys, delta.values))
    for head in range(4):
        for i in range(3):
            all_k, all_v = (torch.cat((p[head // 2], x[0, head // 2, : i + 1])) for p, x in ((keys, k), (values, v)))
            want = (all_k @ q[0, head, i] / 8**0.5).softmax(0) @ all_v
            assert_close(out[0, head, i], want, rtol=0, atol=1e-12)
    assert attention.attend is plain and not seen


def test_a_soft_prompt_is_embeddings_joined_by_hand(model, ids):
    """Any rows: the blocks run over [P; embeddings] with positions from 0, the text's part kept."""
    delta = stirred(SoftPrompt(model, FIVE))
    x = torch.cat((delta.embeddings.expand(3, -1, -1), model.embed_tokens(ids)), dim=1)
    for block in model.layers:
        x = block(x, torch.arange(16))
    with delta.attached(model):
        assert_close(model(ids), model.head(x)[:, 5:], rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="has a soft prompt already"), delta.attached(model):
            pass


@pytest.mark.parametrize("name", METHODS)
def test_decoding_with_a_cache_goes_on_as_without(name, model):
    """Prefill and steps give the tokens of full recomputation; the prompt is read once."""
    delta, ids = stirred(METHODS[name](model)), torch.tensor([[2, 7, 1, 8]])
    with delta.attached(model), torch.no_grad():
        whole, cache, read = generate(model, ids, 6, use_cache=False), KVCache(model, 20), ids
        for _ in range(6):
            chosen = model(read, cache, last=1)[:, -1].argmax(-1, keepdim=True)
            ids, read = torch.cat((ids, chosen), dim=1), chosen
    assert torch.equal(ids, whole)
    assert cache.length == 9 + (5 if name == "prompt" else 0)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
def test_a_prefix_is_a_filled_cache_in_transformers(model, ids):
    """Its Llama with our keys and values as past and positions from 0: our logits, as its own prefix tuning does."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers: pip install '.[peers]'")
    from transformers import DynamicCache

    from refimpl.tests.test_kv_cache_eviction import transformers_model

    delta, theirs = stirred(Prefix(model, FIVE)), transformers_model(model)
    past = DynamicCache()
    for i in range(CONFIG.layers):
        past.update(*(p[i].detach().expand(3, -1, -1, -1) for p in (delta.keys, delta.values)), i)
    with torch.no_grad(), delta.attached(model):
        wanted = theirs(ids, past_key_values=past, position_ids=torch.arange(11).expand(3, -1)).logits
        assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)
