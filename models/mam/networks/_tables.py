"""Marginalization models that are exact: all marginals of a small law in one table, and the law of any-order sampling.

All (K + 1)^D partial assignments are listed, so D ln(K + 1) has to stay small: 531,441 entries for 12 bits.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ....ppl._compat import ArrayLike
from ._networks import Networks

_MAX_ENTRIES = 2**22


class Tables(Networks):
    """A law by its table of marginals: both "networks" look up what they say, and they agree with each other.

    Of what cannot be, values of probability 0, the conditionals say nothing: they are even there.

    Args:
        log_joint: log p(x) up to a constant, nats, [K] * D; -inf for what cannot be.

    Attributes:
        table: log p(x_S) for all partial assignments, [K + 1] * D, indexed by tokens.

    Raises:
        ValueError: axes of different lengths, or of fewer than 2 values; more than 4 million partial assignments.
    """

    table: Array
    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __init__(self, log_joint: ArrayLike) -> None:
        """All marginals of a law given by log p(x) up to a constant, [K] * D."""
        log_p = np.asarray(log_joint, np.float64)
        self.num_variables, self.num_values = log_p.ndim, log_p.shape[0]
        if set(log_p.shape) != {self.num_values} or self.num_values < 2:
            raise ValueError(
                f"Tables: the joint has shape {log_p.shape}; it needs one axis for each variable, all with the same number of "
                "values, at least 2."
            )
        _check_size("Tables", self)
        for axis in range(log_p.ndim):
            total = np.logaddexp.reduce(log_p, axis, keepdims=True)
            log_p = np.concatenate([total, log_p], axis)
        self.table = jnp.asarray(log_p - log_p.ravel()[0])

    def log_marginal(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        return self.table[tuple(tokens)]

    def log_conditionals(
        self, tokens: Int[Array, " variables"]
    ) -> Float[Array, "variables values"]:
        i = jnp.arange(self.num_variables)
        symbols = jnp.arange(1, self.num_values + 1)
        choose = lambda i, symbol: self.table[tuple(tokens.at[i].set(symbol))]
        rows = jax.vmap(lambda i: jax.vmap(lambda symbol: choose(i, symbol))(symbols))(i)
        # Log 0 - log 0 is no number, and would not stay -inf along a chain that has met one.
        is_possible = rows.max(1, keepdims=True) > -jnp.inf
        return jax.nn.log_softmax(jnp.where(is_possible, rows, 0.0))


def all_tokens(num_variables: int, num_values: int) -> np.ndarray:
    """All partial assignments as tokens, [(K + 1)^D, D], in the order of a table's entries."""
    shape = (num_values + 1,) * num_variables
    return np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1)


def sampler_law(networks: Networks) -> np.ndarray:
    """The exact law of any-order sampling: log of v(x_S), the probability that sampling in a uniformly random order meets x_S.

    Forward in the number of observed variables,

        v(nothing) = 1,        v(x_S, x_i) = sum over i of v(x_S) exp(c(i, x_i | x_S)) / (D - |S|).

    Where all variables are observed v is the law of `MaM.sample` in random order, E_order[p(x | order)]. If the conditionals
    are those of one law p, v(x_S) = p(x_S) / binomial(D, |S|).

    Args:
        networks: whose conditional network is asked, at every partial assignment.

    Returns:
        log v in nats, [K + 1] * D, indexed by tokens.

    Raises:
        ValueError: there are more than 4 million partial assignments.
    """
    num_variables, num_values = networks.num_variables, networks.num_values
    _check_size("sampler_law", networks)
    tokens = all_tokens(num_variables, num_values)
    log_c = np.asarray(jax.lax.map(networks.log_conditionals, jnp.asarray(tokens), batch_size=4096))
    strides = (num_values + 1) ** np.arange(num_variables)[::-1]
    num_observed = (tokens > 0).sum(1)
    visits = np.zeros(len(tokens))
    visits[0] = 1.0
    for size in range(num_variables):
        here = np.flatnonzero(num_observed == size)
        for i in range(num_variables):
            free = here[tokens[here, i] == 0]
            for k in range(num_values):
                step = visits[free] * np.exp(np.float64(log_c[free, i, k]))
                np.add.at(visits, free + (k + 1) * strides[i], step / (num_variables - size))
    with np.errstate(divide="ignore"):
        return np.log(visits).reshape((num_values + 1,) * num_variables)


def _check_size(name: str, networks: Networks) -> None:
    size = (networks.num_values + 1) ** networks.num_variables
    if size > _MAX_ENTRIES:
        raise ValueError(
            f"{name}: {networks.num_variables} variables of {networks.num_values} values have {size} partial assignments, more "
            f"than {_MAX_ENTRIES}. Use fewer variables, or estimate with MaM.draw."
        )
