"""The text of a message as far as the source tells it: what is computed shows as `{name}`, what may be missing as `[text]`.

Until it is shown, a text has marks of its own for these, since braces and brackets stand in messages too.

Names are followed to where they are assigned, calls to the texts that a function of the library returns; both a few levels deep.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

from faces import ROOT

DEPTH = 6  # of names and calls that are followed
ALTERNATIVES = 4  # of one place; of more the first are shown
HOLD, HELD_END, EITHER, OR, EITHER_END = "\ue000\ue001\ue002\ue003\ue004"
MORE = HOLD + HELD_END  # what is not shown: further items of a list
HELD = re.compile(f"{HOLD}[^{HELD_END}]*{HELD_END}")
INNERMOST = re.compile(f"{EITHER}([^{EITHER}{EITHER_END}]*){EITHER_END}")
SHOWN = str.maketrans({HOLD: "{", HELD_END: "}", EITHER: "[", OR: "|", EITHER_END: "]"})
LIBRARIES = ("np", "jnp", "jax", "math", "os", "ast", "operator")
SUM = re.compile(r"[\w.]{1,20} [-+*] [\w.]{1,20}")
WORDS = re.compile(r"[A-Za-z]{3,}")


@dataclasses.dataclass(frozen=True)
class Module:
    """A source file: its tree, all nodes of it, and what lies around each."""

    path: Path
    tree: ast.Module
    nodes: list[ast.AST]
    parents: dict[ast.AST, ast.AST]

    def around(self, node: ast.AST, kinds: tuple[type, ...]) -> ast.AST | None:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, kinds):
                return node
        return None


@functools.cache
def module(path: Path) -> Module:
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = [tree]
    parents: dict[ast.AST, ast.AST] = {}
    for node in nodes:  # which grows
        for child in ast.iter_child_nodes(node):
            parents[child] = node
            nodes.append(child)
    return Module(path, tree, nodes, parents)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where a text stands: the file, the function around it, what its parameters were called with."""

    module: Module
    function: ast.AST | None = None
    bound: tuple[tuple[str, str], ...] = ()
    depth: int = 0

    def at(self, node: ast.AST) -> Scope:
        return dataclasses.replace(self, function=self.module.around(node, (ast.FunctionDef,)))


def shown(text: str) -> str:
    """A text as readers see it."""
    text = text.replace(MORE, "")
    return re.sub(f" ?{OR}{EITHER_END}", EITHER_END, text).translate(SHOWN)


def plain(text: str) -> list[str]:
    """The pieces of a text that a printed message has as they stand."""
    return re.split(f"[{EITHER}{OR}{EITHER_END}]", HELD.sub(OR, text))


def pattern(text: str) -> re.Pattern[str]:
    """What a text may read like when it is printed."""
    made = re.escape(HELD.sub(HOLD, text)).replace(HOLD, ".*?")
    made = re.sub(rf"(?:\\ )?{OR}(?:\\ )?", "|", made)
    # What may be missing takes the space beside it along.
    made = made.replace(f"\\ {EITHER}", f"(?:\\ )?{EITHER}").replace(
        f"{EITHER_END}\\ ", f"{EITHER_END}(?:\\ )?"
    )
    return re.compile(made.replace(EITHER, "(?:").replace(EITHER_END, ")"))


def matcher(text: str) -> Callable[[str], bool]:
    """Whether a printed message may be this text."""
    outside = text
    while EITHER in outside:
        outside = INNERMOST.sub(OR, outside)
    piece = max((p.strip() for p in plain(outside)), key=len)  # first, since patterns are slow
    like = pattern(text)
    return lambda printed: piece in printed and like.search(printed) is not None


def least(text: str) -> int:
    """The number of characters that a printed message shares with the text at the least."""
    text = HELD.sub("", text)
    while EITHER in text:
        text = INNERMOST.sub(lambda m: min(m[1].split(OR), key=len), text)
    return len(text)


def has_words(text: str) -> bool:
    return WORDS.search(HELD.sub(" ", text)) is not None


