"""Oracles of lab 02, in the shape its questions ask for; a test holds them equal to `refimpl`'s cost model."""

import torch


def block_flops(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    """FLOPs of one block of a Llama on `tokens` new tokens, all pairs counted."""
    each = 2 * tokens  # a product with a matrix of `n` weights costs 2 FLOPs per weight and token
    pairs = tokens * (cached + tokens)
    return {
        "projections": each * model * (heads + 2 * kv_heads) * dim,
        "attention": 4 * pairs * heads * dim,
        "output": each * heads * dim * model,
        "ffn": each * 3 * model * ffn,
    }


def param_count(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    """Every weight of a Llama, norms included."""
    attention = 2 * model * (heads + kv_heads) * dim
    block = attention + 3 * model * ffn + 2 * model
    return layers * block + model + vocab * model * (1 if tied else 2)


def predict_seconds(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    """The longest of three times, and whose it is."""
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s, "overhead": overhead}
    regime = max(times, key=times.get)
    return times[regime], regime


def rows_to_saturate(inner, cols, *, itemsize, ridge):
    """Fewest rows of (rows, inner) @ (inner, cols) that reach `ridge` FLOP per byte; None where none do."""
    per_row = 2 * inner * cols - ridge * itemsize * (inner + cols)
    return -(-ridge * itemsize * inner * cols // per_row) if per_row > 0 else None


def which_claim(printed, *, params, layers, model, heads, batch, tokens):
    """The four quantities in bytes, and the names whose printed GB are off by more than 5 %."""
    kept = 12 * model + heads * tokens  # elements per token and layer; the second term is missing in print
    counted = {
        "weights": 2 * params,
        "states": 16 * params,
        "activations": 2 * kept * batch * tokens * layers,
    }
    wrong = [name for name, gb in printed.items() if abs(gb * 1e9 - counted[name]) > 0.05 * counted[name]]
    return counted, wrong


def largest_batch(capacity, *, params, optimizer, layers, model, heads, tokens):
    """Most sequences whose activations fit beside the states, and the bytes left (negative: missing)."""
    left = capacity - (4 + optimizer) * params
    sequence = 2 * (12 * model + heads * tokens) * tokens * layers
    batch = max(left // sequence, 0)
    return batch, left - batch * sequence


def fit_power_law(x, loss, *, floor):
    """Least squares of a line through (log x, log(loss - floor))."""
    u, y = x.log(), (loss - floor).log()
    du = u - u.mean()
    alpha = -((du * y).sum() / (du * du).sum())
    x_c = torch.exp((y.mean() + alpha * u.mean()) / alpha)
    return {"alpha": alpha, "x_c": x_c, "low": x.min(), "high": x.max()}
