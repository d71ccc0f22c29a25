"""Names of a face that are imported when they are asked for: estimators are of scikit-learn, which takes half a second."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def estimators_of(face: str, *names: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: these names are those of its `estimators`, and there are no others."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(
                f"Module {face!r} has no attribute {name!r}. Look for its names in __all__."
            )
        return getattr(import_module(".estimators", face), name)

    return attribute
