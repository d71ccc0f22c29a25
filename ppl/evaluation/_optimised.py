"""The evaluator with its passes: the same numbers as `_evaluate.py`, from less work.

Values may be in a short form here: one number for an array of equal elements (`_same.py`), the steps of a chain apart from those
alike (`_split.py`). Each pass is a rule that says what it makes of an equation, or leaves it to the next one and at last to the
reference. `_passes.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._compat import JITS, Atom, ClosedJaxpr, Equation, Var, bind
from .._types import Key
from ..jaxprs import called, holds_marker, shape_of
from ._evaluate import Evaluator, Forced
from ._passes import is_on
from ._same import Same, Uniform, known_number, on_same, whole
from ._split import Split
from ._unrolled import NeedsLoop, Windows, elementwise, unrolled_scan

Given = Forced | Windows | Uniform
Apply = Callable[[Equation, list[PyTree]], list[PyTree]]  # (equation, operands) -> results


def optimised(
    closed: ClosedJaxpr,
    inputs: Sequence[Key],
    forced: Mapping[int, Given],
    read: Sequence[Atom] | None = None,
    known: Mapping[Var, PyTree] | None = None,
    apply: Apply = bind,
) -> list[Array | Split]:
    """What `evaluate` returns; what sees sites that are forced to `Windows` comes as a `Split`.

    Args:
        closed: a traced program.
        inputs: values of its inputs.
        forced: site index -> what replaces its value.
        read: atoms of the program's top level.
        known: variables whose values are known (of `Invariants`), so that their equations are not run.
        apply: evaluates the equations outside of control flow.

    Raises:
        NeedsLoop: a site forced to `Windows` needs a loop (`_unrolled.py`).
    """
    run = Optimised(closed, inputs, forced, apply)
    run.env.update(known or {})
    found = run.outputs(read)
    return [x.arrays() if isinstance(x, Split) else jnp.asarray(whole(x)) for x in found]


class Optimised(Evaluator):
    """An evaluation whose values may be in a short form.

    Attributes:
        is_lazy: whether arrays filled with one number are left as one number.
    """

    def __init__(
        self, closed: ClosedJaxpr, inputs: PyTree, forced: PyTree, apply: Apply = bind
    ) -> None:
        super().__init__(closed, inputs, forced)
        self.apply = apply
        # They pay only where they meet others.
        has_numbers = any(isinstance(x, Uniform | Windows) for x in forced.values())
        self.is_lazy = is_on("numbers") and has_numbers or _any(Same, inputs)

    def replacement(self, given: Forced | Uniform, aval: PyTree) -> Array | Same:
        if isinstance(given, Uniform):
            return Same(jnp.asarray(given.value, aval.dtype), aval.shape, given.states)
        return super().replacement(given, aval)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        for rule in (self._at_all_steps, self._as_one_number, self._row_by_row):
            if (found := rule(eqn, args)) is not None:
                return found
        return super().results(eqn, [whole(a) for a in args])

    def inner(
        self, body: ClosedJaxpr, inputs: list[Key], forced: Mapping[int, Forced]
    ) -> list[jax.Array]:
        found = Optimised(body, inputs, forced).outputs()
        if _any(Split, found):
            raise NeedsLoop
        return [jnp.asarray(whole(x)) for x in found]

    def call(self, eqn: Equation, args: list[PyTree]) -> list[Array | Same]:
        """The results of a function, short where its operands are."""
        return Optimised(called(eqn), args, {}, self.apply).outputs()

    def _at_all_steps(self, eqn: Equation, args: list[PyTree]) -> list[PyTree] | None:
        """Loops over windows without a loop, and what is made of their results."""
        is_split, is_scan = _any(Split, args), eqn.primitive.name == "scan"
        inside = self.forced_inside(eqn) if is_scan else {}
        if not is_split and not _any(Windows, inside.values()):
            return None
        args = [whole(a) for a in args]
        if is_scan:
            wanted = [v in self.live for v in eqn.outvars]
            return unrolled_scan(eqn, args, inside, Optimised, wanted)
        if holds_marker(eqn):
            raise NeedsLoop
        return self.call(eqn, args) if eqn.primitive.name in JITS else elementwise(eqn, args)

    def _as_one_number(self, eqn: Equation, args: list[PyTree]) -> list[Array | Same] | None:
        """Arrays filled with one number, and what is made of them."""
        name = eqn.primitive.name
        if self.is_lazy:
            if name == "broadcast_in_dim" and not shape_of(eqn.invars[0]):
                number = args[0] if isinstance(args[0], Same) else Same(args[0], ())
                return [Same(number.value, shape_of(eqn.outvars[0]), number.states)]
            if (number := known_number(eqn, args)) is not None:
                return [number]
        if not _any(Same, args) or holds_marker(eqn):
            return None
        return self.call(eqn, args) if name in JITS else on_same(eqn, args)

    def _row_by_row(self, eqn: Equation, args: list[PyTree]) -> list[PyTree] | None:
        """Rows of a plate in front of enumerated states (`_steps.py`)."""
        if self.apply is bind or holds_marker(eqn):
            return None
        if eqn.primitive.name in JITS:
            return self.call(eqn, args)
        return self.apply(eqn, [whole(a) for a in args])


def _any(kind: type, values: Iterable[object]) -> bool:
    return any(isinstance(x, kind) for x in values)
