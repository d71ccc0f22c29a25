"""Training objectives of marginalization models, written in the language.

Maximum likelihood takes two stages: `any_order` fits the conditional network, `distil` or `regress` then the marginal one to it.
Towards an energy both are fitted at once (`energy`). With D variables, x_S the first d - 1 variables of an order and i the d-th,

    rho = l(x_S, x_i) - l(x_S) - c(i, x_i | x_S)

is the consistency residual, and D E[rho^2] over random orders and steps the price that l and c pay for disagreeing. It is the
detailed balance of a generative flow network with state flow Z exp(l) / binomial(D, |S|), forward policy exp(c) / (D - |S|) and
backward policy 1 / |S|.

Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920; Hoogeboom et al. 2022, arXiv:2110.02037 (order-agnostic bound);
Richter et al. 2020, arXiv:2010.10436 (log-variance).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PyTree

from ... import ppl
from ...inference import Objective, objective as as_objective
from ...ppl._checks import check_event, log_number
from ...ppl._compat import is_concrete
from ...ppl._types import ModelFn
from .._categories import value_error
from . import _chain
from ._bracket import verdicts
from ._orders import order_error, random_orders
from ._persistent import PersistentChains, PersistentObjective, RowReplay
from ._row_sources import RowSources
from ._tempering import LogTarget, tempered_rows
from .networks import Networks, Pair

Spread = Literal["variance", "std", "plain"]
_SPREADS = ("variance", "std", "plain")


def any_order(networks: Pair) -> Objective:
    """Stage 1 of maximum likelihood: the order-agnostic bound on log p(x), for the conditional network.

        sum_n E_{order, t} [D_n / (D_n - t) sum_{i after t} c(i, x_ni | first t variables)] <= sum_n log E_order p(x_n | order)

    in nats, maximised, with t uniform on 0, ..., D_n - 1. One pass per row scores all hidden variables in parallel. Arguments: x,
    values 0 to K - 1, [rows, D], and optionally which cells are seen, boolean [rows, D]; plate "rows"; parameter "conditional".
    Of a row with missing cells only its D_n seen ones are ordered, and the bound is on their log-marginal, log p(x_S).

    Args:
        networks: the pair to start from; `networks.with_params(fit.params)` is the trained one.

    Raises:
        ValueError: when it is evaluated: x or `seen` has another shape, or a seen cell another value.

    Validity: value and gradient are unbiased for the bound, minibatches included. It says nothing of why cells are missing: what
    is learned is the law of rows where cells go missing at random, given those that are seen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import mam
        >>> x = jnp.array([[0, 0, 1], [1, 1, 1]])
        >>> networks = mam.residual_mlps(3, 2, width=8, key=jax.random.key(0))
        >>> bound = mam.any_order(networks)
        >>> value = bound.value(bound.init(jax.random.key(1), x), jax.random.key(2), x)
        >>> round(float(value), 4)  # uniform before training: -6 log 2
        -4.1589

    Reference: Uria et al. 2014, arXiv:1310.1757.
    """

    @ppl.model
    def model(x: PyTree, seen: PyTree = None) -> None:
        declared = networks.declared("conditional")
        if seen is None:
            tokens, unknown = _tokens("any_order", networks, x)
            known = jnp.ones(tokens.shape, bool)
        else:
            known = _seen("any_order", x, seen)
            tokens, unknown = _tokens("any_order", networks, _where_seen(known, x))
        num_rows = len(tokens)
        order_key, step_key = jax.random.split(ppl.rng_key("order"))
        order = random_orders(order_key, known)
        size = known.sum(1)
        step = jax.random.randint(step_key, (num_rows,), 0, jnp.maximum(size, 1))

        def bound(tokens: Array, known: Array, order: Array, step: Array, size: Array) -> Array:
            before = _chain.prefix(tokens, jnp.zeros_like(tokens), order, step)
            log_probs = declared.log_conditionals(before)
            chosen = jnp.take_along_axis(log_probs, tokens[:, None] - 1, 1)[:, 0]
            share = size / jnp.maximum(size - step, 1)
            return share * jnp.where(known & (before == 0), chosen, 0.0).sum()

        with ppl.plate("rows", num_rows):
            ppl.factor("x", jax.vmap(bound)(tokens, known, order, step, size) + unknown)

    return _log_density("max", "any_order")(model)


def distil(
    networks: Pair,
    *,
    share: float = 0.5,
    block_size: int = 4,
    refresh_every: int | None = None,
) -> PersistentObjective:
    """Stage 2 of maximum likelihood: fit the marginal network to a fixed conditional network.

        sum_n [(1 - share) D E rho(x_n)^2 + share D E rho(x'_n)^2]

    in nats^2, minimised, over random orders and steps, with x' from persistent chains of block Gibbs moves of the conditional
    network, one for each row of a (mini)batch. Zero where l is the log-marginal of a consistent c. Argument: x, [rows, D]; plate
    "rows"; parameter "marginal". The likelihood itself does not enter.

    Args:
        networks: the pair; its conditional network is taken as it is.
        share: weight of the model's own samples, 0 to 1. Away from the data and from samples nothing is learned.
        block_size: variables redrawn by one move.
        refresh_every: steps after which all chains are drawn anew along whole orders; None for never.

    Raises:
        ValueError: `share` is outside of [0, 1].

    Validity: for the chains at hand value and gradient are unbiased, minibatches included; the chains follow the conditional
    network's law up to its inconsistency.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"distil: share must lie in [0, 1], got {share}.")

    @ppl.model
    def model(chains: PyTree, x: Array) -> None:
        declared = networks.declared("marginal")
        key = ppl.rng_key("order")
        tokens, unknown = _tokens("distil", networks, x)
        penalty = lambda number, tokens: _penalty(declared, jax.random.fold_in(key, number), tokens)
        with ppl.plate("rows", x.shape[0]):
            if share < 1:
                ppl.factor("data", (share - 1) * penalty(0, tokens) + unknown)
            if share > 0:
                ppl.factor("chains", -share * penalty(1, chains))

    chains = PersistentChains(
        lambda params: networks, lambda x: jnp.shape(x)[0], block_size, refresh_every
    )
    return PersistentObjective(_log_density("min", "distil")(model), chains)


def regress(networks: Pair) -> Objective:
    """Stage 2 without bootstrapping: fit the marginal network to sums that the chain has taken along whole orders.

        sum_n E_t [l(x_n on S_t) - sum_{d <= t} s_nd]^2,        S_t the first t variables of order_n,

    in nats^2, minimised, with t uniform on 1, ..., D and s = `MaM.log_steps(x, order)`, taken once and for all: D passes a row,
    then one pass of the marginal network for each use. Arguments: x, order and s, [rows, D] each; plate "rows"; parameter
    "marginal". Where `distil` compares neighbours, and small errors of one sign add up over D steps, this one sees the sum
    itself; but only as many rows and orders as were scored. Draws of the model (`MaM.draw`) are rows as good as data.

    Args:
        networks: the pair; its conditional network is not used.

    Raises:
        ValueError: when it is evaluated: `order` or s has another shape than x, or an order is no permutation.

    Validity: value and gradient are unbiased for the mean over t at the given orders, minibatches included. Over random orders
    the optimum at x_S is the mean of what the chain says over all orders that begin with S: the log-marginal of a consistent c,
    and below the log of the mixture over orders by about half the variance between them for one that is not.

    Example:
        >>> import jax
        >>> from lapilli.models import mam
        >>> networks = mam.residual_mlps(4, 2, width=8, key=jax.random.key(0))
        >>> model = mam.MaM(networks)
        >>> x, order, _ = model.draw(jax.random.key(1), (10,))
        >>> args = (x, order, model.log_steps(x, order))
        >>> objective = mam.regress(networks)
        >>> value = objective.value(objective.init(jax.random.key(2), *args), jax.random.key(3), *args)
        >>> bool(value < 1e-6)  # both are uniform
        True
    """

    @ppl.model
    def model(x: Array, order: PyTree, log_steps: PyTree) -> None:
        declared = networks.declared("marginal")
        tokens, unknown = _tokens("regress", networks, x)
        for name, array in (("order", order), ("log_steps", log_steps)):
            if jnp.shape(array) != tokens.shape:
                raise ValueError(
                    f"regress: {name} has shape {jnp.shape(array)}, and x {tokens.shape}. Give one order a row, and "
                    "MaM.log_steps(x, order)."
                )
        unknown = unknown + order_error("regress: order", order, networks.num_variables)
        size = networks.num_variables
        steps = jax.random.randint(ppl.rng_key("steps"), (len(tokens),), 1, size + 1)

        def square(tokens: Array, order: Array, log_steps: Array, step: Array) -> Array:
            seen = _chain.prefix(tokens, jnp.zeros_like(tokens), order, step)
            total = jnp.where(jnp.arange(size) < step, log_steps, 0.0).sum()
            return (declared.log_marginal(seen) - total) ** 2

        with ppl.plate("rows", len(tokens)):
            ppl.factor("x", unknown - jax.vmap(square)(tokens, order, log_steps, steps))

    return _log_density("min", "regress")(model)


def energy(
    networks: Pair,
    log_target: LogTarget,
    *,
    num_chains: int = 128,
    spread: Spread = "std",
    penalty: float = 4.0,
    block_size: int = 4,
    refresh_every: int | None = 200,
    sources: RowSources | None = None,
    log_z: float | None = None,
    floor: float = 1e-2,
) -> PersistentObjective:
    """Fit both networks to a law p = f / Z known up to its constant.

        spread of w = l(x) - log f(x)   +   penalty D E rho^2

    minimised over B rows x: half from persistent chains of block Gibbs moves of the present conditional network, half replayed
    from particles of f, which came by temperature from the uniform law (`unnormalised`) and have not seen the model: from its own
    draws alone a model never hears of a mode that it does not draw. The spread teaches l alone; the conditional network learns
    from the residuals. No arguments; parameters "marginal" and "conditional". The spreads, V the unbiased sample variance of w
    over the rows:

    "variance"  V / 2 (nats^2). Unbiased, in value and gradient, for half the variance of w at the rows' present law held fixed,
                at every B: the log-variance divergence, zero exactly at l = log f - log Z on the support of the rows.
    "std"       sqrt(V + floor^2) (nats). The released code normalises advantages to unit spread, and its step is
                (B - 1) / B times the gradient of this one at floor 0: unbiased for E[sqrt(V)] at this B, which is the
                standard deviation of w up to O(1 / B). The gradient does not grow with w, so that the penalty's relative
                weight falls as the fit improves.
    "plain"     E[w + log_z] with the gradient (w + log_z) grad l of the paper's equation 9 (nats, without a baseline). The
                gradient is unbiased for that of E[(w + log_z)^2] / 2 at the rows' law held fixed, which pulls l to
                log f - log_z: badly normalised unless log_z is close to log Z. It is that of KL(exp(l) || p) only for an l that
                is normalised whatever its parameters, and chains that follow it. The released code's constant is D log K.

    Args:
        networks: the pair to start from; `networks.with_params(fit.params)` is the trained one.
        log_target: log f of one row `[D] -> scalar`, nats.
        num_chains: B, the rows of a step; those that are replayed take the places of as many chains.
        spread: see above.
        penalty: weight of the residuals, lambda in the paper.
        block_size: variables redrawn by one move, M.
        refresh_every: steps after which all chains are drawn anew along whole orders, D passes; None for never. Under
            `fit(num_seeds=)` these passes are made, and mostly thrown away, at every step.
        sources: where the rows come from; by default half from chains, half replayed.
        log_z: constant of "plain", nats; D log K by default.
        floor: smallest sensible standard deviation, nats; it keeps the step of "std" from becoming noise of unit size at the
            optimum.

    Returns:
        The objective, with the chains as its state.

    Raises:
        ValueError: an impossible size, an unknown spread, a constant that the spread does not use.

    Warns:
        UserWarning: after `inference.fit` of 1,000 steps or more, tempered particles lie where the model hardly ever draws
            (`mam.bracket`), or would take more evaluations of f than the training. Under `fit(k_hat="skip")` nobody looks.

    Validity: the law of the rows shapes where the fit is good, not what its optimum is. With "variance" and "std", and with
    "plain" at log_z = log Z, the optimum is l = log p and c its conditionals wherever the rows and parts of them have positive
    probability, whatever their shares. A mode that neither the particles nor the model's draws meet is lost, and nothing that is
    estimated from these draws shows it, the value included: `mam.bracket` does, with particles of another run. `mam.anneal`
    learns from more particles, and knows heavy states by heart.

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920, section 4.2, equation 9 (penalty 4, 512 chains, 4 variables a move).
    """
    sources = sources or RowSources()
    _check_energy(num_chains, spread, log_z)
    num_replayed = round(sources.replayed * num_chains)
    num_own = num_chains - num_replayed
    num_explored = min(round(sources.explore * num_chains), num_own)
    anchor = networks.num_variables * math.log(networks.num_values) if log_z is None else log_z

    @ppl.model
    def model(rows: PyTree) -> None:
        declared = networks.declared("marginal", "conditional")
        order_key, explore_key = jax.random.split(ppl.rng_key("order"))
        explored = _independent_rows(networks, explore_key, num_explored)
        tokens = jnp.concatenate([explored, rows[num_explored:]])
        level = jax.vmap(declared.log_marginal)(tokens)
        gap = level - jax.vmap(lambda x: log_number("log_target", log_target(x)))(tokens - 1)
        ppl.factor("spread", -_spread(spread, gap, level, anchor, floor))
        ppl.factor("residuals", -penalty * _penalty(declared, order_key, tokens).mean())

    def particles(key: Array) -> Array:
        sizes = (networks.num_variables, networks.num_values)
        run = tempered_rows(log_target, *sizes, key, num_particles=sources.num_particles)
        return run.particles["x"] + 1

    # The last chains are tempered, the first ones replaced: the shares do not meet.
    num_tempered = min(round(sources.tempered * num_chains), num_own - num_explored)
    each = tuple(float(p) for p in np.linspace(*sources.powers, num_tempered))
    chains = PersistentChains(
        networks.with_params, lambda: num_own, block_size, refresh_every, each
    )
    replayed = RowReplay(num_replayed, particles) if num_replayed else None
    judge = lambda several, *how: verdicts([*map(networks.with_params, several)], log_target, *how)
    return PersistentObjective(_log_density("min", "energy")(model), chains, replayed, judge)


def _spread(spread: Spread, gap: Array, level: Array, log_z: float, floor: float) -> Array:
    if spread == "variance":
        return 0.5 * jnp.var(gap, ddof=1)
    if spread == "std":
        return jnp.sqrt(jnp.var(gap, ddof=1) + floor**2)
    advantage = jax.lax.stop_gradient(gap + log_z)
    return (advantage + advantage * (level - jax.lax.stop_gradient(level))).mean()


def _penalty(networks: Networks, key: Array, tokens: Int[Array, "rows variables"]) -> Array:
    """D rho^2 at a random order and step of each row, nats^2."""
    order_key, step_key = jax.random.split(key)
    empty = jnp.zeros_like(tokens)
    order = random_orders(order_key, empty > 0)
    step = jax.random.randint(step_key, tokens.shape[:1], 0, tokens.shape[1])
    one = lambda *row: _chain.residual(networks, *row)
    return tokens.shape[1] * jax.vmap(one)(step, tokens, empty, order) ** 2


def _independent_rows(networks: Networks, key: Array, count: int) -> Array:
    """Tokens of rows of independent values, each row with frequencies of its own from Dirichlet(1, ..., 1)."""
    frequency_key, value_key = jax.random.split(key)
    frequency = jax.random.dirichlet(frequency_key, jnp.ones(networks.num_values), (count, 1))
    shape = (count, networks.num_variables)
    return 1 + jax.random.categorical(value_key, jnp.log(frequency), shape=shape)


def _log_density(direction: Literal["max", "min"], name: str) -> Callable[..., Objective]:
    """Maximise a program's log-density, or minimise its negative."""
    sign = 1.0 if direction == "max" else -1.0

    def fn(model: ppl.Program, guide: ModelFn, *args: PyTree) -> Array:
        return sign * ppl.draw(model, *args).log_density

    fn.__name__ = name
    return functools.partial(as_objective(fn, direction=direction), check_jumps=False)


def _tokens(name: str, networks: Networks, x: PyTree) -> tuple[Array, Array]:
    """Rows of values as tokens; and 0 for each row, NaN where a value is outside of the support.

    Raises:
        ValueError: x has another shape, or is known to have such values.
    """
    check_event(f"{name}: x", x, (networks.num_variables,), is_rows=True)
    remedy = "; `any_order` takes `seen` where cells are missing"
    error = value_error(name, x, networks.num_values, remedy)
    # Token 0 would mean marginalised out: a stray -1 must not train as if it did.
    return jnp.where(jnp.isnan(error)[:, None], 0, jnp.asarray(x)).astype(int) + 1, error


def _seen(name: str, x: PyTree, seen: PyTree) -> PyTree:
    """Which cells are seen, [rows, D].

    Raises:
        ValueError: another shape than that of x.
    """
    if jnp.shape(seen) != jnp.shape(x):
        raise ValueError(
            f"{name}: seen has shape {jnp.shape(seen)}, and x {jnp.shape(x)}. Give one truth value for each cell."
        )
    return (np if is_concrete(seen) else jnp).asarray(seen, bool)


def _where_seen(seen: ArrayLike, x: PyTree) -> ArrayLike:
    """x, with zero for what stands in the other cells."""
    return (np if is_concrete((seen, x)) else jnp).where(seen, x, 0)


def _check_energy(num_chains: int, spread: str, log_z: float | None) -> None:
    if spread not in _SPREADS:
        raise ValueError(f"energy: spread must be one of {_SPREADS}, got {spread!r}.")
    if not isinstance(num_chains, int) or num_chains < 2:
        raise ValueError(f"energy: num_chains must be an integer >= 2, got {num_chains!r}.")
    if log_z is not None and spread != "plain":
        raise ValueError(
            f"energy: log_z={log_z} is for spread='plain'; {spread!r} does not depend on a constant. Leave it out."
        )
