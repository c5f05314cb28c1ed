"""Two small assignments of five torch functions each, as labs of ours and as notebooks for plain nbgrader.

Both kinds ask the same functions in the same cells under the same names; what differs is the check cell: `lab.check`
here, asserts with hidden tests there. The made-up answers are right or wrong in every case, because asserts know no
partial credit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.notebooknode import NotebookNode

POINTS = 10


@dataclass(frozen=True)
class Function:
    """One question: what it computes, on which inputs, and how students answer it."""

    name: str
    parameters: str
    inputs: tuple[str, ...]  # of each hidden case; `g` is the generator
    reference: str  # an expression in the parameters
    right: tuple[str, ...]  # other right expressions
    wrong: tuple[str, ...]  # expressions that are wrong on every case, or raise

    @property
    def spec(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_"))

    def define(self, expression: str) -> str:
        return f"def {self.name}({self.parameters}):\n    return {expression}\n"


X = "torch.randn(6, 33, generator=g),"
LOGITS = "torch.randn(5, 17, generator=g), torch.tensor([3, 0, 16, 7, 7]),"
ATTENTION = "torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v"
QKV = "torch.randn(2, 7, 8, generator=g), torch.randn(2, {n}, 8, generator=g), torch.randn(2, {n}, 8, generator=g),"
NORM = "(x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5) ** 0.5"
RMS = "x / (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** 0.5"
LSE = "(x - x.amax(-1, keepdim=True)).exp().sum(-1).log() + x.amax(-1)"
PICK = ".gather(1, target[:, None]).mean()"

ASSIGNMENTS: dict[str, tuple[Function, ...]] = {
    "90_forward": (
        Function("softmax", "x", (X, "30 * torch.randn(4, 12, generator=g),"), "torch.softmax(x, -1)",
                 ("(x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)",
                  "torch.log_softmax(x, -1).exp()"),
                 ("torch.softmax(x, 0)", "x.exp()", "x / x.missing(-1)")),
        Function("layer_norm", "x", (X,), NORM,
                 ("torch.nn.functional.layer_norm(x, x.shape[-1:])",),
                 ("x - x.mean(-1, keepdim=True)", "x / x.std()", "torch.nn.functional.layer_norm(x, (3,))")),
        Function("attention", "q, k, v", (QKV.format(n=7), QKV.format(n=11)), ATTENTION,
                 ("torch.nn.functional.scaled_dot_product_attention(q, k, v)",),
                 ("torch.softmax(q @ k.transpose(-1, -2), -1) @ v", "q @ k.transpose(-1, -2) @ v", "q @ k @ v")),
        Function("gelu", "x", (X,), "x * (1 + torch.erf(x / 2 ** 0.5)) / 2",
                 ("torch.nn.functional.gelu(x)",),
                 ("x * torch.sigmoid(x)", "torch.relu(x)", "torch.gelu(x)")),
        Function("rms_norm", "x", (X,), RMS,
                 ("x * torch.rsqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)",),
                 ("x / x.norm(dim=-1, keepdim=True)", "x", "x / x.rms()")),
    ),
    "91_losses": (
        Function("log_sum_exp", "x", (X, "200 * torch.rand(4, 9, generator=g),"), LSE,
                 ("torch.logsumexp(x, -1)",),
                 ("x.logsumexp(0)", "x.exp().sum(-1)", "x.sum(-1).log10(-1)")),
        Function("cross_entropy", "x, target", (LOGITS,), f"-torch.log_softmax(x, -1){PICK}",
                 ("torch.nn.functional.cross_entropy(x, target)",),
                 (f"-x{PICK}", "torch.nn.functional.cross_entropy(x, target, reduction='sum')", "x[target]" + " @ 1")),
        Function("kl_divergence", "p, q", ("torch.rand(4, 8, generator=g).softmax(-1), "
                                         "torch.rand(4, 8, generator=g).softmax(-1),",), "(p * (p / q).log()).sum(-1)",
                 ("(p * (p.log() - q.log())).sum(-1)",),
                 ("(q * (q / p).log()).sum(-1)", "(p - q).abs().sum(-1)", "torch.kl(p, q)")),
        Function("causal_mean", "x", (X, "torch.randn(3, 40, generator=g),"),
                 "x.cumsum(-1) / torch.arange(1, x.shape[-1] + 1)",
                 ("torch.stack([x[:, : i + 1].mean(-1) for i in range(x.shape[-1])], -1)",),
                 ("x.cumsum(-1) / x.shape[-1]", "x.mean(-1, keepdim=True).expand_as(x)", "x.cummean(-1)")),
        Function("cosine", "a, b", ("torch.randn(5, 16, generator=g), torch.randn(5, 16, generator=g),",),
                 "(a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))",
                 ("torch.nn.functional.cosine_similarity(a, b)",),
                 ("(a * b).sum(-1)", "a @ b.T", "a.cosine(b)")),
    ),
}  # fmt: skip


# --- as a lab of ours -----------------------------------------------------------------------------------


def write_lab(folder: Path, functions: Sequence[Function]) -> None:
    """The files of a lab's folder; `lab.ipynb` is built from them."""
    folder.mkdir(parents=True)
    for name, text in (
        ("lab.toml", lab_toml(folder.name, functions)), ("lab.py", lab_py(folder.name, functions)),
        ("checks.py", checks_py(functions)), ("reference.py", reference_py(functions)), ("mistakes.py", MISTAKES),
    ):  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8")


