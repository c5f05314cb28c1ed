"""The planner has every cell of the published tables, finds their slips, and agrees with autograd and with FSDP2."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name everyone uses

from refimpl.cost_model import OPT, ModelShape, parameters
from refimpl.language_modelling import next_token_loss
from refimpl.meter import Memory, saved_for_backward
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.toy import TOY, toy_llama
from refimpl.parallel import fake_group, fpdt, plan_tables, ring, tensor, ulysses
from refimpl.parallel.accounting import Account, all_reduce_bytes
from refimpl.parallel.hardware import A100_80GB, H100_80GB, Hardware, Methods
from refimpl.parallel.pipeline import LlamaStage, Pipeline
from refimpl.parallel.plan_memory import host_bytes, kept_per_token, largest_matrix, moments, peak, state_bytes
from refimpl.parallel.plan_tables import LLAMA3_8B, LLAMA3_405B, LLAMA3_TABLE, LLAMA_7B, STRATEGIES
from refimpl.parallel.planner import longest, plan, step_cost, traffic
from refimpl.parallel.tests.ranks import run_ranks
from refimpl.roofline import Machine

SMALL = ModelShape(layers=4, model=64, heads=8, kv_heads=4, vocab=100, gated=True, tied=False)
GB = 10**9


def fullest(model, methods, **sizes):
    """Bytes at the fullest moment."""
    of = moments(model, methods, **sizes)
    return sum(of[peak(of)].values())


# --- ZeRO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", plan_tables.zero_table(), ids=lambda c: f"{c.size}-{c.ranks}-stage{c.stage}")
def test_each_cell_of_the_zero_table_follows_from_the_formula(cell):
    """Half up for 7.5B, truncated for 128B and 1T, to the digits that are printed."""
    assert cell.rounded == cell.printed


def test_no_single_rule_of_rounding_gives_the_zero_table():
    """Half up gives 46 of 54 cells, truncation 47, half to even 45; the table's own two rules give all."""
    agree = {
        rule: sum(cell.rounded == cell.printed for cell in plan_tables.zero_table(rule))
        for rule in ("ROUND_HALF_UP", "ROUND_DOWN", "ROUND_HALF_EVEN", None)
    }
    assert agree == {"ROUND_HALF_UP": 46, "ROUND_DOWN": 47, "ROUND_HALF_EVEN": 45, None: 54}


def test_four_32_gb_gpus_hold_7_5b_with_2_gb_left_and_64_hold_128b_with_none():
    """The lecture's two examples: what is left is for activations, and in the second nothing is."""
    assert 32 - plan_tables.zero_cell("7.5B", 4, 3) == 2
    assert 32 - plan_tables.zero_cell("128B", 64, 3) == 0


