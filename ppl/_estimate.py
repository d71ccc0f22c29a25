"""The estimator: a surrogate whose value is the estimate and whose gradient is the unbiased gradient estimate.

For terms c_j of the objective, sites s with strategies and enumeration lanes v:

    surrogate = sum_j sum_v w_v c_j(v)  +  sum_s surrogate_s(numbers of s, stop(costs downstream of s))

w_v is the probability of lane v, differentiable (`_terms.py`). Each surrogate_s is zero in value. Terms are grouped by the
enumerated sites they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._analyse import Analysed
from ._downstream import Costs
from ._layout import is_sampled
from ._null_values import alarm
from ._strategy import Downstream, stop
from ._terms import Terms

Array = jax.Array


def surrogate_of(
    program: Analysed, inputs: Sequence[Any], key: Array, state: dict[str, Any]
) -> tuple[Array, dict[str, Any]]:
    """One estimate of an analysed program: (surrogate, new state).

    Args:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; it decides all noise.
        state: site address -> state of its strategy.
    """
    terms = Terms(program, inputs, key)
    if program.is_pathwise:
        return terms.result(), state
    wanted = [i for i, s in program.sites.items() if is_sampled(s)]
    wanted = [i for i in wanted if any(i in r for r in program.relations)]
    if not wanted:
        return terms.total() / program.num_replicates, dict(state)
    arrays, local = terms.weighted({}, range(len(program.terms)), wanted)
    total = sum((jnp.sum(t) for t in arrays.values()), jnp.zeros(()))
    new_state = dict(state)
    costs = Costs(terms.fixed())
    for index in wanted:
        site = program.sites[index]
        (numbers, probabilities), weight = local[index]
        # Value and derivatives read it, and XLA would rather compute it again for each.
        cost = jax.lax.optimization_barrier(
            costs.gather(index, {j: stop(t) for j, t in arrays.items()})
        )
        downstream = Downstream(
            cost=cost,
            weight=stop(weight),
            replay=lambda value, index=index: costs.replay(index, value),
            replay_together=lambda value, index=index: costs.replay(index, value, together=True),
            slope=lambda value, index=index: costs.slope(index, value),
            num_replicates=program.num_replicates,
            state=state[site.address],
        )
        total = total + _once(jnp.sum(site.strategy.surrogate(numbers, downstream)))
        total = total + alarm(probabilities)
        new_state[site.address] = jax.tree.map(
            stop, site.strategy.update(jax.tree.map(stop, numbers), downstream)
        )
    return total / program.num_replicates, new_state


@jax.custom_jvp
def _one(x: Array) -> Array:
    """1, whose derivative is refused."""
    return jnp.ones_like(x)


@_one.defjvp
def _(*_: Any) -> Any:
    raise TypeError(
        "A gradient estimate was differentiated again, but only Reparam, Implicit and Enum sites have an unbiased second "
        "derivative here. Make every site one of these, or differentiate once only."
    )


@jax.custom_jvp
def _once(x: Array) -> Array:
    """`x`, to be differentiated once: the derivative of a surrogate is an estimator, its second derivative is none."""
    return x


@_once.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] * _one(primals[0])
