"""The house rules about the Python in a notebook: figures, questions, stubs and imports."""

import ast
import re
import sys
from collections.abc import Iterator

from nbformat.notebooknode import NotebookNode

from course.notebooks.build import REGION
from course.notebooks.lint import LIMITS, Draft, Finding, Rule

# What exists where a submission is graded. lab.toml's `imports` adds to it.
GRADED_IMPORTS = {"torch", "numpy", "triton", "autograder", *sys.stdlib_module_names}


def parse(cell: NotebookNode) -> ast.Module | None:
    """The cell's syntax tree without IPython's lines (%magic, !command); None if it is no Python."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def cells_are_python(draft: Draft) -> Iterator[Finding]:
    """Every code cell can be parsed."""
    for number, cell in draft.numbered("code"):
        if parse(cell) is None:
            yield number, "the cell is not valid Python", "Run it once; the kernel says where."


def figures_have_alt_text(draft: Draft) -> Iterator[Finding]:
    """Each `show(fig, alt=…)` says in words what the figure shows, and nothing else shows a figure."""
    for number, cell in draft.numbered("code"):
        for call in (node for node in ast.walk(parse(cell) or ast.Module([], [])) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name in ("plt.show", "fig.show", "matplotlib.pyplot.show"):
                yield number, f"{name}() shows a figure without words", "Use show(fig, alt=…) of course.viz."
            elif name.rpartition(".")[2] == "show":
                yield from ((number, what, fix) for what, fix in _alt(call))


def _alt(call: ast.Call) -> Iterator[tuple[str, str]]:
    alt = next((keyword.value for keyword in call.keywords if keyword.arg == "alt"), None)
    fix = "Write kind of figure, axes, the two numbers that carry the claim, the conclusion."
    if alt is None or (isinstance(alt, ast.Constant) and not str(alt.value or "").strip()):
        yield "show() without alt text", fix
    elif isinstance(alt, ast.Constant):
        limit, text = LIMITS["words of alt text"], str(alt.value)
        if len(text.split()) > limit:
            yield f"alt text of {len(text.split())} words (limit {limit})", "Keep the claim and its two numbers."
        if not re.search(r"\d", text):
            yield "alt text without a number", fix


def lab_opens_itself(draft: Draft) -> Iterator[Finding]:
    """The first code cell opens the lab under its own slug."""
    want = f'open_lab("{draft.source.slug}")'
    number, first = next(draft.numbered("code"), (None, None))
    if first is None or want not in first.source or "setup" not in first.metadata.get("tags", []):
        yield number, f"the first code cell is no setup cell with {want}", 'Write it under `# %% tags=["setup"]`.'


def checks_only_check(draft: Draft) -> Iterator[Finding]:
    """A check cell holds one line: nbgrader locks it, and the judge skips it."""
    for name, (number, cell) in draft.of_role("check").items():
        if cell.source.strip() != f'lab.check("{name}")':
            yield number, f"the check cell of `{name}` holds something else", f'Write only lab.check("{name}").'


def solutions_leave_a_stub(draft: Draft) -> Iterator[Finding]:
    """Outside the solution region stay a signature and its docstring, and the cell without it still parses."""
    for name, (number, cell) in draft.of_role("question").items():
        if not REGION.search(cell.source):
            fix = "Put `# BEGIN SOLUTION` and `# END SOLUTION` around the body; signature and docstring stay outside."
            yield number, f"`{name}` has no solution region: the student would get no signature", fix
            continue
        stub = cell.source
        for region in REGION.finditer(cell.source):
            indent = re.match(r"[ \t]*", region[0])
            stub = stub.replace(region[0], f"{indent[0] if indent else ''}raise NotImplementedError")
        try:
            tree = ast.parse(stub)
        except SyntaxError as error:
            yield number, f"the stub of `{name}` is not valid Python: {error.msg}", "Close the region on its own level."
            continue
        public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        # A Triton kernel explains each argument on its own line instead.
        plain = [node for node in public if not any("jit" in ast.unparse(d) for d in node.decorator_list)]
        if not public or not all(ast.get_docstring(node) for node in plain):
            fix = "Each function or class says in a docstring what it returns, with shapes."
            yield number, f"the stub of `{name}` has no docstring", fix


def graded_cells_import_what_is_there(draft: Draft) -> Iterator[Finding]:
    """Setup and solution cells run where only a few packages exist."""
    allowed = GRADED_IMPORTS | set(draft.source.imports)
    for number, cell in draft.numbered("code"):
        if not {"setup", "solution"} & set(cell.metadata.get("tags", [])):
            continue
        for node in ast.walk(parse(cell) or ast.Module([], [])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (name.partition(".")[0] for name in names):
                if name not in allowed:
                    fix = "Move the import to an explore cell, or add the package to `imports` of lab.toml."
                    yield number, f"a graded cell imports `{name}`, which the judge does not have", fix


CODE: list[Rule] = [cells_are_python, figures_have_alt_text]
LAB_CODE: list[Rule] = [
    lab_opens_itself,
    checks_only_check,
    solutions_leave_a_stub,
    graded_cells_import_what_is_there,
]
