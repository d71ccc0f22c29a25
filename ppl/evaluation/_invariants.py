"""What no replacement reaches is computed once.

A program is evaluated several times: in all states of enumerated sites, and with sampled sites replaced. Input: the replacements
of one evaluation, and the variables that it reads. Output: the values of those variables on the way that no replaced site
reaches. They are what the program computes as it stands, so later evaluations take them from the earlier ones. XLA would not
find all of them: where they were differentiated, they look different.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import jax
from jaxtyping import PyTree

from .._compat import Atom, ClosedJaxpr, Equation, Var
from ..jaxprs import inner_jaxprs, needed, site_p
from ._evaluate import is_replaced_whole, sites_in
from ._optimised import Given, Optimised
from ._same import Same


class Invariants(Optimised):
    """The variables of a traced program without replacements.

    Args:
        closed: the traced program.
        inputs: its inputs.
        is_lazy: leave arrays that are filled with one number as one number.
    """

    def __init__(self, closed: ClosedJaxpr, inputs: Sequence[PyTree], *, is_lazy: bool) -> None:
        super().__init__(closed, inputs, {})
        self.is_lazy, self.is_fixed = is_lazy, False
        self.pure = [eqn for eqn in closed.jaxpr.eqns if not eqn.effects]

    def fixed(self) -> Invariants:
        """What is known so far, without derivatives."""
        twin = copy.copy(self)
        twin.env, twin.is_fixed = dict(self.env), True
        return twin

    def around(self, forced: Mapping[int, Given], read: Sequence[Atom]) -> dict[Var, PyTree]:
        """The variables that an evaluation with sites replaced needs and no such site reaches, with their values.

        Equations with effects run in every evaluation, and so does what depends on them.
        """
        moved, eqns = set[Var](), self.closed.jaxpr.eqns
        for eqn in eqns:
            if eqn.effects or _is_replaced(eqn, forced) or not moved.isdisjoint(_variables(eqn)):
                moved.update(eqn.outvars)
        is_start = lambda eqn: moved.isdisjoint(eqn.outvars) or is_replaced_whole(eqn, forced)
        edge = needed(eqns, read, lambda eqn: () if is_start(eqn) else eqn.invars)[1] - moved
        if not self.is_fixed:
            self.outputs([*edge], self.pure)
        # In the order of the program: that of a set would make another program every time, compiled anew.
        return {v: self._value(v) for v in self.env if v in edge}

    def _value(self, variable: Var) -> PyTree:
        value = self.env[variable]
        if not self.is_fixed:
            return value
        if isinstance(value, Same):
            return Same(jax.lax.stop_gradient(value.value), value.shape, value.states)
        return jax.lax.stop_gradient(value)


def _variables(eqn: Equation) -> list[Var]:
    return [v for v in eqn.invars if isinstance(v, Var)]


def _is_replaced(eqn: Equation, forced: Mapping[int, Given]) -> bool:
    """Whether an equation is the marker of a replaced site, or has one inside."""
    if eqn.primitive is site_p:
        return eqn.params["index"] in forced
    return any(not sites_in(jaxpr).isdisjoint(forced) for jaxpr in inner_jaxprs(eqn))
