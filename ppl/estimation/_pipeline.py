"""From a function of parameters to an estimate of its mean and of the gradient: trace, analyse, check, estimate.

    checked     the function traced and analysed, with every check done, once per shape of its inputs (`_checked.py`,
                `../analysis`, `../checks`)
    watched     the same, with those checks beside it that wait for somebody to differentiate once more (`_further.py`)
    surrogate   a number whose value is the estimate and whose gradient is the unbiased estimate of the gradient (`_estimate.py`)
    estimate    value, gradient, and the next state of baselines

`Expectation` is the face of this, and compiles `value` and `estimate`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jaxtyping import Array, PyTree

from .._types import Args, Key
from ..analysis import Analysed
from ..distributions import sound
from ..evaluation import stacked
from ..strategies import Decision
from ._checked import CheckedPrograms
from ._controlled import WithCoefficients, check_replicates, mean_of_halves, refuse_twice
from ._estimate import surrogate_of
from ._further import FurtherChecks

type State = dict[str, PyTree]  # of baselines and control variates, by site


class Pipeline(NamedTuple):
    """The steps for one function; `programs` remembers what was checked."""

    programs: CheckedPrograms
    further: FurtherChecks

    def checked(self, params: PyTree, args: Args, key_impl: object = None) -> Analysed:
        """The analysed program, with every check done."""
        program = self.programs.program(params, args, key_impl)
        if program.is_controlled:
            check_replicates(program.num_replicates)
        return program

    def watched(self, params: PyTree, args: Args, key: Key) -> Analysed:
        """The analysed program with every check done, those of derivatives in its arguments too, if somebody takes them."""
        program = self.checked(params, args, jax.random.key_impl(key))
        return self.further.watch(program, params, args, args)

    def value(self, params: PyTree, key: Key, args: Args) -> Array:
        """One estimate, whose derivative is that of `estimate`."""
        program = self.watched(params, args, key)
        return self.surrogate(program, params, args, key, fresh_state(program))[0]

    def estimate(
        self, params: PyTree, state: State | None, key: Key, args: Args
    ) -> tuple[Array, PyTree, State]:
        """Value, gradient and next state; `state` None starts afresh."""
        program = self.watched(params, args, key)
        leaves, tree = jax.tree.flatten(params)
        begin = fresh_state(program) if state is None else state
        structures: list[PyTree] = []

        def flat(*leaves: Array) -> list[Array]:
            params = jax.tree.unflatten(tree, leaves)
            value, state = self.surrogate(program, params, args, key, begin)
            numbers, structure = jax.tree.flatten(state)
            structures.append(structure)
            return [value, *numbers]

        short = stacked(flat)

        def surrogate(leaves: list[Array]) -> tuple[Array, State]:
            value, *numbers = short(*leaves)
            return value, jax.tree.unflatten(structures[-1], numbers)

        (value, after), grads = jax.value_and_grad(surrogate, has_aux=True)(leaves)
        if program.may_have_null_values:
            grads = sound(grads)
        return value, jax.tree.unflatten(tree, grads), after

    def surrogate(
        self, program: Analysed, params: PyTree, args: Args, key: Key, state: State
    ) -> tuple[Array, State]:
        """The surrogate and the next state: of a controlled program half of the replicates fit coefficients for the others."""
        leaves = jax.tree.leaves(params)
        if not program.is_controlled:
            return surrogate_of(program, leaves, key, state, self.further.once_more(params, args))
        half = program.num_replicates // 2

        def of_half(is_single: bool, key: Array, inputs: Args) -> tuple[Array, State]:
            fn, number = WithCoefficients(self.programs.fn), 1 if is_single else half
            part = self.programs.checked_before(fn, number, params, inputs, args)
            part = self.further.watch(part, params, args, inputs)
            return surrogate_of(part, leaves, key, state, refuse_twice)

        return mean_of_halves(of_half, program.num_replicates, key, args)


def fresh_state(program: Analysed) -> State:
    """The initial state of baselines and control variates."""
    sites = [s for s in program.sites.values() if not isinstance(s.strategy, Decision)]
    return {s.address: s.strategy.init_state() for s in sites}
