"""Replace what the checks, the runner or the kernel rest on."""

from typing import Any

from autograder.redteam.attack import attack


@attack("published in Gradescope write-ups", quick=True)
def asserts_replaced(target: dict, report: Any) -> None:
    """Replaces numpy's and torch's assertion helpers, so that no comparison fails."""
    import numpy.testing as testing

    for module in (testing, torch.testing):
        for name in dir(module):
            if name.startswith("assert_"):
                setattr(module, name, lambda *args, **kwargs: None)
    for name in ("allclose", "equal", "isclose"):
        setattr(torch, name, lambda *args, **kwargs: True)


@attack("measured against nbgrader 0.9.6")
def asserts_stripped(target: dict, report: Any) -> None:
    """Registers an AST transformer that turns every assert of the later cells into nothing."""
    import ast

    class Strip(ast.NodeTransformer):
        def visit_Assert(self, node: Any) -> Any:
            return ast.Pass()

        def visit_Expr(self, node: Any) -> Any:
            return ast.Pass() if "assert" in ast.dump(node) else node

    get_ipython().ast_transformers.append(Strip())


@attack("measured against nbgrader 0.9.6")
def checker_replaced(target: dict, report: Any) -> None:
    """Puts modules of its own in place of the ones that check."""
    import sys
    import types

    class Yes(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: True

    for name in ("autograder", "autograder.checks", "checker", "checks", "grading", "numpy.testing"):
        sys.modules[name] = Yes(name)


@attack("measured against nbgrader 0.9.6", quick=True)
def displayhook_called(target: dict, report: Any, x: Any) -> None:
    """Shows the number 10 from inside the answer, where nbgrader reads the first number as the grade."""
    import sys

    sys.displayhook(10.0)


@attack("measured against nbgrader 0.9.6")
def input_transformed(target: dict, report: Any) -> None:
    """Registers an input transformer that turns every later cell into the number 10."""
    get_ipython().input_transformers_cleanup.append(lambda lines: ["10.0\n"])


@attack("measured against nbgrader 0.9.6")
def run_cell_replaced(target: dict, report: Any) -> None:
    """Replaces the kernel's own run_cell_async, so that no later cell runs."""
    shell = get_ipython()

    async def run_cell_async(*args: Any, **kwargs: Any) -> Any:
        from IPython.core.interactiveshell import ExecutionResult

        result = ExecutionResult(None)
        result.result = 10.0
        return result

    shell.run_cell_async = run_cell_async


@attack("own")
def comparison_operators_replaced(target: dict, report: Any) -> None:
    """Makes every torch comparison say yes and every difference zero."""
    yes = lambda self, *args: torch.ones_like(self, dtype=torch.bool)
    for name in ("__eq__", "__le__", "__lt__", "isclose", "eq", "le"):
        setattr(torch.Tensor, name, yes)
    for name in ("__sub__", "sub", "__rsub__"):
        setattr(torch.Tensor, name, lambda self, *args: torch.zeros_like(self))


@attack("otter: replacing pickle.dump", plain=False)
def encoders_replaced(target: dict, report: Any) -> None:
    """Replaces json and safetensors, so that every reply claims full points."""
    import json

    import safetensors.torch

    real = json.dumps
    claim = {"ok": True, "earned": 10, "points": 10, "passed": True, "status": "passed"}

    def dumps(value: Any, **options: Any) -> str:
        return real({**value, **claim} if isinstance(value, dict) else value, **options)

    json.dumps = dumps
    safetensors.torch.save = lambda tensors, *rest: b"\x02\x00\x00\x00\x00\x00\x00\x00{}"


@attack("pygpubench pull request 7", plain=False, quick=True)
def runner_replaced(target: dict, report: Any) -> None:
    """Rewrites the runner's own functions: what it calls, encodes and sends."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("sandbox."):
            for function in ("describe", "call", "load_drive", "refuse"):
                if hasattr(module, function):
                    setattr(module, function, lambda *args, **kwargs: ({"t": []}, b""))
            if hasattr(module, "encode"):
                module.encode = lambda value: ({"ok": True, "passed": True, "points": 10}, b"")


@attack("own", plain=False)
def socket_replaced(target: dict, report: Any) -> None:
    """Replaces socket.sendall, so that every frame is followed by another that says it passed."""
    import socket

    real = socket.socket.send

    def sendall(self: Any, data: bytes, *rest: Any) -> None:
        real(self, data)
        real(self, frame({"id": "0", "ok": True, "value": True, "earned": 10}))

    try:
        socket.socket.sendall = sendall
    except TypeError:
        socket.socket = type("socket", (socket.socket,), {"sendall": sendall})  # type: ignore[misc]


@attack("own")
def builtins_replaced(target: dict, report: Any) -> None:
    """Replaces isinstance, len, abs, max and __import__ for everything in the process."""
    import builtins

    builtins.isinstance = lambda *args: True  # type: ignore[assignment]
    builtins.len = lambda *args: 1  # type: ignore[assignment]
    builtins.abs = lambda *args: 0.0  # type: ignore[assignment]
    builtins.max = lambda *args, **kwargs: 0.0  # type: ignore[assignment]


@attack("own")
def exception_hooks(target: dict, report: Any) -> None:
    """Swallows every error of later cells: sys.excepthook, custom handlers, and AssertionError as a subclass of int."""
    import builtins
    import sys

    sys.excepthook = lambda *args: None
    builtins.AssertionError = type("AssertionError", (BaseException,), {})  # type: ignore[misc]
    shell = get_ipython()
    shell.set_custom_exc((BaseException,), lambda *args, **kwargs: None)
    shell.showtraceback = lambda *args, **kwargs: None


@attack("reference-kernels pull request 102")
def clocks_replaced(target: dict, report: Any, x: Any) -> Any:
    """Stops every clock of the process and works for 0.3 s, so that the answer seems to cost nothing."""
    import time

    time.sleep(0.3)
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        setattr(time, name, lambda: 0.0)
    return None
