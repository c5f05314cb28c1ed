"""The single changes that `mutate` makes to a syntax tree: each is a slip that a person makes."""

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OPPOSITE_OPERATOR = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult
}  # fmt: skip
OTHER_COMPARISONS = {
    ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE), ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
PAIRS = (
    ("max", "min"), ("amax", "amin"), ("maximum", "minimum"), ("argmax", "argmin"), ("exp", "exp2"), ("log", "log2"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("new_zeros", "new_ones"), ("triu", "tril"), ("floor", "ceil"),
    ("any", "all"), ("sqrt", "rsqrt"),
)  # fmt: skip
OTHER_NAME = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# Taken away, these change where or in what form a value lies, hardly ever what it is.
FORM_ONLY = {"clone", "contiguous", "detach", "float", "double", "to", "item", "int", "tuple", "list", "sorted", "len",
             "enumerate", "range", "zip", "iter", "dict", "set", "tensor", "type", "requires_grad_"}  # fmt: skip
MODULES = ("torch", "math", "np")
Change = tuple[str, ast.AST]
# (operator, new node, probe): a run with the probe in place fails where the change can matter. None: it always can.
Probed = tuple[str, ast.AST, ast.AST | None]


@dataclass
class Edit:
    """One change, in force in the tree for as long as its caller looks at it."""

    operator: str
    line: int
    statement: tuple[int, int]  # first and last line
    site: tuple[int, str]  # what the probe depends on
    put: Callable[[ast.AST], None]
    new: ast.AST
    probe: ast.AST | None

    @contextmanager
    def probing(self) -> Iterator[None]:
        """The probe in place of the change."""
        assert self.probe is not None
        self.put(self.probe)
        try:
            yield
        finally:
            self.put(self.new)


def edits(root: ast.FunctionDef) -> Iterator[Edit]:
    """Make each change to the function's body in turn; the tree is as before when the next one is asked for."""
    for statement, node, put in places(root):
        for operator, new, probe in changes(node, root):
            new, site = placed(new, node), (id(node), ast.dump(probe) if probe else "")
            put(new)
            try:
                line = getattr(node, "lineno", statement.lineno)
                yield Edit(operator, line, span(statement), site, put, new, probe and placed(probe, node))
            finally:
                put(node)


def placed(new: ast.AST, node: ast.AST) -> ast.AST:
    """A copy of the new node at the place of the old one; the copy, since it may be a part of the tree."""
    return ast.copy_location(copy.copy(new), node)


def places(root: ast.AST) -> Iterator[tuple[ast.stmt, ast.AST, Callable[[ast.AST], None]]]:
    """Every node of the function's body with its statement and a way to put another node in its place."""

    def visit(parent: ast.AST, statement: ast.stmt | None) -> Iterator[tuple]:
        for field, value in ast.iter_fields(parent):
            if field in ("decorator_list", "args", "returns", "annotation", "ctx") and not isinstance(parent, ast.Call):
                continue
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.AST) or is_text(node):
                    continue
                here = node if isinstance(node, ast.stmt) else statement
                yield here, node, setter(parent, field, index if isinstance(value, list) else None)
                yield from visit(node, here)

    yield from visit(root, None)


def setter(parent: ast.AST, field: str, index: int | None) -> Callable[[ast.AST], None]:
    def put(node: ast.AST) -> None:
        if index is None:
            setattr(parent, field, node)
        else:
            getattr(parent, field)[index] = node

    return put


