"""Parameters to start from: a guide near the Normal that Pathfinder finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._precision import full_precision
from ...ppl._types import Key, ModelFn, ParamMap
from ...ppl.language import as_arguments
from .._abstract_objective import AbstractObjective
from .._arguments import Arguments
from ._fixed_draws import climb
from .starts import Space

Array = jax.Array


@checked_call
def pathfinder(
    objective: AbstractObjective,
    args: tuple | Mapping[str, PyTree],
    *,
    key: Key,
    num_starts: int = 4,
    num_draws: int = 500,
    max_steps: int = 200,
) -> ppl.Params:
    """Parameters to start from: `fit(objective, ..., params=pathfinder(objective, args, key=key))`, or `fit_fixed_draws`.

    Pathfinder (BlackJAX's) follows L-BFGS from draws of the prior and takes, of all Normals along the paths of all starts, the
    one with the largest evidence lower bound. NumPyro's AutoNormal and AutoMultivariateNormal take its mean and scale; any other
    guide q is fitted to draws z_1, ..., z_S of it by maximum likelihood: max over its parameters of (1 / S) sum_s log q(z_s).

    Args:
        objective: of a model and a guide.
        args: all data, a tuple or a dict.
        key: PRNG key.
        num_starts: paths.
        num_draws: S, also for the bound of each Normal.
        max_steps: of L-BFGS for the guide.

    Returns:
        The objective's parameters; those of the model as they are initialised.

    Raises:
        ImportError: BlackJAX is missing.
        ValueError: the model has a discrete site, or a support that moves; no path ends at a finite bound; the guide has no
            density for values of the model's sites.

    Validity: a start. Where the posterior has several modes, it is near the one whose Normal has the largest bound.
    Reference: Zhang, Carpenter, Gelman and Vehtari 2022, arXiv:2108.03782.
    """
    try:
        from blackjax.vi import pathfinder as paths
    except ImportError as err:
        raise ImportError(
            "pathfinder needs BlackJAX. Install it with: pip install 'lapilli[mcmc]'."
        ) from err
    check_counts("pathfinder", 2, num_draws=num_draws)
    check_counts("pathfinder", num_starts=num_starts, max_steps=max_steps)
    init_key, _, path_key, draw_key = jax.random.split(typed_key(key), 4)
    arguments: tuple = as_arguments(args, objective.model)
    params = objective.init(init_key, *arguments)
    model = objective.model.bind(params)
    space = Space(model, arguments, method="pathfinder")
    split = Arguments(arguments)
    arrays = split.arrays(arguments)

    def path(keys: PyTree) -> PyTree:
        density = lambda flat: space.log_prob(flat, *split.join(arrays))
        start = space.draw(keys[0], *split.join(arrays))
        state, _ = paths.approximate(keys[1], density, start, num_draws)
        drawn: Any = paths.sample(draw_key, state, num_draws)
        return state, drawn[0]

    keys = jnp.stack([jax.random.split(k) for k in jax.random.split(path_key, num_starts)])
    states, draws = jax.jit(lambda keys: jax.lax.map(path, keys))(keys)
    bounds = np.asarray(states.elbo)
    if not np.isfinite(bounds).any():
        raise ValueError(
            f"pathfinder: none of {num_starts} starts has a Normal with a finite bound. Look for a log-density that is not "
            "finite at draws of the prior, or start from the objective's own parameters."
        )
    best = draws[int(np.argmax(np.where(np.isfinite(bounds), bounds, -np.inf)))]
    return _moved(objective.guide, params, space, best, arguments, max_steps)


def _moved(
    guide: ModelFn, params: ppl.Params, space: Space, draws: Array, args: tuple, max_steps: int
) -> ppl.Params:
    """The parameters with those of the guide near the draws [S, d]."""
    values = _of_autoguide(params, space, draws)
    if values:
        known = {n: c for n, c in params.constraints.items() if n in values}
        free = ppl.unconstrain(values, known)
        return ppl.Params({**params, **free}, params.constraints)
    choices = jax.vmap(space.choices)(draws)
    q = guide.simulate(jax.random.key(0), *args)
    if q.auxiliary or not set(q.choices) <= set(choices):
        raise ValueError(
            f"pathfinder: the guide draws {sorted(set(q.choices) | set(q.auxiliary))}, of which some are not the model's sites "
            f"{sorted(choices)}, so that values of these have no density under it. Start from the objective's own parameters."
        )
    own = {n: choices[n] for n in q.choices}

    def loss(params: PyTree) -> Array:
        bound = guide.bind(params)
        return -jax.vmap(lambda z: bound.log_density(z, *args))(own).mean()

    return jax.jit(lambda p: climb(loss, p, max_steps, 1e-3)[0])(params)


@full_precision
def _of_autoguide(params: ParamMap, space: Space, draws: Array) -> dict[str, Array]:
    """Constrained values for NumPyro's AutoNormal and AutoMultivariateNormal with their own prefix; else none."""
    mean, sites = draws.mean(0), space.unravel(draws[0])
    if {"auto_loc", "auto_scale_tril"} <= set(params):
        cov = jnp.atleast_2d(jnp.cov(draws.T)) + 1e-8 * jnp.eye(draws.shape[1])
        return {"auto_loc": mean, "auto_scale_tril": jnp.linalg.cholesky(cov)}
    if all(f"{n}_auto_loc" in params and f"{n}_auto_scale" in params for n in sites):
        locs, scales = space.unravel(mean), space.unravel(draws.std(0))
        return {f"{n}_auto_loc": x for n, x in locs.items()} | {
            f"{n}_auto_scale": x for n, x in scales.items()
        }
    return {}