def placeholder(node: ast.AST) -> str:
    """A readable name of what an expression computes."""
    match node:
        case ast.Name(id=name):
            name = name.lstrip("_")
            return "cause" if name in ("err", "error") else name
        case ast.Attribute(value=ast.Call(func=ast.Name(id="type"), args=[of]), attr="__name__"):
            return f"type of {placeholder(of)}"
        case ast.Attribute(value=ast.Name(id=of), attr="name" | "address") if of not in (
            "self",
            "s",
        ):
            return of
        case ast.Attribute(value=value, attr="__name__" | "shape" | "dtype" as attr):
            return placeholder(value) if attr == "__name__" else f"{attr} of {placeholder(value)}"
        case ast.Attribute(attr=attr):
            return attr.lstrip("_")
        case ast.Call(func=ast.Name(id="len"), args=[of]):
            return f"number of {placeholder(of)}"
        case ast.Call(func=ast.Name(id="getattr"), args=[of, ast.Constant(value=str(attr)), *_]):
            return f"{attr} of {placeholder(of)}"
        case ast.Call(func=ast.Name(id="type"), args=[of]):
            return f"type of {placeholder(of)}"
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[of]):
            return placeholder(of)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr=attr), args=[first, *_]) if (
            of in LIBRARIES
        ):
            return f"shape of {placeholder(first)}" if attr == "shape" else placeholder(first)
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=args):
            return placeholder(args[0]) if args and attr[0] == "_" else placeholder(value)
        case ast.Call(func=func, args=[*_, last]):
            return placeholder(last) if placeholder(last) != "..." else placeholder(func)
        case ast.Call(func=func):
            return placeholder(func)
        case ast.Subscript(value=ast.Name(id="msg"), slice=ast.Constant(value=str(name))):
            return name
        case (
            ast.Subscript(value=value) | ast.Starred(value=value) | ast.FormattedValue(value=value)
        ):
            return placeholder(value)
        case ast.BinOp() if SUM.fullmatch(whole := ast.unparse(node).replace("self.", "")):
            return whole
        case ast.BinOp(left=left, right=right):
            return placeholder(right if isinstance(left, ast.Constant) else left)
        case ast.UnaryOp(operand=operand):
            return placeholder(operand)
        case ast.IfExp(body=body, orelse=orelse):
            return placeholder(orelse if isinstance(body, ast.Constant) else body)
        case ast.GeneratorExp() | ast.ListComp() | ast.SetComp():
            return placeholder(node.generators[0].iter)
        case ast.NamedExpr(target=target):
            return placeholder(target)
        case _:
            return "..."


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def alternatives(texts: list[str], held: str) -> str:
    """One of several texts; `[text]` if one of them is empty."""
    kinds = list(dict.fromkeys(texts))
    if not any(map(has_words, kinds)):
        is_whole = len(kinds) == 1 and not re.search(rf"{HOLD}|\.", kinds[0])
        return kinds[0] if is_whole else held
    if len(kinds) == 1:
        return kinds[0]
    said = [t for t in kinds if t.strip()]
    is_optional = len(said) < len(kinds)
    said = said[:ALTERNATIVES] + [f"{HOLD}...{HELD_END}"] * (len(said) > ALTERNATIVES)
    both = f" {OR} ".join(t.strip() for t in said)
    space = " " if said[0].startswith((" ", "\n")) else ""
    end = f" {OR}{EITHER_END}" if is_optional else EITHER_END
    return f"{space}{EITHER}{both}{end}" + (" " if said[0].endswith(" ") else "")


