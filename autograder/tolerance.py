"""When is a result right? One policy for every question.

The oracle runs twice on the same inputs: in fp64, which is the truth, and in the case's own precision, which shows
how far a correct program may stray. A result passes when, element by element,

    |got - truth|  <=  factor · max|oracle in low precision - truth|  +  rtol · max|truth|

NaN is never a pass; infinities, integers, booleans and strings must be equal. The bound is computed per tensor,
so it widens where the inputs make rounding worse (logits × 20) and nowhere else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autograder.tree import map_tree, tensors


@dataclass(frozen=True)
class Tolerance:
    """The two numbers of the rule above. A question that changes them says why in `reason`."""

    rtol: float = 1e-5
    factor: float = 8.0
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """One way in which a result is not what it should be. `values` holds (index, got, expected) and stays private."""

    where: str
    kind: str  # structure | type | shape | nan | value
    message: str
    error: float | None = None
    bound: float | None = None
    values: tuple[tuple[int, ...], Any, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """What comparing a result with the truth gave: no differences is a pass."""

    differences: tuple[Difference, ...]
    error: float = 0.0  # largest error of the tensor closest to its bound
    bound: float = math.inf

    @property
    def ok(self) -> bool:
        return not self.differences


def compare(
    got: Any, want: Any, low: Any = None, tolerance: Tolerance | None = None, names: Sequence[str] = ()
) -> Comparison:
    """Compare `got` with the fp64 truth `want`; `low` is the oracle's result in the case's own precision.

    `names` are what messages call the parts of a result of that many parts, in place of result[0], result[1].
    """
    checker = _Checker(tolerance or Tolerance())
    checker.visit("result", got, want, want if low is None else low, names)
    return Comparison(tuple(checker.differences), checker.error, checker.bound)


def alike(a: Any, b: Any, rtol: float = 1e-3) -> bool:
    """Whether two results are the same but for rounding; NaN equals NaN here, for recognising a known mistake."""
    if is_plain(a) and is_plain(b):
        if a.shape != b.shape or a.is_meta or a.layout is not torch.strided:
            return False
        a64, b64 = a.detach().cpu().double(), b.detach().cpu().double()
        finite = b64[b64.isfinite()].abs()
        scale = finite.max().item() if finite.numel() else 1.0
        return torch.allclose(a64, b64, rtol=rtol, atol=rtol * scale, equal_nan=True)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(alike(x, y, rtol) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], rtol) for key in a)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=rtol)
    return type(a) is type(b) and bool(a == b)


def assert_close(got: Any, want: Any, low: Any = None, tolerance: Tolerance | None = None) -> None:
    """`compare` for tests: raises AssertionError with every difference."""
    result = compare(got, want, low, tolerance)
    if not result.ok:
        raise AssertionError("\n".join(f"{d.where}: {d.message}" for d in result.differences))


class _Checker:
    """Walks both values together and collects the differences."""

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.differences: list[Difference] = []
        self.error, self.bound, self.tightness = 0.0, math.inf, -1.0

    def visit(self, where: str, got: Any, want: Any, low: Any, names: Sequence[str] = ()) -> None:
        if isinstance(want, torch.Tensor):
            self.visit_tensor(where, got, want, low)
        elif isinstance(want, tuple | list):
            self.visit_sequence(where, got, want, low, names)
        elif isinstance(want, dict):
            self.visit_dict(where, got, want, low)
        elif isinstance(want, float):
            self.visit_number(where, got, want, low)
        elif type(got) is not type(want):
            self.add(where, "type", f"{describe(got)}, expected {describe(want)}")
        elif got != want:
            self.add(where, "value", "differs from the expected value", values=((), got, want))

    def visit_sequence(self, where: str, got: Any, want: Any, low: Any, names: Sequence[str]) -> None:
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return self.add(where, "structure", f"{describe(got)}, expected {describe(want)}")
        parts = names if len(names) == len(want) else [f"{where}[{i}]" for i in range(len(want))]
        for part, g, w, lo in zip(parts, got, want, low, strict=True):
            self.visit(part, g, w, lo)
        return None

    def visit_dict(self, where: str, got: Any, want: Any, low: Any) -> None:
        if not isinstance(got, dict) or got.keys() != want.keys():
            # The oracle's keys are names that its author chose, unless they are data; the answer's could be anything.
            names = f" with keys {sorted(want)}" if all(isinstance(key, str) for key in want) else ""
            return self.add(where, "structure", f"{describe(got)}, expected {describe(want)}{names}")
        for key in want:
            self.visit(f"{where}[{key!r}]", got[key], want[key], low[key])
        return None

    def visit_number(self, where: str, got: Any, want: float, low: Any) -> None:
        if isinstance(got, torch.Tensor) and got.numel() == 1:
            got = got.item()
        if isinstance(got, bool) or not isinstance(got, int | float):
            return self.add(where, "type", f"{describe(got)}, expected a number")
        self.visit_tensor(where, torch.tensor(float(got)).double(), torch.tensor(want).double(), torch.tensor(low))
        return None

    def visit_tensor(self, where: str, got: Any, want: torch.Tensor, low: Any) -> None:
        if not is_plain(got):
            return self.add(where, "type", f"{describe(got)}, expected {describe(want)}")
        if got.layout is not torch.strided or got.is_meta:
            return self.add(
                where, "type", f"a tensor of layout {got.layout} on {got.device.type}, expected plain numbers"
            )
        got = got.detach().cpu()
        if got.shape != want.shape:
            return self.add(where, "shape", shape_message(tuple(got.shape), tuple(want.shape)))
        if not want.is_floating_point():
            return self.visit_exact(where, got, want)
        if not got.is_floating_point():
            return self.add(where, "type", f"dtype {got.dtype}, expected a floating dtype")
        return self.visit_float(where, got.double(), want.detach().double(), low.detach().double())

    def visit_exact(self, where: str, got: torch.Tensor, want: torch.Tensor) -> None:
        if got.is_floating_point() or (got.dtype is torch.bool) != (want.dtype is torch.bool):
            return self.add(where, "type", f"dtype {got.dtype}, expected {want.dtype}")
        wrong = got != want
        if wrong.any():
            index = first_index(wrong)
            self.add(where, "value", f"{count(wrong)} differ", values=(index, got[index].item(), want[index].item()))
        return None

    def visit_float(self, where: str, got: torch.Tensor, want: torch.Tensor, low: torch.Tensor) -> None:
        if want.isnan().any():
            raise ValueError(f"the oracle returned NaN at {where}: a check can not rest on it; change the case")
        bad = got.isnan()
        if bad.any():
            index = first_index(bad)
            return self.add(where, "nan", f"{count(bad)} are NaN", values=(index, math.nan, want[index].item()))
        finite = want.isfinite()
        error = torch.where(finite & got.isfinite(), (got - want).abs(), torch.where(got == want, 0.0, math.inf))
        bound = self.bound_for(want, low, finite)
        worst = error.max().item() if error.numel() else 0.0
        if (tightness := worst / bound if bound else worst) > self.tightness:
            self.error, self.bound, self.tightness = worst, bound, tightness
        wrong = error > bound
        if wrong.any():
            index = first_index(wrong)
            message = f"{count(wrong)} are off: largest error {worst:.2g}, allowed {bound:.2g}"
            self.add(where, "value", message, worst, bound, (index, got[index].item(), want[index].item()))
        return None

    def bound_for(self, want: torch.Tensor, low: torch.Tensor, finite: torch.Tensor) -> float:
        if not finite.any():
            return 0.0
        rounding = (low - want)[finite & low.isfinite()].abs()
        return (
            self.tolerance.factor * (rounding.max().item() if rounding.numel() else 0.0)
            + self.tolerance.rtol * want[finite].abs().max().item()
        )

    def add(self, where: str, kind: str, message: str, error: float | None = None, bound: float | None = None,
            values: tuple[tuple[int, ...], Any, Any] | None = None) -> None:  # fmt: skip
        self.differences.append(Difference(where, kind, message, error, bound, values))


def is_plain(value: Any) -> bool:
    """Exactly a tensor: a subclass could answer "equal" to every comparison, and anything when asked for its shape."""
    return type(value) is torch.Tensor or type(value) is torch.nn.Parameter


def first_index(wrong: torch.Tensor) -> tuple[int, ...]:
    return tuple(wrong.nonzero()[0].tolist())


def count(wrong: torch.Tensor) -> str:
    return f"{int(wrong.sum())} of {wrong.numel()} values"


def shape_message(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    turned = " (the same numbers in another order: is an axis transposed?)" if sorted(got) == sorted(want) else ""
    return f"shape {got}, expected {want}{turned}"


def describe(value: Any) -> str:
    """A value in words, by type and shape, without its numbers; a dict without its keys, which may hold some."""
    if is_plain(value):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def structure(value: Any) -> Any:
    """The nesting with each leaf described, for messages about what came back."""
    return map_tree(describe, value)


def has_nan(value: Any) -> bool:
    return any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors(value))
