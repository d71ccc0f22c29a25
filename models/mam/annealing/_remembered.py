"""A marginalization model that knows some states by heart.

Of an energy the relative masses of any states A are known exactly, f(x) / sum_A f. What a network would have to learn of the few
states that hold most of a law is there already; what lies outside is left to it:

    p(x) = w p_A(x) + (1 - w - u) q(x) + u K^-D,        p_A(x) = f(x) 1{x in A} / sum_A f,

q the law of a pair of networks. A little of the uniform law keeps weights of rare states that neither knows bounded (a defensive
mixture): without it an estimate of Z would leave them out, and its standard error would not tell. The marginals of a mixture are
the mixture of the marginals,

    exp(l(x_S)) = w p_A(x_S) + (1 - w - u) exp(l_q(x_S)) + u K^-|S|,
    exp(c(i, k | x_S)) = [w p_A(x_S, x_i = k) + (1 - w - u) exp(l_q(x_S) + c_q(i, k | x_S)) + u K^-(|S| + 1)] / exp(l(x_S)),

so that l and c fit together as far as those of q do. The weight w is the one that independent draws of the law like best.

Reference: Hesterberg 1995, Weighted average importance sampling and defensive mixture distributions (the uniform part).
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ....ppl._compat import ArrayLike
from ....ppl._precision import full_precision
from ..networks import Networks

_MAX_ATOMS, _KEPT = 2**14, 0.999
UNIFORM = 0.005


class Remembered(Networks):
    """The mixture of the module's text.

    Args:
        networks: the networks of q.
        rows: draws of the law, values 0 to K - 1; A are the heaviest states among them that hold 99.9 % of their mass, 16,384
            at most.
        log_masses: log f of each row, nats.
        share: w.
        uniform: u, above 0.

    Raises:
        ValueError: shares that are negative or leave nothing to the networks; rows of another width, or not one mass for each;
            values that are none; a mass that is NaN or infinite, or none that is positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import mam
        >>> networks = mam.residual_mlps(2, 2, width=8, key=jax.random.key(0))
        >>> both = mam.Remembered(networks, jnp.array([[0, 0], [1, 1]]), jnp.log(jnp.array([3.0, 1.0])), 0.5)
        >>> model = mam.MaM(both)
        >>> level = model.log_marginal(jnp.array([0, 0]), jnp.array([True, True]))
        >>> round(float(jnp.exp(level)), 4)  # (3 / 4 + 1 / 4) / 2
        0.5
    """

    networks: Networks
    atoms: Array
    masses: Array
    share: float = eqx.field(static=True)
    uniform: float = eqx.field(static=True)
    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __init__(
        self,
        networks: Networks,
        rows: Int[ArrayLike, "rows variables"],
        log_masses: Float[ArrayLike, " rows"],
        share: float,
        *,
        uniform: float = UNIFORM,
    ) -> None:
        values, log_f = np.asarray(rows), np.asarray(log_masses, np.float64)
        self.num_variables, self.num_values = networks.num_variables, networks.num_values
        is_mixture = min(share, uniform) >= 0 and share + uniform < 1
        if values.shape != (len(log_f), self.num_variables) or not is_mixture:
            raise ValueError(
                f"Remembered: rows of shape {values.shape}, {log_f.size} masses, shares {share} and {uniform}; needs rows [n, "
                f"{self.num_variables}], one mass each, and shares that are not negative and leave something to the networks. "
                "Score every row once, and lower the shares."
            )
        is_known = ((values >= 0) & (values < self.num_values) & (values % 1 == 0)).all()
        if not is_known or np.isnan(log_f).any() or not np.isfinite(log_f.max(initial=-np.inf)):
            raise ValueError(
                f"Remembered: rows of shape {values.shape} have values from {values.min(initial=0)} to {values.max(initial=0)}; "
                f"{int(np.isnan(log_f).sum())} of their masses are NaN, and the largest is {log_f.max(initial=-np.inf)}: states "
                "that do not exist, or have no mass, would take the place of others. Give integers of 0 to "
                f"{self.num_values - 1}, and log-masses below infinity, one of them finite."
            )
        atoms, first = np.unique(values, axis=0, return_index=True)
        heaviest = np.argsort(-log_f[first])[:_MAX_ATOMS]
        masses = np.exp(log_f[first][heaviest] - log_f.max())
        # Each atom costs a comparison in every pass: the lightest ones are left to q.
        is_kept = np.cumsum(masses) - masses <= _KEPT * masses.sum()
        atoms, masses = atoms[heaviest][is_kept], masses[is_kept]
        self.networks, self.share, self.uniform = networks, float(share), float(uniform)
        self.atoms = jnp.asarray(atoms.astype(int) + 1)
        self.masses = jnp.asarray(masses / masses.sum(), jnp.result_type(float))

    def log_marginal(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        known = self._known(self._matched(tokens).sum(), tokens, 0)
        level = jnp.logaddexp(known, self._outside(tokens))
        # Nothing observed is 0 exactly only if said so.
        return jnp.where((tokens > 0).any(), level, 0.0)

    @full_precision
    def log_conditionals(
        self, tokens: Int[Array, " variables"]
    ) -> Float[Array, "variables values"]:
        of_value = jax.nn.one_hot(self.atoms - 1, self.num_values)
        known = self._known(jnp.tensordot(self._matched(tokens), of_value, 1), tokens, 1)
        outside = self._outside(tokens) + self.networks.log_conditionals(tokens)
        return jax.nn.log_softmax(jnp.logaddexp(known, outside))

    def _outside(self, tokens: Array) -> Array:
        return math.log1p(-self.share - self.uniform) + self.networks.log_marginal(tokens)

    def _known(self, mass: Array, tokens: Array, num_more: int) -> Array:
        """Log of w p_A + u K^-n, n the observed variables and `num_more`."""
        # K^-n itself is 0 in float32 from some 140 bits on.
        num = (tokens > 0).sum() + num_more
        flat = jnp.log(self.uniform) - num * math.log(self.num_values)
        return jnp.logaddexp(jnp.log(self.share * mass), flat)

    def log_masses(self, values: Int[ArrayLike, "rows variables"]) -> Float[np.ndarray, " rows"]:
        """Log p_A of whole rows of values 0 to K - 1, -inf outside of A."""
        known = {
            row.tobytes(): m
            for row, m in zip(np.asarray(self.atoms - 1, np.int32), self.masses, strict=True)
        }
        masses = [float(known.get(row.tobytes(), 0.0)) for row in np.asarray(values, np.int32)]
        with np.errstate(divide="ignore"):
            return np.log(np.array(masses))

    def _matched(self, tokens: Array) -> Array:
        """The masses of the states that agree with what is observed, 0 for the others."""
        agrees = ((tokens == 0) | (tokens == self.atoms)).all(1)
        return jnp.where(agrees, self.masses, 0.0)


def best_share(
    log_inside: Float[np.ndarray, " rows"], log_outside: Float[np.ndarray, " rows"]
) -> float:
    """The w that maximises the mean of log[w p_A(x) + (1 - w) q(x)] over independent draws x, at most 1 - 2 u.

    Args:
        log_inside: log p_A(x), -inf outside of A.
        log_outside: log q(x).

    The mean is concave in w: EM, from 1/2, climbs to its top.
    """
    share = 0.5
    with np.errstate(divide="ignore"):
        for _ in range(200):
            inside, outside = np.log(share) + log_inside, np.log1p(-share) + log_outside
            share = float(np.exp(inside - np.logaddexp(inside, outside)).mean())
            share = min(share, 1 - 2 * UNIFORM)
    return share
