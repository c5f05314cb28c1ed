"""Take operations out of PyTorch for the rest of this process, before any student code runs in it.

A watcher (watch.py) stands in the way of a call and can be pushed aside by the code it watches. Here the kernels are
gone: PyTorch's dispatcher holds a refusal in their place, for every thread and by whatever name they are reached, and
nothing in Python refers to the originals or to what could bring them back. A program that needs none of them notices
nothing.
"""

import ctypes
import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import torch

from .watch import ForbiddenCall

# Where the dispatcher keeps kernels that compute; the others (autograd, autocast, Meta …) lead to these.
KEYS = (
    "CPU", "CUDA", "MkldnnCPU", "SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA", "QuantizedCPU",
    "NestedTensorCPU", "NestedTensorCUDA", "CompositeImplicitAutograd", "CompositeImplicitAutogradNestedTensor",
    "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional",
)  # fmt: skip

removed: set[str] = set()  # the names given so far


def remove_operations(names: Iterable[str]) -> None:
    """Every operation of ATen whose name contains one of `names` raises ForbiddenCall from now on."""
    names = tuple(names)
    removed.update(names)
    every = torch._C._dispatch_get_all_op_names()
    wanted = [op for op in every if op.startswith("aten::") and any(name in op for name in names)]
    library = torch._C._dispatch_library("IMPL", "aten", "")  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is overridden is what we want
        for op in wanted:
            for key in KEYS:
                if torch._C._dispatch_has_kernel_for_dispatch_key(op, key):
                    library.impl(op, key, refusal(op))
    # Its end would bring the kernels back, so it lives on without a reference that could be found.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(library))


def refusal(operation: str) -> Any:
    """What stands in an operation's place."""

    def refuse_it(*args: object, **kwargs: object) -> NoReturn:
        raise ForbiddenCall(f"`{operation}` was called, but this question is to be solved without it")

    return refuse_it
