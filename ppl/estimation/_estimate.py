"""The estimator: a surrogate whose value is the estimate and whose gradient is the unbiased gradient estimate.

For terms c_j of the objective, sites s with strategies and states v of enumerated sites:

    surrogate = sum_j sum_v w_v c_j(v)  +  sum_s surrogate_s(numbers of s, stop(costs downstream of s))

w_v is the probability of state v, differentiable (`_terms.py`). Each surrogate_s is zero in value. Terms are grouped by the
enumerated sites they see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..analysis import Analysed
from ..distributions import alarm
from ..enumeration import is_sampled
from ..strategies import Decision, Downstream, StrategyError, StrategySite, stop
from ._again import refuse_again, watched_again
from ._downstream import Costs
from ._flips import jumps
from ._terms import Terms

Array = jax.Array


def surrogate_of(
    program: Analysed,
    inputs: Sequence[Array],
    key: Array,
    state: dict[str, PyTree],
    again: Callable[[], None],
) -> tuple[Array, dict[str, PyTree]]:
    """One estimate of an analysed program: (surrogate, new state).

    Args:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; it decides all noise.
        state: site address -> state of its strategy.
        again: called when an estimate whose sites are all pathwise or summed is differentiated twice.
    """
    terms = Terms(program, inputs, key)
    if program.is_pathwise:
        return watched_again(terms.result(), again), state
    wanted = [i for i, s in program.sites.items() if is_sampled(s)]
    wanted = [i for i in wanted if any(i in r for r in program.relations)]
    if not wanted:
        return watched_again(terms.total(), again) / program.num_replicates, dict(state)
    arrays, local = terms.weighted({}, range(len(program.terms)), wanted)
    direct = sum((jnp.sum(t) for t in arrays.values()), jnp.zeros(()))
    total = jnp.zeros(())
    new_state = dict(state)
    costs = Costs(terms.fixed())
    each = costs.gather_each(wanted, {j: stop(t) for j, t in arrays.items()})
    for index in wanted:
        site = program.sites[index]
        (numbers, probabilities), weight = local[index]
        downstream = Downstream(
            cost=each[index],
            weight=stop(weight),
            **_calls(index, site, costs),
            num_replicates=program.num_replicates,
            state=state.get(site.address),
        )
        with jax.named_scope(f"{site.address}.{site.strategy.name}"):
            surrogate = jnp.sum(site.strategy.surrogate(numbers, downstream))
        total = total + watched_again(surrogate, refuse_again)
        total = total + alarm(probabilities)
        if isinstance(site.strategy, Decision):
            continue
        new_state[site.address] = jax.tree.map(
            stop, site.strategy.update(jax.tree.map(stop, numbers), downstream)
        )
    total = total + watched_again(direct, again)  # last: a surrogate refuses without a search
    return total / program.num_replicates, new_state


def _calls(index: int, site: StrategySite, costs: Costs) -> dict[str, Callable[..., PyTree]]:
    """The functions of `Downstream`; those that the strategy does not announce raise, since the analysis has not checked them."""
    functions = {
        "replay": lambda value: costs.replay(index, value),
        "replay_together": lambda value: costs.replay(index, value, together=True),
        "slope": lambda value: costs.slope(index, value),
        "jumps": lambda local: jumps(costs, index, local),
    }
    announced = site.strategy.calls
    return {n: f if n in announced else _unannounced(n, site) for n, f in functions.items()}


def _unannounced(name: str, site: StrategySite) -> Callable[..., PyTree]:
    def refuse(_: Array) -> PyTree:
        made = type(site.strategy).__name__
        raise StrategyError(
            site.name,
            f"Site '{site.address}': strategy '{site.strategy.name}' calls downstream.{name} without announcing it, so that what "
            f"it needs was not checked. Add it to the class: {made}.calls = {(*site.strategy.calls, name)}.",
        )

    return refuse
