"""What stays of a program when names, numbers, order of statements and prose are taken away.

Each expression and each statement header becomes a small tree of operations, cut `DEPTH` levels below its root, and
hashed. Variables are all one leaf and constants another; `x.exp()`, `torch.exp(x)` and `np.exp(x)` are one call;
`a + b` and `b + a` one sum; `x += y` is `x = x + y`; a keyword argument is one more argument. Bodies of functions and
loops belong to no tree, so that a statement keeps its fingerprint wherever it is moved. The same text always gives
the same fingerprints, in every process.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DEPTH = 3  # levels below the root: at 2 unrelated answers share too much, deeper ones change nothing in our labs
SMALLEST = 3  # nodes; smaller trees are in every program
MAX_SOURCE = 100_000  # characters of one program; more is no answer to a question
VARIABLE, CONSTANT = "v", "c"
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # all that parsing a hostile text raises
_BLOCKS = ("body", "orelse", "finalbody", "handlers")
_COMMUTES = (ast.Add, ast.Mult)


@dataclass(frozen=True)
class Fingerprint:
    """A program's fingerprints, each with the line where it first stands."""

    source: str
    lines: dict[int, int] = field(default_factory=dict)
    readable: bool = True  # False: no Python, too long, or too deep to take apart

    @property
    def marks(self) -> frozenset[int]:
        return frozenset(self.lines)

    def without(self, given: frozenset[int]) -> "Fingerprint":
        """The same without what everybody was given."""
        return Fingerprint(self.source, {mark: line for mark, line in self.lines.items() if mark not in given})


def parse(source: str) -> ast.Module | None:
    """The syntax tree, or None for what is no Python (or far too much of it)."""
    if len(source) > MAX_SOURCE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the student's escapes: "\d"
            return ast.parse(source)
    except UNREADABLE:
        return None


def fingerprint(source: str) -> Fingerprint:
    """The fingerprints of a whole program; none if it cannot be read."""
    tree = parse(source)
    if tree is None:
        return Fingerprint(source, readable=False)
    lines: dict[int, int] = {}
    try:
        bound = bound_names(tree)
        for line, tree_of_line in trees(tree, bound):
            collect(tree_of_line, line, lines)
    except RecursionError:
        return Fingerprint(source, readable=False)
    return Fingerprint(source, lines)


def bound_names(tree: ast.AST) -> frozenset[str]:
    """Every name that the program itself gives: these are the author's choice, so they tell nothing."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    return frozenset(found)


# --- trees --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """An operation and its operands, without names."""

    label: str
    operands: tuple["Tree", ...] = ()

    def cut(self, depth: int) -> str:
        """The tree as text, down to `depth` levels."""
        if not self.operands or depth == 0:
            return self.label
        return f"{self.label}({','.join(operand.cut(depth - 1) for operand in self.operands)})"


def collect(tree: Tree, line: int, into: dict[int, int]) -> int:
    """Hash `tree` and every tree inside it that is large enough; returns its size."""
    size = 1 + sum(collect(operand, line, into) for operand in tree.operands)
    if size >= SMALLEST:
        digest = hashlib.blake2b(tree.cut(DEPTH).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        into.setdefault(int.from_bytes(digest, "big"), line)
    return size


def trees(node: ast.AST, bound: frozenset[str]) -> Iterator[tuple[int, Tree]]:
    """(line, tree) of every statement below `node`, without the statements inside it, which follow by themselves."""
    for block in _BLOCKS:
        for statement in getattr(node, block, ()):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):  # a docstring
                if not isinstance(statement, ast.Import | ast.ImportFrom):
                    yield statement.lineno, header(statement, bound)
                yield from trees(statement, bound)


def header(statement: ast.AST, bound: frozenset[str]) -> Tree:
    """One statement by itself: no body, no annotations, no default values' names."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return Tree("define")  # a signature is given by the question
    if isinstance(statement, ast.AugAssign):
        target = normal(statement.target, bound)
        return Tree("Assign", (target, operation(statement.op, target, normal(statement.value, bound))))
    if isinstance(statement, ast.AnnAssign):
        return Tree("Assign", parts([statement.target, statement.value], bound))
    children = [value for name, value in ast.iter_fields(statement) if name not in _BLOCKS]
    return Tree(type(statement).__name__, parts(children, bound))


def parts(children: Sequence[object], bound: frozenset[str]) -> tuple[Tree, ...]:
    """The trees of an AST node's fields, lists of nodes included."""
    flat = [item for child in children for item in (child if isinstance(child, list) else [child])]
    nodes = [item for item in flat if isinstance(item, ast.AST) and not isinstance(item, ast.expr_context)]
    return tuple(normal(node, bound) for node in nodes)


def normal(node: ast.AST, bound: frozenset[str]) -> Tree:
    """An expression with its spelling taken away."""
    match node:
        case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return Tree(CONSTANT)
        case ast.Name(id=name):
            return Tree(VARIABLE if name in bound else name)
        case ast.keyword(value=value):
            return normal(value, bound)
        case ast.BinOp(left=left, op=operator, right=right):
            return operation(operator, normal(left, bound), normal(right, bound))
        case ast.Compare(left=left, ops=operators, comparators=right):
            return Tree("/".join(type(each).__name__ for each in operators), parts([left, right], bound))
        case ast.Call(func=function, args=args, keywords=keywords):
            return call(function, parts([args, keywords], bound), bound)
        case ast.Attribute(value=value, attr=name):
            return Tree(f".{name}", () if outside(value, bound) else (normal(value, bound),))
        case ast.Lambda(body=body):
            return Tree("define", (normal(body, bound),))
    return Tree(type(node).__name__, parts([value for _, value in ast.iter_fields(node)], bound))


def operation(operator: ast.operator, left: Tree, right: Tree) -> Tree:
    operands = (left, right)
    if isinstance(operator, _COMMUTES):
        operands = tuple(sorted(operands, key=lambda tree: tree.cut(DEPTH)))  # type: ignore[assignment]
    return Tree(type(operator).__name__, operands)


def call(function: ast.AST, arguments: tuple[Tree, ...], bound: frozenset[str]) -> Tree:
    """A call by the function's name, whether it is a method, a function of a module, or a name."""
    match function:
        case ast.Attribute(value=value, attr=name):
            return Tree(f"call {name}", arguments if outside(value, bound) else (normal(value, bound), *arguments))
        case ast.Name(id=name):
            return Tree(f"call {VARIABLE if name in bound else name}", arguments)
    return Tree("call", (normal(function, bound), *arguments))


def outside(value: ast.AST, bound: frozenset[str]) -> bool:
    """Whether this names something the program did not make: a module, whatever it was imported as."""
    return isinstance(value, ast.Name) and value.id not in bound
