"""Tensor parallelism: one process's weights on any number of ranks, two sums per block each way, no whole logits."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.cases import parallel_tensor_pipeline as bench
from refimpl.models.llama import LlamaConfig
from refimpl.parallel import launch, tensor
from refimpl.parallel.accounting import Account, all_reduce_bytes
from refimpl.parallel.ring import spans
from refimpl.parallel.tests.model_parallel import (
    CLIP,
    CONFIGS,
    EVEN,
    ODD,
    ROWS,
    SEQ,
    SIZES,
    alone,
    batches,
    llama,
    with_tensors,
)
from refimpl.parallel.tests.ranks import as_launch, run_ranks
from refimpl.parallel.tests.training import difference

TINY = {"layers": 2, "model": 32, "rows": 4, "seq": 8, "micros": 2}
RESIDUAL = TINY["rows"] * TINY["seq"] * TINY["model"] * 4  # bytes, and those of an all-reduce of it on two ranks


def everything() -> dict:
    return {name: with_tensors(config, CLIP) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module", params=[2, 4])
def processes(request):
    """One start of two processes, and one of four, for all tests on real ones."""
    return launch(everything, request.param, backend="gloo", timeout=200)


@pytest.mark.parametrize("name", CONFIGS)
def test_processes_train_the_weights_of_one_process(processes, name):
    """Five AdamW steps in fp32, clipped, sizes that N divides and that it does not: weights and losses within 1e-5."""
    reference = alone(CONFIGS[name], CLIP)
    assert difference(reference["weights"], llama(CONFIGS[name]).state_dict()) > 4e-3  # training moved the weights
    for rank in processes:
        assert difference(rank[name]["weights"], reference["weights"]) <= 1e-5
        assert rank[name]["losses"] == pytest.approx(reference["losses"], abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_clipped_by_the_norm_of_the_whole_model(processes, name):
    """Adam hides a wrong scale, so norms are compared: before as in one process, after the bound."""
    norms = alone(CONFIGS[name], CLIP)["norms"]
    assert min(norms) > 2 * CLIP
    for rank in processes:
        assert rank[name]["norms"] == pytest.approx(norms, rel=1e-5)
        assert rank[name]["clipped"] == pytest.approx([CLIP] * len(norms), rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_block_costs_two_all_reduces_forward_and_two_backward(processes, name):
    """Of batch · seq · model numbers each, to the byte; one more each way for embedding and head; 1 + 2 per token."""
    config, ranks = CONFIGS[name], len(processes)
    for rank, found in enumerate(result[name] for result in processes):
        residual = all_reduce_bytes(ROWS * SEQ * config.model, 4, rank, ranks)
        per_token = [all_reduce_bytes(k * ROWS * (SEQ - 1), 4, rank, ranks) for k in (1, 2)]
        sums = 2 * config.layers + 1
        assert found["forward"] == (sums * residual + sum(per_token), sums + 2)
        assert found["backward"] == (sums * residual, sums)
        assert ROWS * SEQ * config.model % ranks or residual == 2 * ROWS * SEQ * config.model * 4 * (ranks - 1) // ranks


def test_parameters_that_every_rank_has_stay_equal_to_the_bit(processes):
    """Norms get the same gradient everywhere, so nothing has to be sent for them."""
    for name in CONFIGS:
        first, *others = (rank[name]["everywhere"] for rank in processes)
        assert set(first) == {key for key in alone(CONFIGS[name])["weights"] if "norm" in key}
        for other in others:
            assert difference(first, other) == 0


def test_weights_are_spread_as_evenly_as_they_come(processes):
    """5 key/value heads on 4 ranks are 2, 1, 1, 1; all but the norms adds up to the whole."""
    for name, config in CONFIGS.items():
        total = sum(p.numel() for p in llama(config).parameters())
        norms = (2 * config.layers + 1) * config.model
        numbers = [rank[name]["numbers"] - norms for rank in processes]
        assert sum(numbers) == total - norms
        assert numbers == sorted(numbers, reverse=True)
    even = [rank["even, untied"]["numbers"] for rank in processes]
    assert len(set(even)) == 1


# --- the rest with ranks as threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_up_to_the_key_value_heads_will_do(ranks):
    """One rank is the plain model; three divide nothing at all."""
    reference = alone(ODD)
    for rank in run_ranks(ranks, with_tensors, ODD):
        assert difference(rank["weights"], reference["weights"]) <= 1e-5


def in_parts(x, first, second, upstream):
    """A rank's relu(x A) B through a column and a row layer; gradients of x and of its parts."""
    x = x.clone().requires_grad_()
    mine = tensor.my_part(first.out_features, "hidden features")
    column, row = tensor.ColumnLinear(first, mine), tensor.RowLinear(second, mine)
    y = row(column(x).relu())
    y.backward(upstream)
    return [y.detach(), x.grad, column.weight.grad, column.bias.grad, row.weight.grad, row.bias.grad]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_column_and_a_row_layer_are_the_two_whole_layers(ranks):
    """Outputs and all gradients in fp64, 11 hidden features, biases: the column's is cut, the row's added once."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 11).double(), nn.Linear(11, 5).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 5, dtype=torch.float64)
    y = second(first(x).relu())
    y.backward(upstream)
    whole = [y.detach(), x.grad, first.weight.grad, first.bias.grad, second.weight.grad, second.bias.grad]
    for rank, got in enumerate(run_ranks(ranks, in_parts, x.detach(), first, second, upstream)):
        mine = slice(spans(11, ranks)[rank].start, spans(11, ranks)[rank].stop)
        want = [whole[0], whole[1], whole[2][mine], whole[3][mine], whole[4][:, mine], whole[5]]
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def vocab_in_parts(logits, targets):
    mine = tensor.my_part(logits.shape[-1], "ids")
    part = logits[..., mine.start : mine.stop].clone().requires_grad_()
    with Account() as account:
        loss = tensor.vocab_loss(part, targets, logits.shape[-1])
        loss.mean().backward()
    return loss.detach(), part.grad, account.largest_bytes, account.total


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_loss_of_cut_logits_is_the_loss_of_whole_ones(ranks):
    """37 ids, logits of 1000 ± 20, fp64: loss and gradients within 1e-12; no tensor is larger than a rank's logits."""
    torch.manual_seed(0)
    logits = (1000 + 20 * torch.randn(3, 8, 37, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(37, (3, 8))
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 8)
    want.mean().backward()
    found = run_ranks(ranks, vocab_in_parts, logits.detach(), targets)
    for rank, (loss, gradient, largest, sent) in enumerate(found):
        mine = spans(37, ranks)[rank]
        torch.testing.assert_close(loss, want.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, logits.grad[..., mine.start : mine.stop], rtol=0, atol=1e-12)
        assert largest <= 8 * 24 * len(mine)
        assert sent == sum(all_reduce_bytes(k * 24, 8, rank, ranks) for k in (1, 2))


def test_half_precision_logits_give_a_float32_loss():
    """bf16 logits are exponentiated and summed in float32; their gradient is bf16 again."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 32).bfloat16(), torch.randint(32, (2, 4))
    want = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(2, 4)
    for loss, gradient, *_ in run_ranks(2, vocab_in_parts, logits, targets):
        assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
        torch.testing.assert_close(loss, want)


def one_call(call):
    return call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tensor.split_llama(
                llama(LlamaConfig(layers=1, model=8, heads=2, kv_heads=1, dim=4, ffn=8, vocab=8, **SIZES))
            ),
            "1 key/value heads cannot be cut for 2 ranks",
        ),
        (lambda: tensor.my_part(1, "hidden features"), "1 hidden features cannot be cut for 2 ranks; use at most 1"),
        (lambda: tensor.vocab_loss(torch.zeros(2, 8), torch.zeros(2).long(), 8), "given 8 logits per token"),
    ],
)
def test_what_cannot_be_cut_is_refused(call, message):
    """More ranks than key/value heads or features, and logits that nobody cut: the message has the numbers."""
    with pytest.raises(ValueError, match=message):
        run_ranks(2, one_call, call)


# --- PyTorch's own ---------------------------------------------------------------------------------------------------


def test_pytorchs_own_end_with_the_same_weights():
    """The benchmark at a tiny size, on threads: DTensor, ScheduleGPipe, Schedule1F1B; AdamW steps within 1e-5."""
    rows = bench.run(runs=3, shape=TINY, start=as_launch)
    assert [row["peer"] for row in rows] == list(bench.PEERS.values())
    assert all(row["largest_difference"] <= 1e-5 and row["seconds"] > 0 for row in rows)
    blocks, *pipelines = rows
    # Five column layers per block: DTensor sums the gradients behind each; f stands once before each sublayer.
    assert (blocks["bytes_sent"], blocks["peer_bytes_sent"]) == tuple(TINY["layers"] * k * RESIDUAL for k in (4, 7))
    assert all(row["bytes_sent"] == row["peer_bytes_sent"] == RESIDUAL for row in pipelines)


def test_the_benchmark_names_what_is_slow_or_wrong():
    """A row over both bounds, and one whose weights are no numbers."""
    row = {"case": "tensor, 2 ranks", "peer": "DTensor", "time_over_peer": 1.6, "largest_difference": 0.5}
    assert bench.problems([row, row | {"time_over_peer": 1.5, "largest_difference": float("nan")}]) == [
        "tensor, 2 ranks: 1.6 times DTensor's time, 1.5 at most allowed",
        "tensor, 2 ranks: weights are 0.5 from DTensor's",
        "tensor, 2 ranks: weights are nan from DTensor's",
    ]


def test_groups_smaller_than_the_world_work():
    """Two pairs of four ranks, each with the model cut in two: the weights of one process."""
    reference = alone(EVEN)["losses"][0]
    assert run_ranks(4, in_pairs) == pytest.approx([reference] * 4, abs=1e-5)


def in_pairs():
    pairs = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]
    group = pairs[dist.get_rank() // 2]
    model = tensor.split_llama(llama(EVEN), group)
    loss = tensor.next_token_loss(model, batches(EVEN)[0], group)
    loss.backward()
    return float(loss.detach())
