"""Every text that the package gives an error, read from its source: ``{}`` stands for what is filled in.

An error's text is looked for where the error is made, also in a helper that returns one, and not where it is raised.
A text that is put together of a function's parameters is looked up where that function is called. Faults that are
collected in a list and told together are looked for where they go into the list.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "plugins" / "hyperflow"
AIRFLOWS = {"AirflowException", "AirflowFailException"}
LEAST = 5  # letters of its own that a text needs to be known by; one with fewer is what somebody else said
DEEP = 4  # calls that a text is followed through

ARGUMENT = {"Concern": 2}  # classes whose text is not their first argument
OF_FAULTS = {"DocumentError", "PlanError", "ManifestError", "ReportError"}  # made of faults, looked at instead
LISTS = {"faults", "found", "wrong", "short"}  # names of lists of texts that become one error
GIVE_TEXTS = ("faults", "conflicts", "why_left", "use_fault")  # ends of names of functions that return such texts
TABLES = {"ADVICE", "DEAD_ENDS"}  # constants with texts that become errors
REASONS = {"reason", "error"}  # keys of what a job or trigger tells of its end
TELL_REASONS = ("kvmhost/jobs.py", "kvmhost/job_state.py", "triggers/job.py", "triggers/export.py")

COLLECTED = "(told with others)"  # in place of an error's class

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Made:
    """One text of an error.

    :param where: ``operators/base.py:12 function``
    :param error: the class, or how else the text becomes an error
    :param text: with ``{}`` for each field; None where the source does not show it
    """

    where: str
    error: str
    text: str | None

    @property
    def place(self) -> str:
        """``operators/base.py function``: stays when lines above it change."""
        path, _, function = self.where.partition(" ")
        return f"{path.partition(':')[0]} {function}"


@dataclass
class Module:
    """A file of the package, and what is looked up in it."""

    path: Path
    tree: ast.Module
    functions: dict[str, list[Function]] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    attributes: dict[str, list[tuple[ast.expr, Function | None]]] = field(default_factory=dict)
    calls: dict[str, list[tuple[ast.Call, Function | None]]] = field(default_factory=dict)


def made(packages: Sequence[str]) -> list[Made]:
    """List every text of the errors that these packages of Hyperflow make."""
    found: list[Made] = []
    for path in sorted(path for package in packages for path in (PACKAGE / package).rglob("*.py")):
        found += _made_in(_module(path))
    return found


@cache
def error_classes() -> frozenset[str]:
    """Names of the classes that are errors: the package's own, Airflow's, and Python's; and what becomes one."""
    bases: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(_module(path).tree):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(_name(base) for base in node.bases)
    known = AIRFLOWS | {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    while more := {name for name, above in bases.items() if above & known} - known:
        known |= more
    return frozenset(known | {"Fault", "Concern"})


@cache
def _module(path: Path) -> Module:
    module = Module(path, ast.parse(path.read_text()))
    for function, node in _walk(module.tree, None):
        if isinstance(node, Function):
            module.functions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Call):
            module.calls.setdefault(_name(node.func), []).append((node, function))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and function is None:
                module.constants[target.id] = node.value
            elif isinstance(target, ast.Attribute):
                module.attributes.setdefault(target.attr, []).append((node.value, function))
    return module


def _walk(node: ast.AST, function: Function | None) -> Iterator[tuple[Function | None, ast.AST]]:
    """Every node below, with the function around it."""
    for child in ast.iter_child_nodes(node):
        yield function, child
        yield from _walk(child, child if isinstance(child, Function) else function)


def _made_in(module: Module) -> Iterator[Made]:
    for function, node in _walk(module.tree, None):
        where = f"{module.path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        where += f" {function.name if function else '(module)'}"
        if isinstance(node, ast.Call) and (name := _error(node)):
            for text in _texts_of_error(module, node, name, function):
                yield Made(where, name, text if _letters(text) >= LEAST else None)
        for text in _collected(module, node, function):
            if _letters(text) >= LEAST:
                yield Made(where, COLLECTED, text)


def _error(call: ast.Call) -> str | None:
    """The error's class that a call makes, also of two to choose from."""
    names = {_name(each) for each in _alternatives(call.func)} & error_classes()
    return min(names) if names and not names & OF_FAULTS else None


def _texts_of_error(module: Module, call: ast.Call, name: str, function: Function | None) -> list[str]:
    if name == "Fault":
        said = [_texts(module, each, function) for each in call.args[1:3]]
        found, expected = (*said, ["{}"], ["{}"])[:2]
        return [f"{{}}: found {one}, expected {other}" for one in found for other in expected]
    at = 1 if name == "OSError" and len(call.args) > 1 else ARGUMENT.get(name, 0)
    if len(call.args) <= at or _is_joined(call.args[at]):
        return []  # it says nothing but its class, or what was collected
    return _texts(module, call.args[at], function)


