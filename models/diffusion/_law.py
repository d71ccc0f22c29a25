"""The law of a diffusion model's point as a program: its path is auxiliary randomness, and its density is estimated.

Terms of `_chain.py`: p(path, x) the reverse chain, q(path | x) the noising one, w = log p(path, x) - log q(path | x).
- a draw: (path, x) ~ p, and w; E[exp(-w) | x] = 1 / p(x), p(x) the density of the chain's point.
- given x: path ~ q(. | x), and w; E[exp w] = p(x).
The path is walked and not kept, and the two densities are subtracted step by step, so that long chains lose no digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...inference.diffusion import Diffusion, Noising
from ...ppl.densities import StochasticProgram, as_arrays, estimated
from ...ppl.densities._stochastic import same_sites
from ...ppl.traces import BoundParams, SiteInfo, Trace
from ._chain import kernel, last_step, log_normal
from ._grid import check_chain, check_data_variance, point_shape


class OneSiteLaw(StochasticProgram):
    """A stochastic program with one site.

    Attributes:
        name: of the site.
        kind_shown: its law, as traces name it.
    """

    name: str
    kind_shown: str

    def _value(self, choices: Mapping[str, PyTree]) -> Array:
        """The value of the site, which is all that is chosen."""
        choices = as_arrays(choices)
        same_sites(
            f"{self.label}: the choices do not match its site",
            choices, [self.name], "Give a value for this site and no other.",
        )  # fmt: skip
        return choices[self.name]

    def _trace(self, x: Array, log_density: Array) -> Trace:
        info = SiteInfo(self.name, "latent", (), (), x.shape, self.kind_shown)
        return estimated(self.label, {self.name: x}, {self.name: info}, log_density)


class DiffusionLaw(OneSiteLaw):
    """The law of the last point of a diffusion model's chain. Made by `law`."""

    kind_shown = "ReverseChain"

    def __init__(
        self,
        diffusion: Callable[..., Diffusion] | Diffusion,
        times: Array,
        name: str,
        data_variance: object,
    ) -> None:
        super().__init__(f"diffusion law[{name}]", {})
        self.diffusion, self.times, self.name = diffusion, times, name
        self.data_variance = data_variance

    def _with_parts(self, parts: Mapping[str, object]) -> StochasticProgram:
        return DiffusionLaw(self.diffusion, self.times, self.name, self.data_variance)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        model, times = self._model(args, kwargs)
        x, log_weight = _down(model, times, self.own_key(), self.data_variance)
        return self._trace(x, log_weight)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        x = self._value(choices)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        model, times = self._model(args, kwargs)
        if x.shape != model.shape:
            raise ValueError(
                f"{self.label}: the value of '{self.name}' has shape {x.shape}, and a point has {model.shape}. Give one point; "
                "for rows, use reverse_chain in a plate."
            )
        return self._trace(x, _up(model, times, self.own_key(), x, self.data_variance))

    def _model(self, args: PyTree, kwargs: PyTree) -> tuple[Diffusion, Array]:
        model = self.diffusion
        if not isinstance(model, Diffusion):
            with BoundParams(self.params or {}):
                model = model(*args, **kwargs)
        check_data_variance(self.label, self.data_variance, point_shape(self.label, model))
        return model, check_chain(self.label, model.noising, self.times)