def read(node: ast.AST, scope: Scope) -> str:
    """The text of an expression."""
    held = HOLD + placeholder(node) + HELD_END
    if scope.depth > DEPTH:
        return held
    match node:
        case ast.Constant(value=value):
            return "" if value is None else str(value)
        case ast.JoinedStr(values=values):
            return "".join(read(v, scope) for v in values)
        case ast.FormattedValue(value=value):
            return read(value, scope)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if not (
            _is_number(left) or _is_number(right)
        ):
            return read(left, scope) + read(right, scope)
        case ast.IfExp(body=body, orelse=orelse):
            return alternatives([read(body, scope), read(orelse, scope)], held)
        case ast.Call(func=ast.Attribute(value=value, attr="join"), args=[of]):
            said = items(of, scope)
            more = MORE if len(set(said)) > 1 else ""
            return more + alternatives(said, held) + more
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return re.sub(r"\{(\w*)\}", rf"{HOLD}\1{HELD_END}", read(value, scope))
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in TEXT_METHODS:
            return read(value, scope)
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[of]):
            return read(of, scope)
        case ast.Call():
            return alternatives(returned(node, scope) or [held], held)
        case ast.Name(id=name):
            return dict(scope.bound).get(name) or alternatives(
                assigned(name, scope) or [held], held
            )
        case _:
            return held


TEXT_METHODS = {"removesuffix", "removeprefix", "strip", "rstrip", "lstrip", "capitalize"}


def items(node: ast.AST, scope: Scope) -> list[str]:
    """The texts of a list, as far as they are written down."""
    inner = dataclasses.replace(scope, depth=scope.depth + 1)
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [read(e, inner) for e in elements]
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            return [read(element, inner)]
        case ast.IfExp(body=body, orelse=orelse):
            return items(body, inner) + items(orelse, inner)
        case ast.Call(args=[of]) if isinstance(node.func, ast.Name) and node.func.id in (
            "sorted",
            "list",
        ):
            return items(of, inner)
        case ast.Name(id=name) if scope.function is not None and scope.depth <= DEPTH:
            found = []
            for step in ast.walk(scope.function):
                match step:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id=of), attr="append"), args=[text]
                    ):
                        found += [read(text, inner)] if of == name else []
                    case (
                        ast.Assign(targets=[ast.Name(id=of)], value=value)
                        | ast.AugAssign(target=ast.Name(id=of), value=value)
                    ):
                        found += items(value, inner) if of == name else []
            return [text for text in found if has_words(text)]
        case _:
            return []


@functools.cache
def assignments(tree: ast.AST) -> dict[str, tuple[list[ast.expr], list[ast.expr]]]:
    """Name -> what a function assigns to it, and adds to it; or a file, outside of its functions and classes."""
    found: dict[str, tuple[list, list]] = {}
    for step in tree.body if isinstance(tree, ast.Module) else ast.walk(tree):
        match step:
            case ast.Assign(targets=[ast.Name(id=of)], value=value):
                found.setdefault(of, ([], []))[0].append(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=value):
                unknown = [ast.Starred(of) for of in names]  # read as the name itself
                values = value.elts if isinstance(value, ast.Tuple) else unknown
                for of, part in zip(names, values, strict=False):
                    if isinstance(of, ast.Name):
                        found.setdefault(of.id, ([], []))[0].append(part)
            case ast.NamedExpr(target=ast.Name(id=of), value=value):
                found.setdefault(of, ([], []))[0].append(value)
            case ast.AugAssign(target=ast.Name(id=of), value=value):
                found.setdefault(of, ([], []))[1].append(value)
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    every = function.args
    return [a.arg for a in (*every.posonlyargs, *every.args, *every.kwonlyargs)]


@functools.cache
def calls(tree: ast.Module) -> dict[str, list[ast.Call]]:
    """Name of a function or method -> the calls by that name in a file."""
    found: dict[str, list[ast.Call]] = {}
    for call in ast.walk(tree):
        match call:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                found.setdefault(name, []).append(call)
    return found


def homes(name: str, function: ast.AST | None, here: Module, depth: int = 0) -> list[ast.AST]:
    """Where a name of a function is assigned: there, around it, or, of a parameter, where callers in this file hand it on."""
    if function is None:
        return [here.tree]
    if name in assignments(function):
        return [function]
    if not isinstance(function, ast.FunctionDef) or name not in parameters(function):
        return homes(name, here.around(function, (ast.FunctionDef,)), here, depth)
    callers = [
        here.around(call, (ast.FunctionDef,))
        for call in calls(here.tree).get(function.name, ())
        if any(isinstance(a, ast.Name) and a.id == name for a in call.args)
    ]
    found = [t for c in callers if depth < DEPTH for t in homes(name, c, here, depth + 1)]
    return list(dict.fromkeys(found))