@pytest.mark.parametrize("stage,factor", [(0, 16), (1, 7), (2, 5.5), (3, 4)])
def test_states_on_four_ranks_take_16_7_5_5_and_4_bytes_per_parameter(stage, factor):
    """(2 + 2 + 12) Ψ, and a quarter of what is sharded: first the optimizer's, then gradients, then weights."""
    states = state_bytes(1000, ranks=4, stage=stage)
    assert sum(states.values()) == factor * 1000
    sharded = {"momentum": stage >= 1, "variance": stage >= 1, "master weights": stage >= 1}
    sharded |= {"gradients": stage >= 2, "weights": stage >= 3}
    whole = state_bytes(1000)
    assert states == {name: whole[name] // 4 if cut else whole[name] for name, cut in sharded.items()}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 64), st.sampled_from(["adam", "sgd", "sgd with momentum"]))
def test_a_higher_stage_and_more_ranks_never_take_more_state_bytes(count, ranks, optimizer):
    """And the shards of all ranks together hold every parameter, padded by less than one per rank."""
    sums = [
        sum(state_bytes(count, ranks=ranks, stage=stage, optimizer=optimizer).values()) for stage in range(4)
    ]  # fmt: skip
    assert sums == sorted(sums, reverse=True)
    more = sum(state_bytes(count, ranks=ranks + 1, stage=3, optimizer=optimizer).values())
    assert more <= sums[3]
    assert sums[0] <= ranks * sums[3] < sums[0] + ranks * 16


# --- FSDP2 under a fake process group --------------------------------------------------------------------------------


def test_fsdp2_cuts_rows_so_that_the_first_ranks_carry_more_and_the_last_may_carry_nothing():
    """Real shards on 1,024 ranks equal the formula of ceil(rows / N) to the element; here the last rank has none."""
    shape = ModelShape(layers=2, model=640, heads=1)
    found = fake_group.measure(shape, [3, 1024])
    assert found == {n: tuple(fake_group.predicted(shape, n, rank) for rank in (0, n - 1)) for n in (3, 1024)}
    assert found[1024][1] == 0
    share = sum(parameters(shape).values()) / 1024
    assert found[1024][0] / share == pytest.approx(4 / 3)  # 1,920 rows in pieces of 2, 640 of 1, 2,560 of 3, 640 of 1


@pytest.mark.slow
@pytest.mark.parametrize("size", fake_group.SHAPES)
def test_stage_3_of_the_zero_table_is_what_fsdp2_shards_to_within_the_padding(size):
    """7.5B, 128B and 1T on up to 1,024 ranks: rank 0 has the formula's share and at most one row more per matrix."""
    shape, ranks = fake_group.SHAPES[size], list(plan_tables.ZERO)
    count = sum(parameters(shape).values())
    assert count == pytest.approx(plan_tables.SIZES[size], rel=5e-4)
    for n, (first, last) in fake_group.measure(shape, ranks).items():
        assert (first, last) == tuple(fake_group.predicted(shape, n, rank) for rank in (0, n - 1))
        padding = shape.layers * sum(columns for _, columns in fake_group.matrices(shape))  # one row of each matrix
        assert last <= count / n <= first <= count / n + padding


@pytest.mark.parametrize("ranks", [1, 3, 7, 64, 1024])
def test_the_predicted_shards_of_all_ranks_make_the_whole_model(ranks):
    """No row is lost, none is held twice, and no rank has more than the first."""
    shape = fake_group.SHAPES["7.5B"]
    shards = [fake_group.predicted(shape, ranks, rank) for rank in range(ranks)]
    assert sum(shards) == sum(parameters(shape).values())
    assert shards == sorted(shards, reverse=True)


def test_a_failing_measurement_says_what_was_run_and_why_it_failed():
    """A group of no ranks is refused by PyTorch; its words arrive."""
    with pytest.raises(RuntimeError, match=r"-m refimpl.parallel.fake_group 1 8 0 ended with 1"):
        fake_group.measure(ModelShape(layers=1, model=8, heads=1), [0])


# --- LOMO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", plan_tables.LOMO, ids=lambda r: f"{r.optimizer}-{r.checkpointing}")
def test_weights_gradients_and_states_of_the_lomo_table_follow_from_the_parameters(row):
    """GiB to two digits: 2Ψ, 2Ψ or the largest gradient, and 12Ψ, 4Ψ or nothing."""
    assert [round(part, 2) for part in plan_tables.lomo_parts(row.optimizer)] == [
        row.weights,
        row.gradients,
        row.states,
    ]


def test_the_three_totals_without_checkpointing_are_one_gib_above_their_parts():
    """The slip of the table: 147.02, 96.81 and 59.40 do not add up, the three others do."""
    assert [row["slip"] for row in plan_tables.lomo_table()] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    for row in plan_tables.lomo_table():
        assert row["sum"] + row["slip"] == pytest.approx(row["total"], abs=0.01)


def test_llama_7b_has_the_published_number_of_parameters_and_its_largest_gradient_is_the_embeddings():
    """6,738,415,616, counted on the model itself on the meta device as well."""
    with torch.device("meta"):
        model = Llama(LlamaConfig(32, 4096, 32, 32, 128, 11008, 32_000, 2048, 1e4, 1e-6, tied=False))
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert sum(sizes) == plan_tables.parameters_with_norms(LLAMA_7B) == 6_738_415_616
    assert max(sizes) == largest_matrix(LLAMA_7B) == 32_000 * 4096


# --- Llama 3 405B ----------------------------------------------------------------------------------------------------


def test_the_first_two_rows_of_the_llama_3_table_hold_and_the_third_needs_dp_8():
    """TP CP PP DP is the number of GPUs and DP batch length the tokens; the slide's third row gives half of both."""
    assert [run.devices == run.gpus for run in LLAMA3_TABLE] == [True, True, False]
    assert [run.tokens_per_step == run.tokens * 2**20 for run in LLAMA3_TABLE] == [True, True, False]
    assert [run.fitting_data for run in LLAMA3_TABLE] == [64, 128, 8]
    right = replace(LLAMA3_TABLE[2], data=8)
    assert (right.devices, right.tokens_per_step) == (16_384, 16 * 2**20)


def test_the_printed_utilizations_are_those_of_the_h100_but_for_41_percent():
    """430, 400 and 380 TFLOP/s are 43.5, 40.4 and 38.4 % of 989, so 43 and 38 are right and 41 does not follow."""
    assert [round(run.utilization, 1) for run in LLAMA3_TABLE] == [43.5, 40.4, 38.4]
    assert [abs(run.utilization - run.mfu) < 0.5 for run in LLAMA3_TABLE] == [True, False, True]


def test_128k_tokens_do_not_fit_without_context_ranks_and_fit_with_16():
    """Why data parallelism had to be given up for context parallelism: the same GPUs, shared otherwise."""
    short, long = LLAMA3_TABLE[1], LLAMA3_TABLE[2]
    assert short.plan().longest < long.length <= long.plan().longest
    assert short.plan().fits and long.plan().fits
    without = plan(LLAMA3_405B, H100_80GB, short.methods, tokens=long.length, batch=short.batch)
    assert not without.fits and without.fit.left < 0


def test_a_smaller_batch_per_copy_widens_the_pipelines_bubble():
    """32 sequences keep 16 stages busy for 68 % of the time, 16 for 52 %: where the drop from 430 to 400 comes from."""
    assert [round(run.bubble_limit, 2) for run in LLAMA3_TABLE] == [0.68, 0.52, 0.52]
    assert all(run.utilization < 100 * run.bubble_limit for run in LLAMA3_TABLE)


# --- FPDT's strategies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", [A100_80GB, replace(A100_80GB, memory_bytes=80 * 2**30)], ids=["GB", "GiB"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_each_strategy_reaches_the_length_of_the_table_and_not_twice_that(strategy, hardware):
    """Ten rows, 32K to 4M, whichever gigabyte the 80 are; twice the length misses the device or its host."""
    assert longest(LLAMA3_8B, hardware, strategy.methods) == strategy.length
    assert plan(LLAMA3_8B, hardware, strategy.methods, tokens=strategy.length).fits
    assert not plan(LLAMA3_8B, hardware, strategy.methods, tokens=2 * strategy.length).fits


def test_order_and_ties_of_the_strategies_do_not_rest_on_the_hosts_memory():
    """Only FPDT's 4M does: with a host without bound it would go further still, and stays last."""
    printed = plan_tables.rank_order([strategy.length for strategy in STRATEGIES])
    assert printed == [0, 2, 3, 1, 1, 1, 3, 3, 3, 4]
    endless = [row["length"] for row in plan_tables.strategy_table(replace(A100_80GB, host_bytes=None))]
    assert plan_tables.rank_order(endless) == printed
    assert endless[:-1] == [strategy.length for strategy in STRATEGIES[:-1]] and endless[-1] > STRATEGIES[-1].length


def test_two_million_tokens_fit_on_four_gpus_with_fpdt():
    """The headline, 6.7B on 4 x 80 GB: 2M tokens and not 4M."""
    fpdt = Methods(context=4, zero=3, checkpoint="host", chunk=2**16)
    assert longest(OPT["6.7B"], A100_80GB, fpdt) == 2**21


def test_a_loss_that_copies_logits_halves_the_length_of_the_512k_rows():
    """At 512K the logits fill the device: with 12 bytes for each (as a plain float32 loss has) only 256K fit."""
    methods = replace(STRATEGIES[6].methods, loss_bytes=12)
    assert longest(LLAMA3_8B, A100_80GB, methods) == 2**18
    assert plan(LLAMA3_8B, A100_80GB, methods, tokens=2**18).moment == "loss"


def test_the_table_for_readers_shows_memory_and_utilization_beside_the_printed_ones():
    """No strategy's published utilization exceeds its bound, and every row names what limits it."""
    for row in plan_tables.strategy_table():
        assert row["length"] == row["printed length"]
        assert row["printed MFU"] < row["MFU at most"] <= 100
        assert row["GB"] * GB < A100_80GB.memory_bytes and row["limit"] in ("compute", "link", "network", "host")


# --- activations against autograd ------------------------------------------------------------------------------------


class PreNormLayer(nn.Module):
    """The layer of `kept_per_token`, with PyTorch's own norm and fused attention."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        d, q, kv, hidden = shape.model, shape.q_width, shape.kv_width, shape.hidden
        self.heads, self.gated, self.widths = shape.heads, shape.gated, (q, kv, kv)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.qkv, self.out = nn.Linear(d, q + 2 * kv, bias=False), nn.Linear(q, d, bias=False)
        self.up, self.down = nn.Linear(d, hidden, bias=False), nn.Linear(hidden, d, bias=False)
        self.gate = nn.Linear(d, hidden, bias=False) if shape.gated else None

    def forward(self, x):
        q, k, v = self.qkv(self.norms[0](x)).split(self.widths, dim=-1)
        dim = q.shape[-1] // self.heads
        q, k, v = (y.unflatten(-1, (-1, dim)).transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(out.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h) if self.gated else F.relu(self.up(h)))


@pytest.mark.parametrize("gated", [False, True])
def test_autograd_keeps_of_a_layer_what_the_planner_says(gated):
    """To the element, but for the statistics that it leaves out: 2 per norm and a log-sum-exp per head."""
    shape = ModelShape(layers=1, model=64, heads=4, ffn=160, gated=gated)
    layer, x = PreNormLayer(shape), torch.randn(2, 24, 64, requires_grad=True)
    with saved_for_backward(*layer.parameters()) as saved:
        layer(x)
    per_token = sum(kept_per_token(shape).values()) + 2 * 2 + shape.heads
    # ReLU keeps its result, which the next matrix keeps anyway; another activation (GELU) keeps what went in
    per_token -= 0 if gated else shape.hidden
    assert saved.bytes == 4 * 2 * 24 * per_token


def test_a_gpt_layer_keeps_korthikantis_34_bytes_less_two_of_dropout():
    """16 d elements of 2 bytes; tensor ranks share 12 of the 16, with sequence parallelism all."""
    shape = ModelShape(layers=1, model=512, heads=8)
    assert sum(kept_per_token(shape).values()) == 16 * 512
    kept = {
        (tensor, also): moments(
            shape, Methods(tensor=tensor, sequence_parallel=also), tokens=64
        )["backward"]["activations"] / (64 * 512)
        for tensor in (1, 8) for also in (False, True)
    }  # fmt: skip
    assert kept == {(1, False): 32, (1, True): 32, (8, False): 8 + 24 / 8, (8, True): 32 / 8}


def test_gradients_come_as_activations_go():
    """Why the planner has moments and no sum: the measured peak lies far below activations plus gradients."""
    shape = ModelShape(layers=6, model=64, heads=4)
    model = nn.Sequential(*(PreNormLayer(shape) for _ in range(6)))
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    with Memory() as memory:
        out = model(torch.randn(1, 48, 64))
        kept = memory.alive_bytes
        out.sum().backward()
    assert 0.5 < kept / gradients < 2
    assert max(kept, gradients) < memory.peak_bytes < 0.8 * (kept + gradients)


# --- the three moments, by hand --------------------------------------------------------------------------------------
# SMALL: d = 64, hidden 256, q 64, kv 32. A layer has 64 (128 + 64) + 3 · 64 · 256 = 61,440 parameters, embeddings and
# head 6,400 each. It keeps 4 · 64 outside the matrices and 128 + 64 + 4 · 256 inside: 1,472 elements per token.


def test_the_moments_of_zero_3_in_a_pipeline_with_micro_batches():
    """2 stages of 2 layers, 2 copies, 10 tokens: the first stage keeps two micro-batches, and gradients add up."""
    of = moments(SMALL, Methods(data=2, pipeline=2, zero=3), tokens=10, batch=6)
    shard = (4 * 61_440 + 2 * 6_400) // 2 // 2
    always = {"weights": 2 * shard, "optimizer states": 12 * shard}
    assert of["loss"] == always | {
        "gradients": 2 * shard, "gathered weights": 2 * 6_400,
        "activations": 2 * 2 * 10 * 1_472, "at work": 10 * 100 * 6 + 2 * (10 + 10) * 64,
    }  # fmt: skip
    assert of["backward"] == always | {
        "gradients": 2 * shard + 2 * 61_440, "gathered weights": 2 * 2 * 61_440,
        "activations": 2 * 2 * 2 * 10 * 1_472, "at work": 2 * 10 * (3 * 256 + 2 * 64),
    }  # fmt: skip
    assert of["update"] == always | {
        "gradients": 2 * shard + 2 * 61_440, "gathered weights": 2 * 2 * 61_440,
        "activations": 0, "at work": 2 * 10 * (3 * 256 + 1_472 + 2 * 64),
    }  # fmt: skip


def test_the_moments_of_tensor_and_ring_ranks_with_checkpoints():
    """What lies outside the matrices stays whole; a layer is made again; a block of keys arrives with its gradient."""
    of = moments(SMALL, Methods(tensor=2, context=2, sequence="ring", checkpoint="device"), tokens=10)
    mine = (4 * 61_440 + 2 * 6_400) // 2
    work = 2 * 5 * (3 * 256 // 2 + (256 + 1_216 // 2) + 2 * 64 + 2 * 2 * 32 // 2)
    assert of["loss"] == {
        "weights": 2 * mine, "optimizer states": 12 * mine, "gradients": 0, "gathered weights": 0,
        "activations": 4 * 2 * 5 * 64, "at work": 5 * 50 * 6 + 2 * (5 + 5) * 64,
    }  # fmt: skip
    assert of["backward"]["gradients"] == 2 * 61_440 // 2 and of["update"]["gradients"] == 2 * mine
    assert of["backward"]["activations"] == 4 * 2 * 5 * 64 and of["backward"]["at work"] == work
    assert of["update"]["at work"] == work


def test_checkpoints_on_the_host_leave_two_inputs_on_the_device():
    """One at work and one on its way, and none at the loss; with one layer there is no second one."""
    host = Methods(checkpoint="host")
    of = moments(SMALL, host, tokens=10)
    assert [of[moment]["activations"] for moment in ("loss", "backward", "update")] == [0, 2 * 2 * 10 * 64, 0]
    assert moments(replace(SMALL, layers=1), host, tokens=10)["backward"]["activations"] == 2 * 10 * 64
    assert host_bytes(SMALL, replace(host, pipeline=2), tokens=10, batch=6) == 2 * 2 * 2 * 10 * 64


def test_fpdt_keeps_three_streams_whole_and_the_rest_in_chunks():
    """On the device the layer's input and both gradients; on the host inputs, and q, k, v and such of one layer."""
    chunked = Methods(checkpoint="host", chunk=8)
    of = moments(SMALL, chunked, tokens=32)
    buffers = fpdt.predicted(32, 4, heads=8, kv_heads=4, dim=8, dtype=torch.bfloat16)[1].peak_bytes
    assert of["backward"]["at work"] == 2 * (8 * (3 * 256 + 1_472) + 3 * 32 * 64) + buffers
    assert of["loss"]["at work"] == 8 * 100 * 6 + 2 * (2 * 32 + 8) * 64
    one_layer = 32 * (2 * ((64 + 64) + 2 * 64 + 64) + 4 * (64 + 8))
    assert host_bytes(SMALL, chunked, tokens=32) == 4 * 2 * 32 * 64 + one_layer


# --- properties of a plan --------------------------------------------------------------------------------------------

methods = st.builds(
    Methods, data=st.integers(1, 3), tensor=st.sampled_from([1, 2]), context=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 3]), zero=st.integers(0, 3), sequence=st.sampled_from(["ulysses", "ring"]),
    sequence_parallel=st.booleans(), optimizer=st.sampled_from(["adam", "sgd", "lomo"]),
    checkpoint=st.sampled_from(["none", "device", "host"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(methods, st.integers(1, 2000), st.integers(1, 8))
def test_longer_sequences_never_take_less(chosen, tokens, batch):
    """Bytes on device and host, FLOPs and traffic are monotone in the length: `longest` may stop at the first miss."""
    small, large = ({"tokens": n, "batch": batch} for n in (tokens, tokens + 1 + tokens // 3))
    assert fullest(SMALL, chosen, **small) <= fullest(SMALL, chosen, **large)
    assert host_bytes(SMALL, chosen, **small) <= host_bytes(SMALL, chosen, **large)
    assert step_cost(SMALL, chosen, **small)[0].flops < step_cost(SMALL, chosen, **large)[0].flops
    before, after = (traffic(SMALL, chosen, **sizes) for sizes in (small, large))
    assert all(before[axis] <= after[axis] for axis in before)


@settings(max_examples=60, deadline=None)
@given(methods, st.integers(1, 500), st.integers(1, 4))
def test_what_is_shared_or_recomputed_never_takes_more_room(chosen, tokens, batch):
    """Another ZeRO stage, a checkpoint instead of everything, the host instead of the device."""
    sizes = {"tokens": tokens, "batch": batch}
    kept = [
        moments(SMALL, replace(chosen, checkpoint=where), **sizes)["backward"]["activations"]
        for where in ("none", "device", "host")
    ]
    assert kept[0] >= kept[1] and (kept[1] >= kept[2] or chosen.pipeline > 1)
    states = ("weights", "gradients", "optimizer states")
    held = [
        sum(moments(SMALL, replace(chosen, zero=stage), **sizes)["loss"][name] for name in states)
        for stage in range(4)
    ]  # fmt: skip
    assert held == sorted(held, reverse=True)


@settings(max_examples=40, deadline=None)
@given(methods, st.integers(20, 30), st.integers(1, 4))
def test_the_longest_sequence_fits_twice_as_long_does_not_and_more_memory_never_shortens_it(chosen, power, batch):
    """`longest` is the power of two at the edge, or 0 where the states alone are too much."""
    hardware = replace(A100_80GB, memory_bytes=2**power, host_bytes=2**power)
    tokens = longest(SMALL, hardware, chosen, batch=batch)
    assert tokens == 0 or plan(SMALL, hardware, chosen, tokens=tokens, batch=batch).fits
    assert not plan(SMALL, hardware, chosen, tokens=max(1, 2 * tokens), batch=batch).fits
    assert tokens <= longest(SMALL, replace(hardware, memory_bytes=2 ** (power + 1)), chosen, batch=batch)


# --- work, traffic, time ---------------------------------------------------------------------------------------------


def test_a_causal_step_costs_six_flops_per_weight_and_token_and_half_of_attention():
    """2 forward, 4 backward; attention 4 N² q_width forward, 10 backward, of which a causal mask leaves half."""
    tokens, batch = 128, 3
    cost, useful = step_cost(SMALL, Methods(), tokens=tokens, batch=batch)
    weights = sum(size for name, size in parameters(SMALL).items() if name != "embeddings")
    attention = (4 + 10) * tokens**2 * SMALL.q_width * SMALL.layers // 2
    assert cost.flops == useful == batch * (6 * weights * tokens + attention)
    again, same = step_cost(SMALL, Methods(checkpoint="device"), tokens=tokens, batch=batch)
    head = SMALL.vocab * SMALL.model
    assert again.flops - cost.flops == batch * (2 * (weights - head) * tokens + attention * 4 // 14) and same == useful
    assert step_cost(SMALL, Methods(tensor=2, context=2), tokens=tokens, batch=batch)[1] == useful // 4


@pytest.mark.parametrize("stage,volume", [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zero_1_and_2_send_what_data_parallelism_sends_and_zero_3_half_as_much_again(stage, volume):
    """2Ψ (N-1)/N and 3Ψ (N-1)/N, in bytes of 16-bit numbers, exactly where N divides."""
    count = sum(parameters(SMALL).values())
    sent = traffic(SMALL, Methods(data=4, zero=stage), tokens=16)
    assert sent == {"data": volume * 2 * count * 3 // 4, "pipeline": 0, "tensor": 0, "context": 0, "host": 0}


def test_micro_batches_repeat_what_zero_sends_for_each():
    """Three of them: ZeRO-1 sends once per step, ZeRO-2 reduces three times, ZeRO-3 does everything three times."""
    shard = 2 * sum(parameters(SMALL).values()) * 3 // 4
    sent = [traffic(SMALL, Methods(data=4, zero=z), tokens=16, batch=3)["data"] for z in (0, 1, 2, 3)]
    assert sent == [2 * shard, 2 * shard, 4 * shard, 9 * shard]


def test_tensor_parallelism_reduces_the_residual_stream_four_times_per_layer():
    """2 forward, 2 backward, 2 again with checkpointing; each 2 n (t-1)/t bytes; embedding and head one more each."""
    all_reduce = 2 * (32 * 64 * 2) * 3 // 4
    assert traffic(SMALL, Methods(tensor=4), tokens=32)["tensor"] == (4 * 4 + 2) * all_reduce
    assert traffic(SMALL, Methods(tensor=4, checkpoint="device"), tokens=32)["tensor"] == (4 * 6 + 2) * all_reduce
    assert traffic(SMALL, Methods(tensor=4, pipeline=2), tokens=32)["tensor"] == (2 * 4 + 1) * all_reduce


@pytest.mark.parametrize("batch", [1, 2])
def test_context_parallelism_sends_what_ring_and_ulysses_count(batch):
    """Their own exact formulas, once per layer and micro-batch."""
    sizes = {"kv_heads": 4, "dim": 8, "batch": 1}
    forth, back = ulysses.sent_bytes(30, 4, 0, heads=8, itemsize=2, **sizes)
    sent = traffic(SMALL, Methods(context=4), tokens=30, batch=batch)
    assert sent["context"] == 4 * batch * (forth + back) and sent["tensor"] == 0
    forth, back = ring.sent_bytes(30, 4, 0, dtype=torch.bfloat16, **sizes)
    again = Methods(context=4, sequence="ring", checkpoint="device")
    assert traffic(SMALL, again, tokens=30, batch=batch)["context"] == 4 * batch * (2 * forth + back)


def test_a_pipeline_passes_the_stream_on_and_its_gradient_back():
    """2 B N d numbers per micro-batch; idle (p - 1)/(m + p - 1) of the time, a sixth of the work here."""
    sent = traffic(SMALL, Methods(pipeline=2), tokens=32, batch=6)
    assert sent["pipeline"] == 6 * 2 * (32 * 64 * 2)
    whole, staged = (plan(SMALL, A100_80GB, Methods(pipeline=p), tokens=32, batch=6) for p in (1, 2))
    assert staged.times["compute"] == pytest.approx(whole.times["compute"] / 2 * (1 + 1 / 6))


def test_bytes_that_tensor_ranks_and_stages_send_are_those_of_the_plan():
    """Counted on a Llama in float32, so twice the plan; the loss costs tensor ranks three numbers per token on top."""
    config = replace(TOY, layers=3, context=16)
    shape, seq = ModelShape.of(config), 9
    ids = torch.arange(seq)[None] % config.vocab
    planned = traffic(shape, Methods(tensor=2), tokens=seq)["tensor"]
    loss = sum(all_reduce_bytes(numbers * (seq - 1), 4, 0, 2) for numbers in (1, 2))
    assert run_ranks(2, tensor_step, config, ids)[0] == {"all_reduce": 2 * planned + loss}
    planned = traffic(shape, Methods(pipeline=3), tokens=seq, batch=2)["pipeline"]
    assert run_ranks(3, pipeline_step, config, ids.repeat(2, 1))[1] == {"send": 2 * planned}


def tensor_step(config, ids):
    model = tensor.split_llama(toy_llama(config).requires_grad_(True))
    with Account() as account:
        tensor.next_token_loss(model, ids).backward()
    return dict(account.sent)


def pipeline_step(config, ids):
    stage = LlamaStage(toy_llama(config).requires_grad_(True), dist.get_rank(), dist.get_world_size())
    pipeline = Pipeline(stage, next_token_loss, micros=2, between=stage.between, shared=stage.shared)
    with Account() as account:
        pipeline.step(ids, ids)
    return dict(account.sent)


def test_offloading_moves_each_layers_input_out_and_in():
    """One direction is counted, because the bus carries both at once; FPDT's chunks come on top."""
    inputs = 4 * 32 * 64 * 2
    assert traffic(SMALL, Methods(checkpoint="host"), tokens=32)["host"] == inputs
    assert host_bytes(SMALL, Methods(checkpoint="host"), tokens=32) == inputs
    chunked = Methods(checkpoint="host", chunk=8)
    assert traffic(SMALL, chunked, tokens=32)["host"] > inputs < host_bytes(SMALL, chunked, tokens=32)


def test_chunks_bound_what_is_at_work_but_for_the_residual_stream():
    """FPDT: with a fixed chunk only the stream and its copies grow with the sequence."""
    sizes = [
        moments(LLAMA3_8B, Methods(checkpoint="host", chunk=2**12), tokens=n)["backward"]["at work"]
        for n in (2**14, 2**15, 2**16)
    ]
    grown = 3 * 2 * 4096 * 2**14  # the layer's input, and the gradients of its output and its input, 16 bit
    assert sizes[1] - sizes[0] == grown and sizes[2] - sizes[1] == 2 * grown


def test_the_slowest_resource_sets_the_time_and_is_named():
    """The same plan on machines that differ in one rate each."""
    everything = Methods(data=2, tensor=2, zero=3, checkpoint="host")
    base = Hardware(Machine("test", 1e15, 1e15, "bfloat16"), 10**12, 2, 1e15, 1e15, 1e15)
    fast = plan(SMALL, base, everything, tokens=64)
    rates = {"link": "link_bytes_per_s", "network": "network_bytes_per_s", "host": "host_bytes_per_s"}
    for resource, field in rates.items():
        slow = plan(SMALL, replace(base, **{field: 1e3}), everything, tokens=64)
        assert slow.limit == resource and slow.seconds == slow.times[resource] > fast.seconds
        assert slow.utilization < fast.utilization
    sent = fast.traffic
    assert plan(SMALL, replace(base, link_bytes_per_s=1.0), everything, tokens=64).times["link"] == sent["tensor"]
    assert plan(SMALL, replace(base, network_bytes_per_s=1.0), everything, tokens=64).times["network"] == sent["data"]


def test_a_plan_says_per_device_what_it_needs():
    """The parts at the fullest moment add up to what is compared with the device; no host is asked for nothing."""
    made = plan(SMALL, A100_80GB, Methods(), tokens=64)
    assert sum(made.bytes.values()) == made.fit.needed and made.fits and made.host_bytes == 0
    assert made.host_fit is not None and made.host_fit.needed == 0
    assert plan(SMALL, replace(A100_80GB, host_bytes=None), Methods(), tokens=64).host_fit is None
    assert made.limit == "compute" and made.flops == made.useful_flops
    assert longest(LLAMA3_405B, A100_80GB, Methods()) == 0 == plan(LLAMA3_405B, A100_80GB, Methods(), tokens=1).longest


def test_lomo_needs_one_gradient_and_no_state():
    """The other optimizers' gradients and states are not there; the traffic of the gradients still is."""
    lomo, adam = (plan(LLAMA_7B, A100_80GB, Methods(data=2, optimizer=name), tokens=1) for name in ("lomo", "adam"))
    assert lomo.bytes["gradients"] == 2 * largest_matrix(LLAMA_7B) and lomo.bytes["optimizer states"] == 0
    assert lomo.traffic == adam.traffic and lomo.fits and not adam.fits


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong,says", [
    ({"data": 0}, "data=0 must be at least 1"),
    ({"zero": 4}, r"zero=4 is unknown; choose one of 0, 1, 2, 3"),
    ({"optimizer": "lion"}, "choose one of 'adam', .*'lomo'"),
    ({"sequence": "star"}, "choose one of 'ulysses', 'ring'"),
    ({"checkpoint": "disk"}, "choose one of .none., .device., .host."),
    ({"chunk": 0, "checkpoint": "host"}, "give at least 1"),
    ({"chunk": 64}, "set checkpoint='host' and sequence='ulysses', given 'none'"),
])  # fmt: skip
def test_methods_that_do_not_exist_are_refused_with_those_that_do(wrong, says):
    """Before any arithmetic."""
    with pytest.raises(ValueError, match=says):
        Methods(**wrong)


@pytest.mark.parametrize("chosen,sizes,says", [
    (Methods(), {"tokens": 0}, "at least one token"),
    (Methods(micro_batch=2), {"tokens": 8, "batch": 3}, "choose a divisor of 3"),
    (Methods(pipeline=5), {"tokens": 8}, "4 layers are too few for pipeline=5"),
    (Methods(tensor=16), {"tokens": 8}, "8 heads are too few for tensor=16"),
    (Methods(tensor=2, context=8), {"tokens": 8}, "use sequence='ring'"),
])  # fmt: skip
def test_a_model_that_cannot_be_shared_so_is_refused_with_the_way_out(chosen, sizes, says):
    """Heads, layers and sequences are not cut in pieces."""
    with pytest.raises(ValueError, match=says):
        plan(SMALL, A100_80GB, chosen, **sizes)


def test_hardware_with_a_rate_of_zero_is_refused():
    """Nothing would ever arrive."""
    with pytest.raises(ValueError, match=r"network_bytes_per_s=0\.0 must be positive"):
        replace(A100_80GB, network_bytes_per_s=0.0)
