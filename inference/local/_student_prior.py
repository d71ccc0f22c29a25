"""A Student t prior of a local site, as a normal one of unknown precision.

Terms: x | tau ~ N(loc, S / tau), tau ~ Gamma(df / 2, df / 2), so that x ~ t_df(loc, S); one tau for each coordinate, each group
of them, or a whole vector. Output: the normal q(x) of the best q(x) q(tau) given a potential: that of the prior
N(loc, S / E_q[tau]) with

    E_q[tau] = (df + k) / (df + E_q[(x - loc)' S^-1 (x - loc)]),   k coordinates to a tau,

found by turns. It maximises E_q[-potential] + H(q) - (df + k) / 2 log(1 + E_q[(x - loc)' S^-1 (x - loc)] / df) over normal q.

Reference: Tipping and Lawrence 2005, Variational inference for Student-t models, Neurocomputing 69.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from ... import ppl
from ._local_site import NormalPrior, Potential, posterior

Array = jax.Array
NUM_TURNS = 20  # each shrinks the distance to the fixed point by a factor


class StudentPrior(NamedTuple):
    """t_df(loc, S).

    Attributes:
        df: degrees of freedom, [*batch, d] for independent coordinates, [*batch, G] for groups of them, [*batch] for a vector.
        normal: N(loc, S).
        groups: of coordinates that share a tau; None where each has its own, or all of them have one.
    """

    df: Array
    normal: NormalPrior
    groups: ppl.distributions.Groups | None = None

    def given(self, law: dist.Distribution) -> NormalPrior:
        """N(loc, S / E[tau]) for x ~ `law`."""
        mean, spread = law.mean - self.normal.loc, law.variance
        if self.normal.scale is not None:
            distance = (mean**2 + spread) / self.normal.scale**2
            if self.groups is None:
                inverse = (self.df + distance) / (self.df + 1)
            else:
                shared = self.df + self.groups.total(distance)
                inverse = self.groups.spread(shared / (self.df + self.groups.sizes))
            return self.normal._replace(scale=self.normal.scale * jnp.sqrt(inverse))
        normal: Any = law
        tril = self.normal.scale_tril
        assert tril is not None
        solve = lambda x: solve_triangular(tril, x, lower=True)
        distance = (solve(mean[..., None]) ** 2).sum((-1, -2))
        distance = distance + (solve(normal.scale_tril) ** 2).sum((-1, -2))
        inverse = (self.df + distance) / (self.df + mean.shape[-1])
        scale_tril = tril * jnp.sqrt(inverse)[..., None, None]
        return self.normal._replace(scale_tril=scale_tril)

    def settled(self, potential: Callable[[NormalPrior], Potential]) -> dist.Distribution:
        """q(x), by turns with the potential, which is expanded under its prior."""
        site = lambda prior: posterior(prior, potential(prior))
        turn = lambda prior, _: (self.given(site(prior)), None)
        return site(jax.lax.scan(turn, self.normal, None, NUM_TURNS)[0])