def lab_toml(slug: str, functions: Sequence[Function]) -> str:
    tables = [f"[questions.{f.name}]\npoints = {POINTS}\nminutes = 5\ndifficulty = 1\n" for f in functions]
    return "\n".join([f'title = "{slug}"\nminutes = 25\n', *tables])


def lab_py(slug: str, functions: Sequence[Function]) -> str:
    opened = f'from autograder import open_lab\n\nlab = open_lab("{slug}")'
    cells = [f"# %% [markdown]\n# # {slug}", f'# %% tags=["setup"]\nimport torch\n\n{opened}']
    for f in functions:
        body = f"    # BEGIN SOLUTION\n    return {f.reference}\n    # END SOLUTION"
        cells.append(f'# %% question="{f.name}"\ndef {f.name}({f.parameters}):\n{body}')
        cells.append(f'# %% check="{f.name}"\nlab.check("{f.name}")')
    return "\n\n".join(cells) + "\n"


def checks_py(functions: Sequence[Function]) -> str:
    parts = ['"""Cases of a made-up assignment."""\n\nimport torch\n\nfrom autograder import Case, question\n']
    for f in functions:
        cases = "\n".join(f'        yield Case("case {i}", {inputs})' for i, inputs in enumerate(f.inputs))
        head = f'@question("{f.name}", oracle="reference:{f.name}")\nclass {f.spec}:\n    """`{f.name}`."""\n\n'
        parts.append(f"{head}    def cases(self, g):\n{cases}\n")
    return "\n\n".join(parts)


def reference_py(functions: Sequence[Function]) -> str:
    head = '"""References of a made-up assignment."""\n\nimport torch\n'
    return "\n\n".join([head, *(f.define(f.reference) for f in functions)])


MISTAKES = '"""None: a class of right and wrong answers needs no diagnosis."""\n'


# --- for plain nbgrader ---------------------------------------------------------------------------------


def plain_source(functions: Sequence[Function]) -> NotebookNode:
    """The instructor's version: solutions, and asserts of which all but the first are hidden."""
    cells = [nbformat.v4.new_code_cell("import torch", id="setup")]
    for f in functions:
        solution = (
            f"def {f.name}({f.parameters}):\n    ### BEGIN SOLUTION\n    return {f.reference}\n    ### END SOLUTION"
        )
        cells.append(graded(f.name, solution, solution=True))
        cells.append(graded(f"check-{f.name}", plain_check(f), solution=False))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def graded(name: str, source: str, *, solution: bool) -> NotebookNode:
    metadata = {"schema_version": 3, "grade_id": name, "solution": solution, "grade": not solution}
    metadata |= {"locked": not solution, "task": False} | ({} if solution else {"points": POINTS})
    return nbformat.v4.new_code_cell(source, id=name.replace("_", "-"), metadata={"nbgrader": metadata})


def plain_check(f: Function) -> str:
    """Asserts as an instructor writes them; nbgrader strips the hidden ones from the release and puts them back."""
    tests = "\n".join(f"check({inputs})" for inputs in f.inputs)
    return (
        f"g = torch.Generator().manual_seed(7)\n\n\ndef expected({f.parameters}):\n    return {f.reference}\n\n\n"
        "def check(*args):\n"
        f"    torch.testing.assert_close({f.name}(*args), expected(*args))\n\n\n"
        f"assert callable({f.name})\n### BEGIN HIDDEN TESTS\n{tests}\n### END HIDDEN TESTS"
    )


# --- a class --------------------------------------------------------------------------------------------


def answers(functions: Sequence[Function], count: int, seed: int = 1) -> dict[str, dict[str, str]]:
    """Student -> question -> source of the answer; three of four are right, some are not attempted ("")."""
    dice = random.Random(seed)

    def one(f: Function) -> str:
        roll = dice.random()
        if roll < 0.75:
            return f.define(dice.choice((f.reference, *f.right)))
        return f.define(dice.choice(f.wrong)) if roll < 0.95 else ""

    return {f"s{number:03d}": {f.name: one(f) for f in functions} for number in range(count)}


def fill(release: NotebookNode, sources: dict[str, str]) -> NotebookNode:
    """One student's notebook: the release with the attempted answers in their cells."""
    notebook = nbformat.from_dict(nbformat.v4.reads(nbformat.v4.writes(release)))
    for cell in notebook.cells:
        written = sources.get(cell.metadata.get("nbgrader", {}).get("grade_id", ""))
        if written:
            cell.source = written
    return notebook
