"""Gibbs sweeps over discrete coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ._kernels import Kernel, LogDensity, Standing

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Gibbs(Kernel):
    """One sweep over all discrete coordinates in a random order, each drawn from its law given the others.

        p(u_i = v | others) = exp(f(u_1, ..., v, ..., u_d)) / sum_w exp(f(u_1, ..., w, ..., u_d))

    A coordinate of K values takes K - 1 evaluations of the density f, so that a sweep over d of them takes d (K - 1). For
    programs all of whose latent sites have a finite support that is the same at every draw.

    Args:
        num_values: number of values of each coordinate, [d]; `tempered_smc` finds it out from the program.

    Validity: every sweep leaves exp(f) invariant, each order of coordinates by itself does; nothing is rejected and nothing is
    tuned (`acceptance` is 1). A value at which f is NaN is never drawn.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def spins():
        ...     x = ppl.sample("x", dist.Bernoulli(0.5 * jnp.ones(4)).to_event(1))
        ...     ppl.factor("bonds", 2.0 * (x[:-1] == x[1:]).sum())
        >>> gibbs = inference.particles.moves.Gibbs()
        >>> result = inference.tempered_smc(spins, jax.random.key(0), num_particles=2000, kernel=gibbs)
        >>> result.particles["x"].shape  # exact log Z is 3 log((1 + e^2) / 2) = 4.301
        (2000, 4)
        >>> bool(abs(result.log_evidence - 4.301) < 0.2)
        True

    Reference: Geman and Geman 1984.
    """

    num_values: Sequence[int] | None = None
    target_accept: float = dataclasses.field(default=1.0, init=False, repr=False)

    def spread(self, points: Array) -> Array:
        return jnp.zeros(())

    def init_scale(self, dimension: int) -> float:
        return 1.0

    def step(
        self, key: Array, at: Standing, log_density: LogDensity, scale: Array, spread: Array
    ) -> tuple[Standing, Array]:
        if self.num_values is None:
            raise ValueError(
                "Gibbs: the numbers of values of the coordinates are not known. Give Gibbs(num_values=[...]), one for each."
            )
        counts = jnp.asarray(self.num_values)
        steps = jnp.arange(1, max(self.num_values))
        order_key, draw_key = jax.random.split(key)

        def redraw(at: Standing, inputs: tuple[Array, Array]) -> tuple[Standing, None]:
            i, key = inputs
            old = at.point[i]
            # Where it stands the density is known: only the other values are evaluated.
            others = (old + steps) % counts[i]
            moved = jax.vmap(lambda v: log_density(at.point.at[i].set(v)))(others)
            moved = jnp.where((steps < counts[i]) & ~jnp.isnan(moved), moved, -jnp.inf)
            logits = jnp.append(moved, at.log_density)  # the last one wins where all are -inf
            best = jnp.max(logits)
            chosen = jax.random.categorical(key, logits - jnp.where(jnp.isfinite(best), best, 0.0))
            chosen = jnp.where(best > -jnp.inf, chosen, len(steps))
            value = jnp.append(others, old)[chosen].astype(at.point.dtype)
            return Standing(at.point.at[i].set(value), logits[chosen], None), None

        order = jax.random.permutation(order_key, len(counts))
        at, _ = jax.lax.scan(redraw, at, (order, jax.random.split(draw_key, len(counts))))
        return at, jnp.ones(())