def assigned(name: str, scope: Scope) -> list[str]:
    """What a name may stand for: assignments of the function around, else of the file, else of the file it is imported from."""
    inner = dataclasses.replace(scope, depth=scope.depth + 1)
    trees, found = homes(name, scope.function, scope.module), []
    for tree in trees:
        values, more = assignments(tree).get(name, ([], []))
        added = [
            f"{EITHER}{m} {OR}{EITHER_END}" if len(values) > 1 else m
            for m in (read(v, inner) for v in more)
        ]
        found += [read(value, inner) + "".join(added) for value in values]
    there = source(name, scope.module)
    if found or scope.module.tree not in trees or there is None or scope.depth > DEPTH:
        return found
    return assigned(there[1], Scope(there[0], depth=scope.depth + 1))


@functools.cache
def imports(tree: ast.Module) -> dict[str, tuple[int, str, str]]:
    """Name -> levels up, module and name there, of what is imported from the library."""
    return {
        alias.asname or alias.name: (step.level, step.module or "", alias.name)
        for step in ast.walk(tree)
        if isinstance(step, ast.ImportFrom) and step.level
        for alias in step.names
    }


def source(name: str, here: Module) -> tuple[Module, str] | None:
    """The file of the library that a name is imported from, and its name there."""
    if name not in imports(here.tree):
        return None
    level, below, there = imports(here.tree)[name]
    folder = here.path.parents[level - 1].joinpath(*below.split("."))
    for path in (folder.with_suffix(".py"), folder / "__init__.py"):
        if path.is_file() and ROOT in path.parents:
            return module(path), there
    return None


@functools.cache
def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    found: dict[str, ast.FunctionDef] = {}
    for step in ast.walk(tree):
        if isinstance(step, ast.FunctionDef):
            found.setdefault(step.name, step)
    return found


def defined(func: ast.AST, scope: Scope) -> tuple[Module, ast.FunctionDef] | None:
    """The function of the library that is called: of this file, of the class around, or imported."""
    match func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            pass
        case _:
            return None
    here, seen = scope.module, 0
    while seen < 3:
        if name in functions(here.tree):
            return here, functions(here.tree)[name]
        there = source(name, here)
        if there is None:
            return None
        (here, name), seen = there, seen + 1
    return None


def called(call: ast.Call, scope: Scope) -> tuple[Scope, list[ast.AST]] | None:
    """What the library's function of a call returns, with its parameters bound to the texts of the arguments."""
    found = defined(call.func, scope)
    if found is None or scope.depth > DEPTH:
        return None
    here, function = found
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    inner = dataclasses.replace(scope, depth=scope.depth + 1)
    bound = {name: read(value, inner) for name, value in zip(names, call.args, strict=False)}
    bound |= {k.arg: read(k.value, inner) for k in call.keywords if k.arg}
    returns = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
    return Scope(here, function, tuple(bound.items()), scope.depth + 1), returns


def returned(call: ast.Call, scope: Scope) -> list[str]:
    """The texts that a function of the library may return."""
    found = called(call, scope)
    return [read(value, found[0]) for value in found[1]] if found else []


@dataclasses.dataclass(frozen=True)
class Text:
    """A message: the class that is raised, and what it says."""

    kind: str
    text: str


def of_exception(call: ast.Call, scope: Scope) -> list[Text]:
    """The messages of an exception that a call makes, by its class or by a function that returns one."""
    found = called(call, scope)
    if found and found[1]:
        there, values = found
        made = [t for v in values if isinstance(v, ast.Call) for t in of_exception(v, there)]
        if made:
            return [t for t in made if t.kind] or made
    said = [read(value, scope) for value in call.args]
    lists = [t for value in call.args for t in items(value, scope)]
    best = max([*said, *lists], key=lambda t: len(HELD.sub("", t)))
    name = ast.unparse(call.func).rpartition(".")[2]
    is_class = name in dir(builtins) or name[:1].isupper()
    return [Text(name if is_class else "", best)]
