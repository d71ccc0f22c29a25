"""Methods that write and read files refuse arguments of another kind by name, before a file is touched."""

import inspect
import pkgutil
from importlib import import_module

import pytest

import lapilli
from lapilli.ppl._calls import _hints

METHODS = ("save", "load", "export")
WRONG = (3.5, {1: 2}, object())


def has_path(method):
    return "path" in inspect.signature(getattr(method, "__func__", method)).parameters


def rows():
    """Methods of all public classes by name."""
    found = {}
    for module in pkgutil.walk_packages(lapilli.__path__, "lapilli."):
        if module.name.startswith(("lapilli.inference", "lapilli.models", "lapilli.ppl")):
            if any(part.startswith("_") for part in module.name.split(".")):
                continue
            for cls in filter(inspect.isclass, vars(import_module(module.name)).values()):
                if cls.__module__.startswith("lapilli"):
                    own = {name: vars(cls)[name] for name in METHODS if name in vars(cls)}
                    found |= {f"{cls.__name__}.{n}": m for n, m in own.items() if has_path(m)}
    return found


ROWS = rows()


def test_methods_of_files_are_found():
    assert {"Fit.save", "Fit.load", "Fit.export", "Draws.load", "ObjectSampler.load"} <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_another_kind_of_argument_is_refused_by_name(name):
    method = ROWS[name]
    method = getattr(method, "__func__", method)  # of a class method
    assert hasattr(method, "__wrapped__"), "no checked_call"
    kinds = inspect.signature(method).parameters
    hints = _hints(method.__wrapped__)
    assert "path" in hints
    for argument in hints:
        by_place = [n for n, p in kinds.items() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        given = {n: object() for n in by_place if kinds[n].default is inspect.Parameter.empty}
        for wrong in WRONG:
            call = given | {"path": "nowhere"} | {argument: wrong}
            with pytest.raises(ValueError, match=rf"{name}: {argument} must be .*, got"):
                method(None, **call)
