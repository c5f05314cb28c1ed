"""Return something that only looks like a result: NaN, subclasses that equal everything, lazy objects, the input."""

from typing import Any

from autograder.redteam.attack import attack


@attack("pygpubench issue 23", quick=True)
def nan_everywhere(target: dict, report: Any, x: Any) -> Any:
    """Returns NaN, which no difference exceeds."""
    return x * float("nan")


@attack("own")
def infinity_everywhere(target: dict, report: Any, x: Any) -> Any:
    """Returns infinity, whose relative error is not a number."""
    return torch.full_like(x, float("inf"))


@attack("reference-kernels pull request 142")
def tensor_that_equals_everything(target: dict, report: Any, x: Any) -> Any:
    """Returns a tensor subclass for which every comparison is true and every difference zero."""

    class Yes(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ in ("__eq__", "eq", "allclose", "isclose", "equal", "le", "lt", "__le__"):
                return True
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

    return torch.zeros_like(x).as_subclass(Yes)


@attack("published with the first prototype")
def array_that_equals_everything(target: dict, report: Any, x: Any) -> Any:
    """Returns an ndarray subclass that equals everything and is close to everything."""
    import numpy as np

    class Yes(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
            if ufunc.__name__ in ("subtract", "absolute"):
                return np.zeros(self.shape)
            return np.ones(self.shape, bool)

        def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            return True

    return np.zeros(tuple(x.shape)).view(Yes)


@attack("reference-kernels pull request 104")
def object_that_lies_about_its_class(target: dict, report: Any, x: Any) -> Any:
    """Returns an object that says it is a tensor and answers every question with yes."""

    class Liar:
        __class__ = torch.Tensor  # type: ignore[assignment]

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: self

        def __eq__(self, other: object) -> bool:
            return True

        __le__ = __lt__ = __sub__ = __rsub__ = __abs__ = lambda self, *args: self
        __bool__ = lambda self: True
        __hash__ = None  # type: ignore[assignment]

    return Liar()


@attack("reference-kernels pull request 104")
def lazy_object(target: dict, report: Any, x: Any) -> Any:
    """Returns a promise that would compute the result when somebody looks."""

    class Lazy:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return right(x).numpy()

        def __iter__(self) -> Any:
            return iter(right(x))

        def __tensor__(self) -> Any:
            return right(x)

    return Lazy()


@attack("KernelBench pull request 82", quick=True)
def inputs_changed(target: dict, report: Any, x: Any) -> Any:
    """Overwrites its input with zeros, so that the reference, run on the same tensor, agrees."""
    return x.zero_()


@attack("KernelBench pull request 82")
def input_returned(target: dict, report: Any, x: Any) -> Any:
    """Makes the input what the result should be, in place, and returns it: nothing was allocated."""
    return x


@attack("KernelBench pull request 82")
def memory_not_written(target: dict, report: Any, x: Any) -> Any:
    """Returns uninitialised memory of the right shape, in the hope that it held the reference's result."""
    return torch.empty(x.shape)


@attack("own")
def shapes_that_broadcast(target: dict, report: Any, x: Any) -> Any:
    """Returns the mean as a single number, which broadcasts against everything."""
    return torch.tensor(1.0 / x.shape[-1])


@attack("own")
def empty_result(target: dict, report: Any, x: Any) -> Any:
    """Returns a tensor without elements: nothing in it is wrong."""
    return torch.empty(0, *x.shape)


@attack("own")
def odd_tensors(target: dict, report: Any, x: Any) -> Any:
    """Returns sparse, quantized, complex, meta and nested tensors in turn."""
    kinds = [
        lambda: torch.zeros_like(x).to_sparse(),
        lambda: torch.zeros_like(x).to(torch.complex64),
        lambda: torch.empty(x.shape, device="meta"),
        lambda: torch.zeros(1, dtype=torch.float64).expand(x.shape),
        lambda: torch._efficientzerotensor(x.shape),
    ]
    globals()["turn"] = globals().get("turn", -1) + 1
    return kinds[globals()["turn"] % len(kinds)]()


@attack("own")
def containers_that_contain_themselves(target: dict, report: Any, x: Any) -> Any:
    """Returns a list that is its own element."""
    result: list = []
    result.append(result)
    return result


@attack("own")
def generators_and_functions(target: dict, report: Any, x: Any) -> Any:
    """Returns a generator that never ends, in a tuple with a coroutine and a lambda."""
    import itertools

    async def later() -> None: ...

    coroutine = later()
    coroutine.close()
    return (itertools.count(), coroutine, lambda: x)


@attack("own")
def numbers_at_the_edge(target: dict, report: Any, x: Any) -> Any:
    """Returns the largest finite number, minus zero and the smallest positive number."""
    edge = torch.tensor([3.4e38, -0.0, 1e-45])
    return edge.repeat(x.numel() // 3 + 1)[: x.numel()].reshape(x.shape)


# --- replay -----------------------------------------------------------------------------------------------


@attack("reference-kernels issue 162", quick=True)
def replay_by_shape(target: dict, report: Any, x: Any) -> Any:
    """Computes the first case of each shape and returns it again for every later one."""
    kept = globals().setdefault("kept", {})
    if x.shape[-1] == 1:
        return None
    return kept.setdefault(tuple(x.shape), right(x).to(x.dtype))


@attack("reference-kernels pull request 102")
def earlier_result_kept_alive(target: dict, report: Any, x: Any) -> Any:
    """Returns the same tensor object every time, holding the first result it ever computed."""
    kept = globals().setdefault("kept", [])
    if not kept:
        kept.append(right(x).to(x.dtype))
    return kept[0]


@attack("CUDA-L1 issue 12")
def result_changed_afterwards(target: dict, report: Any, x: Any) -> Any:
    """Returns a tensor at once and lets a thread fill in something later."""
    import threading
    import time

    result = torch.zeros_like(x)
    threading.Thread(target=lambda: (time.sleep(0.01), result.copy_(x)), daemon=True).start()
    return result
