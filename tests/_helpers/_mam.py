"""Small marginalization models for tests: exact tables of a random law, and networks that fit neither each other nor any law."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lapilli.models import mam


def joint(num_variables, num_values, seed=0):
    """Log p of a random law, [K] * D."""
    log_p = np.random.default_rng(seed).normal(size=(num_values,) * num_variables)
    return log_p - np.log(np.exp(log_p).sum())


def odd_networks(num_variables, num_values, seed=0, scale=0.7):
    """Residual MLPs with random outputs: conditionals of no law, and marginals of another."""
    pair = mam.residual_mlps(num_variables, num_values, width=6, depth=2, key=jax.random.key(seed))
    noise = np.random.default_rng(seed)
    random = lambda x: jnp.asarray(scale * noise.normal(size=x.shape), x.dtype)
    for name in ("marginal", "conditional"):
        where = lambda p, n=name: getattr(p, n).last
        pair = eqx.tree_at(where, pair, jax.tree.map(random, where(pair)))
    return pair


def rows(num_variables, num_values):
    """All values, [K^D, D]."""
    return np.array(list(itertools.product(range(num_values), repeat=num_variables)))


def orders(num_variables):
    """All permutations."""
    return np.array(list(itertools.permutations(range(num_variables))))