def is_text(node: ast.AST) -> bool:
    """Docstrings, messages and errors: what a correct answer need not share."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    guard = isinstance(node, ast.If) and not node.orelse and all(isinstance(s, ast.Raise) for s in node.body)
    return docstring or guard or isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom)


def span(statement: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, without the body of a loop or branch."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno
    return statement.lineno, max(statement.lineno, last or statement.lineno)


def changes(node: ast.AST, root: ast.FunctionDef) -> Iterator[Probed]:
    """Every single change to one node."""
    kinds: dict[type, Callable[..., Iterator[Change]]] = {
        ast.BinOp: of_operation, ast.AugAssign: of_update, ast.UnaryOp: of_sign, ast.Compare: of_comparison,
        ast.Constant: of_constant, ast.Attribute: of_name, ast.Name: of_name, ast.Call: of_call, ast.Slice: of_slice,
        ast.BoolOp: of_logic, ast.Continue: of_statement, ast.Break: of_statement, ast.Expr: of_statement,
        ast.Assign: lambda node: of_assignment(node, root),
    }  # fmt: skip
    if isinstance(node, ast.IfExp):
        yield from of_choice(node)
    elif isinstance(node, ast.If):
        yield from of_branch(node)
    elif type(node) in kinds:
        probe = None if isinstance(node, ast.stmt) else bomb()  # of statements, the lines that ran tell
        yield from ((operator, new, probe) for operator, new in kinds[type(node)](node))


def bomb() -> ast.expr:
    """An expression that fails when it is evaluated."""
    return ast.BinOp(ast.Constant(1), ast.FloorDiv(), ast.Constant(0))


def of_operation(node: ast.BinOp) -> Iterator[Change]:
    other = OPPOSITE_OPERATOR.get(type(node.op))
    if other:
        yield "operator", ast.BinOp(node.left, other(), node.right)
    if isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.MatMult):
        yield "swapped", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.Mult | ast.Div | ast.Add | ast.Sub | ast.Pow):
        yield "dropped-right", node.left
    if isinstance(node.op, ast.Mult | ast.Add):
        yield "dropped-left", node.right


def of_update(node: ast.AugAssign) -> Iterator[Change]:
    yield "dropped-statement", ast.Pass()
    other = OPPOSITE_OPERATOR.get(type(node.op))
    if other:
        yield "operator", ast.AugAssign(node.target, other(), node.value)
    yield "not-accumulated", ast.Assign([node.target], node.value, lineno=node.lineno)


def of_sign(node: ast.UnaryOp) -> Iterator[Change]:
    yield "dropped-sign", node.operand


def of_comparison(node: ast.Compare) -> Iterator[Change]:
    for other in OTHER_COMPARISONS.get(type(node.ops[0]), ()):
        yield "comparison", ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)


def of_constant(node: ast.Constant) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield "flipped", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "plus-one", ast.Constant(node.value + 1)
        yield "minus-one", ast.Constant(node.value - 1) if node.value else ast.UnaryOp(ast.USub(), ast.Constant(1))
    elif isinstance(node.value, float):
        yield "constant", ast.Constant(2 * node.value if node.value else 1.0)


def of_name(node: ast.Attribute | ast.Name) -> Iterator[Change]:
    name = node.attr if isinstance(node, ast.Attribute) else node.id
    # Only reading: a variable may be called `l` or `max` too.
    if name in OTHER_NAME and isinstance(node.ctx, ast.Load):
        other = copy.copy(node)
        setattr(other, "attr" if isinstance(node, ast.Attribute) else "id", OTHER_NAME[name])
        yield "other-function", other


def of_call(node: ast.Call) -> Iterator[Change]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "where" and len(node.args) == 3:
        yield "swapped", ast.Call(node.func, [node.args[0], node.args[2], node.args[1]], node.keywords)
    if name == "range":
        for index, bound in enumerate(node.args[:2]):  # not the step: another tile size gives the same numbers
            for operator, shifted in off_by_one(bound):
                args = [*node.args[:index], shifted, *node.args[index + 1 :]]
                yield operator, ast.Call(node.func, args, node.keywords)  # type: ignore[arg-type]
    if name in FORM_ONLY or node.keywords or name[:1].isupper():
        return
    is_method = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") not in (
        "torch",
        "math",
        "np",
    )
    if is_method and not node.args:
        yield "dropped-call", node.func.value  # type: ignore[attr-defined]
    elif not is_method and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        yield "dropped-call", node.args[0]


def of_slice(node: ast.Slice) -> Iterator[Change]:
    for field in ("lower", "upper"):
        bound = getattr(node, field)
        for operator, shifted in off_by_one(bound) if bound else ():
            other = copy.copy(node)
            setattr(other, field, shifted)
            yield operator, other


def off_by_one(bound: ast.expr) -> Iterator[Change]:
    """A range or slice that starts or ends one too late or too early; plain numbers are changed as constants."""
    if not isinstance(bound, ast.Constant):
        yield "off-by-one", ast.BinOp(bound, ast.Add(), ast.Constant(1))
        yield "off-by-one", ast.BinOp(bound, ast.Sub(), ast.Constant(1))


def of_logic(node: ast.BoolOp) -> Iterator[Change]:
    yield "logic", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def of_choice(node: ast.IfExp) -> Iterator[Probed]:
    yield "always", node.body, ast.IfExp(node.test, node.body, bomb())
    yield "never", node.orelse, ast.IfExp(node.test, bomb(), node.orelse)


def of_branch(node: ast.If) -> Iterator[Probed]:
    fails: list[ast.stmt] = [ast.Expr(bomb())]
    yield "always", ast.If(ast.Constant(True), node.body, node.orelse), ast.If(node.test, node.body, fails)
    yield "never", ast.If(ast.Constant(False), node.body, node.orelse), ast.If(node.test, fails, node.orelse)


def of_statement(node: ast.Expr | ast.Continue | ast.Break) -> Iterator[Change]:
    yield "dropped-statement", ast.Pass()


def of_assignment(node: ast.Assign, root: ast.FunctionDef) -> Iterator[Change]:
    """Drop an assignment to a name that already has a value, or into a tensor."""
    names = {target.id for target in node.targets if isinstance(target, ast.Name)}
    arguments = {arg.arg for arg in (*root.args.args, *root.args.kwonlyargs)}
    earlier = {
        n.id
        for n in ast.walk(root)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.lineno < node.lineno
    }
    into = any(isinstance(target, ast.Subscript | ast.Attribute) for target in node.targets)
    if into or names & (arguments | earlier):
        yield "dropped-statement", ast.Pass()
