"""Densities of the steps ahead of a particle, as functions of where it stands.

Input: a loop of a program whose latent sites are all given. Output: for a state s before step t and the choices of the steps
to come

    log F_t(s, x) = sum_{u = t..t+L-1} log p(x_u, y_u | s, x_t..x_{u-1})  + what does not depend on s,

with L the memory of the loop, proved from its jaxpr: by step t + L nothing that has a density depends on s any more. A state
that holds only the last choice has L = 1. Log-probs that never depend on the state are left out.

Invariant: what is left out is the same for all states. So W F_t is, up to a factor, the law of a particle at time t given all
later choices and data.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import Literal
from ....ppl.jaxprs import settled
from ..._depends import depends, walk
from ..population import Batch
from ._interpreter import PARTICLE
from ._machine import Loop
from ._traced import TracedProgram, signed_outputs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Future:
    """log F_t of one loop.

    Attributes:
        memory: L, the number of steps ahead that are evaluated; at most `length`.
        length: number of steps of the loop.
        log_density: `(states, choices, t) -> (states, log-densities)` of step t, for n pairs of a state and the choices of
            a step, [n, ...] each.
        log_joint: the same with all log-probs of the step, also those that never depend on the state.
        is_last: whether nothing with a density comes after the loop.
        first: what the user calls the loop's step 0.
    """

    memory: int
    length: int
    log_density: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]
    log_joint: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]
    is_last: bool = True
    first: int = 0

    def __call__(self, states: PyTree, window: object, t: Array) -> Array:
        """Logs of F_t for n pairs of states [n, ...] and choices of the next steps [n, max(L, 1), ...], in nats, [n].

        A scalar 0 where nothing depends on the state.
        """
        if self.memory == 0:
            return jnp.zeros(())
        num = len(jax.tree.leaves((states, window))[0])

        def step(u: Array | int, carry: PyTree) -> PyTree:
            states, total = carry
            chosen = jax.tree.map(lambda x: x[:, u], window)
            states, log_density = self.log_density(states, chosen, t + u)
            return states, total + log_density

        start = (states, jnp.zeros(num))
        if self.memory == 1:
            return step(0, start)[1]
        return jax.lax.fori_loop(0, jnp.minimum(self.memory, self.length - t), step, start)[1]


def of_loop(model: TracedProgram, loop: Loop) -> Callable[[], Future]:
    """How to make the future of particles in a loop of a program, now or after the run.

    Making it raises a ValueError where what follows the loop depends on more than its last step's choices, and where densities
    depend on random numbers that are no sites.
    """
    # The machine goes on, and forgets.
    values = copy.copy(loop.machine.values)
    values.env = dict(values.env)
    frozen = dataclasses.replace(loop, machine=dataclasses.replace(loop.machine, values=values))
    return functools.partial(_of_loop, model, frozen)


def _of_loop(model: TracedProgram, loop: Loop) -> Future:
    _check_noise(model)
    terms = list(signed_outputs(model, loop))
    memory, felt, after = _memory(loop, terms)
    _check_rest(model, loop, after)
    shared_xs = loop.shared_xs()

    def density(
        which: list[int], state: PyTree, chosen: dict[str, Array], t: Array
    ) -> tuple[PyTree, Array]:
        shared = {
            i: jax.lax.dynamic_index_in_dim(x, t, keepdims=False) for i, x in shared_xs.items()
        }
        num = len(jax.tree.leaves((state, chosen))[0])
        state, outs = loop.step(state, shared, t, chosen, Batch(num, None))
        return state, sum((outs[i].reshape(num, -1).sum(1) for i in which), jnp.zeros(()))

    felt_by, all_of = functools.partial(density, felt), functools.partial(density, terms)
    return Future(
        memory, loop.length, felt_by, all_of, not weighs_after(model, loop.machine.position)
    )


def weighs_after(model: TracedProgram, position: int) -> bool:
    """Whether a log-prob of the weight is made after the loop at this place."""
    later = {v for eqn in model.closed.jaxpr.eqns[position + 1 :] for v in eqn.outvars}
    return any(not isinstance(v, Literal) and v in later for v, _ in model.weighted())


def _memory(loop: Loop, terms: list[int]) -> tuple[int, list[int], list[bool]]:
    """Memory of a loop, the log-probs that depend on the state, and which carries do after one step of given choices."""
    body, values = loop.body.jaxpr, loop.machine.values
    consts = [values.kind(v) == PARTICLE for v in loop.consts]
    own = [
        v not in loop.made and i not in loop.unknown and values.kind(v) == PARTICLE
        for i, v in enumerate(loop.xs)
    ]
    drawn = [v in loop.made for v in loop.xs]
    # Carries that differ between particles at all (a counter does not).
    carry = [values.kind(v) == PARTICLE for v in loop.init]
    either = [a or b for a, b in zip(own, drawn, strict=True)]
    carry, _ = settled(lambda c: depends(body, [*consts, *c, *either]), carry, operator.or_)
    felt, after = terms, carry
    for memory in range(loop.length):
        outs = depends(body, [*consts, *carry, *own])
        new, ys = outs[: loop.num_carry], outs[loop.num_carry :]
        if memory == 0:
            felt, after = [i for i in terms if ys[i]], new
        if not any(ys[i] for i in felt):
            return memory, felt, after
        if new == carry:  # marks only fall: where they stay, the memory has no end
            break
        carry = new
    return loop.length, felt, after


def _check_rest(model: TracedProgram, loop: Loop, after: list[bool]) -> None:
    """Nothing with a density after the loop may depend on the particle's state before its last step."""
    jaxpr, position = model.closed.jaxpr, loop.machine.position
    marked = {v for v, m in zip(loop.eqn.outvars[: loop.num_carry], after, strict=True) if m}
    marked.update(loop.ys_out, loop.waiting, loop.made)
    rest = jaxpr.eqns[position + 1 :]
    env = walk(
        rest, {v: v in marked for eqn in rest for v in eqn.invars if not isinstance(v, Literal)}
    )
    defined = {v for eqn in rest for v in eqn.outvars}
    names = [
        name
        for name, v in model.trace.log_probs.items()
        if not isinstance(v, Literal) and v in defined and env[v]
    ]
    if names:
        raise ValueError(
            f"Sites {names} come after a scan and depend on more of a particle's path than the choices of the scan's last "
            "step, so the density of a path with another ancestor is not a matter of a few steps. Put into the scan what "
            "depends on its past, condition on sites drawn before it (ppl.condition), or use the paths of the genealogy "
            "(path='genealogy', method='genealogy')."
        )


def check_given(model: TracedProgram, given: Sequence[str]) -> None:
    """The proposal draws all latent sites."""
    latent = [n for n, info in model.shapes.sites.items() if info.kind == "latent"]
    missing = sorted(set(latent) - set(given))
    if missing:
        raise ValueError(
            f"Sites {missing}: the proposal does not draw them. The density of a path with another ancestor needs every "
            "latent site; draw them in the proposal too, or leave the proposal out."
        )


def _check_noise(model: TracedProgram) -> None:
    """No density depends on a random key."""
    jaxpr = model.closed.jaxpr
    marks = depends(jaxpr, [i == 0 for i in range(len(jaxpr.invars))])
    random = {id(v) for v, is_random in zip(jaxpr.outvars, marks, strict=True) if is_random}
    names = [name for name, v in model.trace.log_probs.items() if id(v) in random]
    if names:
        raise ValueError(
            f"Sites {names}: their densities depend on random numbers that are no sites (ppl.rng_key, a subsample), so a path "
            "has no density of its own. Make them sites, or use the paths of the genealogy."
        )