def law(
    diffusion: Diffusion | Callable[..., Diffusion], times: Float[Array, " steps+1"], *, name: str = "x",
    data_variance: Float[Array, "*shape"] | float = 1.0,
) -> DiffusionLaw:  # fmt: skip
    """The law of a diffusion model's point as a program with one site; its density p(x), that of the chain, is estimated.

    simulate(key): the chain of `ancestral` along `times`, and a w with E[exp(-w) | x] = 1 / p(x).
    estimate_log_density(key, {name: x}): w = log prod_n p(x_{n+1} | x_n) / q(x_n | x_{n+1}) along a noised path of x;
    E[exp w] = p(x) on every grid, E[w] = the bound of `bound(times=)`.

    Args:
        diffusion: the model; or a function of the program's arguments that returns it, e.g. of a condition, and which may declare
            its network by `ppl.module`.
        times: descending, to s > 0, e.g. `noising.log_snr_times(50)`.
        name: of its site.
        data_variance: as for `reverse_chain`.

    Returns:
        A program, for `ppl.draw` and `ppl.score`, objectives, `ppl.normalize` and `ppl.marginal`. Within a larger program use
        `reverse_chain`.

    Raises:
        ValueError: as `bound`; a point of another shape.

    Validity: both identities hold at every grid and for any score. Derivatives pass along the path; the memory of one does not
    grow with the number of steps but for the path itself.

    Example:
        >>> import jax
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP()
        >>> model = diffusion.gaussian_mixture(noising, [1.0], [[0.0]], 1.0)  # Normal(0, 1)
        >>> law = diffusion.law(model, noising.log_snr_times(50))
        >>> keys = jax.random.split(jax.random.key(0), 2000)
        >>> log_w = jax.vmap(lambda key: law.estimate_log_density(key, {"x": jax.numpy.array([0.5])}))(keys)
        >>> print(f"{jax.numpy.exp(log_w).mean():.2f}")  # Normal(0.5; 0, 1) = 0.352
        0.35

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239, equation 3; Lew et al. 2023, doi:10.1145/3591290.
    """
    return DiffusionLaw(diffusion, times, name, data_variance)


def _up(diffusion: Diffusion, times: Array, key: Array, x: Array, data_variance: object) -> Array:
    """W along a noised path of x."""
    noising = diffusion.noising
    first = noising.alpha(times[-1]) * x + noising.std(times[-1]) * _noise(key, 0, x)

    @jax.checkpoint
    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> PyTree:
        (x, total), (n, t, s) = carry, inputs
        kept, variance = _forward(noising, t, s)
        noise = _noise(key, n, x)
        then = kept * x + jnp.sqrt(variance) * noise
        mean, wide = kernel(diffusion, then, t, s, data_variance)
        change = jnp.square(noise) - jnp.square(x - mean) / wide + jnp.log(variance / wide)
        return (then, total + 0.5 * jnp.sum(change)), None

    numbers = jnp.arange(1, len(times))
    start = first, _last_ratio(noising, times, x)
    (last, total), _ = jax.lax.scan(step, start, (numbers, times[-2::-1], times[:0:-1]))
    return total + log_normal(last, 0.0, noising.variance(times[0]))


def _down(
    diffusion: Diffusion, times: Array, key: Array, data_variance: object
) -> tuple[Array, Array]:
    """The chain's point, and w along its path."""
    noising = diffusion.noising
    first = noising.std(times[0]) * _noise(key, 0, jnp.zeros(diffusion.shape))

    @jax.checkpoint
    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> PyTree:
        (x, total), (n, t, s) = carry, inputs
        kept, variance = _forward(noising, t, s)
        mean, wide = kernel(diffusion, x, t, s, data_variance)
        noise = _noise(key, n, x)
        then = mean + jnp.sqrt(wide) * noise
        change = (
            jnp.square(x - kept * then) / variance - jnp.square(noise) + jnp.log(variance / wide)
        )
        return (then, total + 0.5 * jnp.sum(change)), None

    numbers = jnp.arange(1, len(times))
    start = first, log_normal(first, 0.0, noising.variance(times[0]))
    (x, total), _ = jax.lax.scan(step, start, (numbers, times[:-1], times[1:]))
    factor, scale = last_step(noising, times[-1])
    x = factor * x + scale * _noise(key, len(times), x)
    return x, total + _last_ratio(noising, times, x)


def _noise(key: Array, n: Any, like: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, n), like.shape, like.dtype)


def _forward(noising: Noising, t: Array, s: Array) -> tuple[Array, Array]:
    """Factor and variance of x_t given x_s, s < t."""
    kept = jnp.exp(noising.log_alpha(t) - noising.log_alpha(s))
    return kept, noising.variance(t) - kept**2 * noising.variance(s)


def _last_ratio(noising: Noising, times: Array, x: Array) -> Array:
    """Log p(x | x_N) / q(x_N | x): both see one residual, on two scales."""
    return x.size * noising.log_alpha(times[-1])
