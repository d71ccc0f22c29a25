"""Reparameterisation through a rejection sampler: Gamma, Beta and Dirichlet sites.

Marsaglia and Tsang (2000) draw z ~ Gamma(a, 1), a >= 1, from noise e ~ Normal(0, 1) by

    z = h(e, a) = d (1 + c e)^3,   d = a - 1/3,   c = 1 / (3 sqrt(d)),

which is accepted with some probability. The noise that is accepted has the density

    pi(e; a) = Gamma(h(e, a); a, 1) dh(e, a)/de,

the closer to Normal(0, 1) the larger a. The derivative of a mean then has two parts,

    d E[f(z)] / da = E[f'(z) dh/da] + E[f(z) d log pi(e; a) / da]:

the value carries the first, the second is the score function of the accepted noise, and small where a is large. So that it is
small everywhere, concentrations are raised by an integer B first: with u_i ~ Uniform(0, 1) and z ~ Gamma(a + B, 1),

    z u_1^(1/a) u_2^(1/(a + 1)) ... u_B^(1/(a + B - 1)) ~ Gamma(a, 1).

h is one to one, so that the accepted noise is h^-1(z, a) of an exact draw z, whichever sampler made it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._reinforce import Reinforce, as_baseline
from ._strategy import Downstream, Draw, Strategy, element, stop

Array = jax.Array
GAMMA = frozenset({"Gamma", "Chi2"})
SERVED = GAMMA | {"Beta", "Dirichlet"}


@dataclasses.dataclass(frozen=True, eq=False)
class RejectionReparam(Strategy):
    """Pathwise gradient through the noise that Marsaglia and Tsang's sampler accepts, plus the score function of that noise.

    For Gamma, Chi2, Beta and Dirichlet sites. The larger `boost`, the smaller the score function's part; each unit costs one
    uniform number more per draw.

    Args:
        boost: B, by which concentrations are raised before the rejection sampler, an integer of at least 1.
        baseline: control variate of the score function's part, as for `Reinforce`.

    Raises:
        ValueError: `boost` is no integer of at least 1, or the baseline has an unknown name.

    Validity: unbiased if everything downstream is continuous and piecewise smooth in the value; jumps are searched for at trace
    time and refused.
    Reference: Naesseth et al. 2017, arXiv:1610.05683.
    """

    boost: int = 4
    _: dataclasses.KW_ONLY
    baseline: Any = None
    name = "rejection_reparam"
    kind = "partly_pathwise"

    def __post_init__(self) -> None:
        if isinstance(self.boost, bool) or not isinstance(self.boost, int) or self.boost < 1:
            raise ValueError(
                f"RejectionReparam: boost must be an integer of at least 1, got {self.boost!r}."
            )
        object.__setattr__(self, "baseline", as_baseline(self.baseline))

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return self._score.num_replicates

    @property
    def _score(self) -> Reinforce:
        """What treats the accepted noise, as if it were the draw."""
        return Reinforce(self.baseline)

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        return None if name in SERVED else f"is implemented for {sorted(SERVED)}, not for {name}"

    def draw_with_noise(self, fn: dist.Distribution, key: Array) -> tuple[Array, dict[str, Array]]:
        base, shape = element(fn)
        a = _concentrations(base, shape)
        noise = self.accepted(a, key)
        log_z = self._log_gammas(a, noise)
        if type(base).__name__ in GAMMA:
            return jnp.exp(log_z[..., 0]) / getattr(base, "rate"), noise  # noqa: B009
        shares = jax.nn.softmax(log_z, -1)
        limits = jnp.finfo(shares.dtype)
        shares = jnp.clip(shares, limits.tiny, 1 - limits.epsneg)
        return (shares[..., 0] if type(base).__name__ == "Beta" else shares), noise

    def accepted(self, a: Array, key: Array) -> dict[str, Array]:
        """The noise of draws with concentrations `a`: what the rejection sampler accepts, and log u, last axis B."""
        k1, k2 = jax.random.split(key)
        raised = stop(a) + self.boost
        d = raised - 1 / 3
        z = jax.random.loggamma(k1, raised)
        normal = 3 * jnp.sqrt(d) * jnp.expm1((z - jnp.log(d)) / 3)
        tiny = jnp.finfo(a.dtype).tiny
        uniform = jax.random.uniform(k2, (*a.shape, self.boost), a.dtype, minval=tiny)
        return {"normal": stop(normal), "log_uniform": jnp.log(uniform)}

    def local(self, draw: Draw) -> PyTree:
        d, log_w = _cube(_concentrations(draw.distribution, draw.shape) + self.boost, draw.noise)
        log_z = jnp.log(d) + 3 * log_w
        # log Gamma(z; d + 1/3, 1) + log dh/de
        log_pi = (d - 2 / 3) * log_z - jnp.exp(log_z) - jax.lax.lgamma(d + 1 / 3)
        log_pi = log_pi + jnp.log(d) / 2 + 2 * log_w
        return self._score.local(dataclasses.replace(draw, log_prob=log_pi.sum(-1)))

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        return self._score.surrogate(local, downstream)

    def init_state(self) -> PyTree:
        return self._score.init_state()

    def update(self, local: PyTree, downstream: Downstream) -> PyTree:
        return self._score.update(local, downstream)

    def _log_gammas(self, a: Array, noise: dict[str, Array]) -> Array:
        """Log of Gamma(a, 1) draws, differentiable in a at fixed noise."""
        d, log_w = _cube(a + self.boost, noise)
        powers = noise["log_uniform"] / (a[..., None] + jnp.arange(self.boost))
        return jnp.log(d) + 3 * log_w + powers.sum(-1)


def _cube(raised: Array, noise: dict[str, Array]) -> tuple[Array, Array]:
    """(d, log(1 + c e)) at concentration `raised`: h(e) = d (1 + c e)^3."""
    d = raised - 1 / 3
    return d, jnp.log1p(noise["normal"] / (3 * jnp.sqrt(d)))


def _concentrations(base: dist.Distribution, shape: tuple[int, ...]) -> Array:
    """Concentrations of the Gamma draws behind each element, shape (*shape, draws)."""
    of = lambda name: jnp.asarray(getattr(base, name), float)
    if type(base).__name__ in GAMMA:
        return jnp.broadcast_to(of("concentration"), shape)[..., None]
    if type(base).__name__ == "Beta":
        both = [jnp.broadcast_to(of(f"concentration{i}"), shape) for i in (1, 0)]
        return jnp.stack(both, -1)
    a = of("concentration")
    return jnp.broadcast_to(a, shape + a.shape[-1:])
