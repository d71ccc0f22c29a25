"""Packages of a module that are imported when they are first asked for (PEP 562)."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from types import ModuleType


def on_use(
    module: str, packages: Collection[str], known: Mapping[str, object]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module with packages below it that nothing else of it needs."""

    def getattr_(name: str) -> ModuleType:
        # The import machinery binds the package in the module, so this runs once per package.
        if name in packages:
            return import_module(f".{name}", module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return getattr_, lambda: sorted({*known, *packages})
