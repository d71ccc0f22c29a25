"""A formula of ours in the place of one of NumPyro's, where that is found to be wrong.

Every objective scores through NumPyro's classes, and so the formula takes its place in NumPyro itself: plain NumPyro models,
handlers and MCMC have it too. Importing lapilli changes no formula yet. It puts a test in front of each function: the first call,
whoever makes it, compiles what is tested (0.1 to 0.2 s) and leaves NumPyro's function in its place if it is right, and ours if
not. In versions that the tests have found faulty, the first call need not look again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import numpyro
from jaxtyping import PyTree

from ...._workarounds import Workaround

FAULTY = frozenset({"0.22.0"})  # in all of these functions; tests/test_workarounds.py looks


class Mend:
    """Functions of NumPyro's under test: at the first call of one they stay, or `ours` take their places.

    Args:
        name: of the record.
        owner: where the function is found that is tested.
        attribute: under which name.
        ours: what takes its place.
        probe: (function, x, 0, 1) -> what the function computes at x.
        exact: two derivatives of that at x = 0, in turn.
        fault: in words.
        order: of the first of the two; the value itself is of order 0.
        also: (owner, attribute, ours) of functions that share the fault.
        tolerance: how far a right one may be off, relatively or absolutely.
    """

    def __init__(
        self,
        name: str,
        owner: object,
        attribute: str,
        ours: Callable[..., PyTree],
        probe: Callable[..., PyTree],
        exact: tuple[float, float],
        fault: str,
        *,
        order: int = 1,
        also: Sequence[tuple[PyTree, str, Callable[..., PyTree]]] = (),
        tolerance: float = 1e-6,
    ) -> None:
        self.name, self.exact, self.fault, self.order = name, exact, fault, order
        self.tolerance = tolerance
        self.found: tuple[float, float] | None = None
        self.is_ours: bool | None = None
        self.places = [(owner, attribute, ours), *also]
        self.theirs = [getattr(owner, attribute) for owner, attribute, _ in self.places]
        self.probe = functools.partial(probe, self.theirs[0])
        for index, (place, name, _) in enumerate(self.places):
            setattr(place, name, self._first(index))

    def _first(self, index: int) -> Callable[..., PyTree]:
        @functools.wraps(self.theirs[index])
        def first(*args: PyTree, **kwargs: PyTree) -> PyTree:
            return self.decide(index)(*args, **kwargs)

        return first

    def decide(self, index: int = 0) -> Callable[..., PyTree]:
        """Put the right functions in their places, once; returns one of them."""
        if self.is_ours is None:
            is_faulty = self.found is None and numpyro.__version__ in FAULTY
            self.is_ours = is_faulty or not self.is_right()
            for (owner, attribute, ours), theirs in zip(self.places, self.theirs, strict=True):
                setattr(owner, attribute, ours if self.is_ours else theirs)
        return self.places[index][2] if self.is_ours else self.theirs[index]

    def is_right(self) -> bool:
        """Whether NumPyro's function is right, by what it computes."""
        if self.found is None:
            probe = self.probe
            for _ in range(self.order):
                probe = jax.grad(probe)
            with jax.ensure_compile_time_eval():
                # 0 and 1 are arguments: what depends on no argument would be compiled by itself here.
                both = jax.jit(jax.value_and_grad(probe))(0.0, 0.0, 1.0)
            self.found = (float(both[0]), float(both[1]))
        return np.allclose(self.found, self.exact, self.tolerance, self.tolerance)

    def record(self) -> Workaround:
        """What the test found."""
        self.is_right()
        self.decide()
        return Workaround(
            self.name,
            f"numpyro {numpyro.__version__}",
            self.fault,
            bool(self.is_ours),
            f"They come out as {self.found}{', not' if self.is_ours else ', which is'} {self.exact}.",
        )
