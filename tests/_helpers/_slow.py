"""Parametrised tests of which `make test` runs a part."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_slow(names: Iterable[str], *slow: str) -> list[Any]:
    """The names as parameters; `slow` ones, costly variants of what the others show, wait for `make test-slow`."""
    names = list(names)
    unknown = set(slow) - set(names)
    assert not unknown, f"no such parameters: {unknown}"
    return [pytest.param(n, id=n, marks=[pytest.mark.slow] * (n in slow)) for n in names]