def _collected(module: Module, node: ast.AST, function: Function | None) -> Iterator[str]:
    """Texts that become an error together with others, or in another place."""
    gives = function is not None and function.name.endswith(GIVE_TEXTS)
    values: list[ast.expr] = []
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=how), args=[value]) if name in LISTS and how in (
            "append",
            "extend",
        ):
            values = _elements(value) or [value]
        case ast.AugAssign(target=ast.Name(id=name), value=value) if name in LISTS:
            values = _elements(value)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in LISTS:
            values = _elements(value)
        case ast.Return(value=ast.expr() as value) if gives:
            values = _elements(value) or [value]
        case ast.Dict(keys=keys, values=all_values) if str(module.path).endswith(TELL_REASONS):
            pairs = zip(keys, all_values, strict=True)
            values = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value in REASONS]
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in TABLES:
            values = [each for each in ast.walk(value) if isinstance(each, ast.Constant) and " " in str(each.value)]
            values = [each for each in values if each not in _arguments(value)]
    for value in values:
        if isinstance(value, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Name | ast.IfExp | ast.Call):
            yield from _texts(module, value, function)


def _elements(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.List(elts=elements):
            return [element for element in elements if not isinstance(element, ast.Starred)]
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
            return [element]
        case ast.IfExp(body=one, orelse=other):
            return [*_elements(one), *_elements(other)]
    return []


def _arguments(node: ast.expr) -> list[ast.expr]:
    """What stands in calls, such as the regular expressions of a table."""
    return [argument for call in ast.walk(node) if isinstance(call, ast.Call) for argument in call.args]


def _is_joined(node: ast.expr) -> bool:
    """Whether an expression is only texts that were collected before, joined."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"


def _texts(module: Module, node: ast.expr, function: Function | None, deep: int = 0) -> list[str]:
    """What an expression may say; callers are asked only when it says next to nothing by itself."""
    plain = _said(module, node, function, deep, False)
    if all(_letters(text) >= LEAST for text in plain) or deep >= DEEP:
        return plain
    return _said(module, node, function, deep, True)


def _said(module: Module, node: ast.expr, function: Function | None, deep: int, callers: bool) -> list[str]:  # noqa: PLR0911 - a case per kind of expression
    def again(inner: ast.expr) -> list[str]:
        return _said(module, inner, function, deep, callers)

    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return _joined([again(part) for part in parts])
        case ast.FormattedValue(value=inner):
            known = isinstance(inner, ast.Name) and (inner.id in module.constants or _is_set(inner.id, function))
            default = isinstance(inner, ast.Call) and _name(inner.func) == "get"
            return again(inner) if callers or known or default else ["{}"]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _joined([again(left), again(right)])
        case ast.IfExp() | ast.BoolOp():
            return [text for each in _alternatives(node) for text in again(each)]
        case ast.Call(func=ast.Name(id="shown" | "str"), args=[inner]):
            return again(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr="strip")):
            return again(inner)
        case ast.Call(func=ast.Attribute(attr="get"), args=[_, ast.Constant(value=str(text))]):
            return ["{}", text]
        case ast.Call(func=func) if deep < DEEP and _name(func) in module.functions:
            return [text for each in module.functions[_name(func)] for text in _returned(module, each, deep)] or ["{}"]
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if callers and deep < DEEP:
            values = module.attributes.get(name, [])
            return [text for value, around in values for text in _texts(module, value, around, DEEP)] or ["{}"]
        case ast.Name(id=name):
            return _named(module, name, function, deep, callers)
    return ["{}"]


def _is_set(name: str, function: Function | None) -> bool:
    """Whether the function itself writes this text, so that it is known here."""
    values = _assigned(name, function)
    return bool(values) and all(isinstance(value, ast.JoinedStr) for value in values)


def _assigned(name: str, function: Function | None) -> list[ast.expr]:
    return [
        node.value
        for _, node in _walk(function or ast.Module([], []), function)
        if isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets)
    ]


def _returned(module: Module, function: Function, deep: int) -> Iterator[str]:
    for _, node in _walk(function, function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield from _texts(module, node.value, function, deep + 1)


def _named(module: Module, name: str, function: Function | None, deep: int, callers: bool) -> list[str]:
    """What a name may say: as the function sets it, as its callers do, or as the module does."""
    values = _assigned(name, function)
    if values and deep < DEEP:
        return [text for value in values for text in _texts(module, value, function, deep + 1)]
    arguments = [each.arg for each in (*function.args.posonlyargs, *function.args.args)] if function else []
    if function and name in arguments and callers and deep < DEEP:
        at = arguments.index(name) - (arguments[0] in ("self", "cls"))
        return [
            text
            for call, around in module.calls.get(function.name, [])
            for value in [*call.args[at : at + 1], *(each.value for each in call.keywords if each.arg == name)]
            for text in _texts(module, value, around, deep + 1)
        ] or ["{}"]
    constant = module.constants.get(name)
    if isinstance(constant, ast.Constant | ast.JoinedStr | ast.BinOp):
        return _said(module, constant, None, deep, False)
    return ["{}"]


def _joined(parts: list[list[str]]) -> list[str]:
    texts = [""]
    for alternatives in parts:
        texts = [text + each for text in texts for each in dict.fromkeys(alternatives)]
    return texts


def _alternatives(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.IfExp(body=one, orelse=other):
            return [*_alternatives(one), *_alternatives(other)]
        case ast.BoolOp(values=values):
            return [each for value in values for each in _alternatives(value)]
    return [node]


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
    return ""


def _letters(text: str) -> int:
    return sum(char.isalpha() for char in text.replace("{}", ""))
