"""Diffusion models as the particle methods see them: a linear noising process, and a score for each of its times."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from ...ppl._checks import check_counts, log_number
from ...ppl._compat import is_concrete
from ...ppl._show import shown
from ._points import checked, is_shape, normal_law, total

Time = Float[Array, ""] | float
ROUNDING = 1e-4  # nats by which log_alpha may exceed 0, or the noise rise towards the data


class Noising(abc.ABC):
    """A linear noising process, which turns data x_0 into noise as the time t grows from 0 to `end`.

        x_t = alpha(t) x_0 + std(t) eps,   eps ~ Normal(0, I),
        dx_t = drift(t) x_t dt + sqrt(g2(t)) dW,   drift = d log alpha / dt,   g2 = d std^2 / dt - 2 drift std^2.

    A subclass gives `log_alpha`, `variance`, `end` and `times`; the coefficients of the differential equation follow by
    differentiation. Two processes are one if they compare equal, which frozen dataclasses do by their fields.

    Reference: Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364, appendix B.
    """

    @property
    @abc.abstractmethod
    def end(self) -> float:
        """The time at which hardly anything but noise is left."""

    @abc.abstractmethod
    def log_alpha(self, t: Time) -> Float[Array, ""]:
        """Log of the factor of the data; 0 at t = 0."""

    @abc.abstractmethod
    def variance(self, t: Time) -> Float[Array, ""]:
        """Variance std(t)^2 of the noise; 0 at t = 0."""

    @abc.abstractmethod
    def times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """The process's own grid for sampling: from `end` down to a time near 0; known numbers, also within jax.jit."""

    def log_snr_times(self, num_steps: int) -> Float[Array, " steps+1"]:
        """Times even in the log signal-to-noise ratio 2 log_alpha - log variance, between the ends of `times`.

        Each step then multiplies that ratio by one factor, where even times may multiply it a hundredfold at the noise.

        Args:
            num_steps: number of steps.

        Returns:
            Descending times, [num_steps + 1].

        Raises:
            ValueError: fewer than one step.

        Reference: Lu et al. 2022, arXiv:2206.00927, section 3.4.
        """
        check_counts("log_snr_times", num_steps=num_steps)
        with jax.ensure_compile_time_eval():
            own = self.times(1)
            log_snr = jax.jit(jax.vmap(lambda t: 2 * self.log_alpha(t) - jnp.log(self.variance(t))))
            first, last = log_snr(own)
            wanted = jnp.linspace(first, last, num_steps + 1)[1:-1]
            above, below = (jnp.full(num_steps - 1, t) for t in own)
            for _ in range(60):  # bisection, to the last bit
                middle = 0.5 * (above + below)
                is_noisy = log_snr(middle) < wanted
                above, below = (
                    jnp.where(is_noisy, middle, above),
                    jnp.where(is_noisy, below, middle),
                )
            return jnp.concatenate([own[:1], 0.5 * (above + below), own[1:]])

    def alpha(self, t: Time) -> Float[Array, ""]:
        """Factor of the data."""
        return jnp.exp(self.log_alpha(t))

    def std(self, t: Time) -> Float[Array, ""]:
        """Standard deviation of the noise."""
        return jnp.sqrt(self.variance(t))

    def drift(self, t: Time) -> Float[Array, ""]:
        """Rate a(t) of the linear drift a(t) x."""
        return jax.grad(self.log_alpha)(jnp.asarray(t, float))

    def g2(self, t: Time) -> Float[Array, ""]:
        """Squared diffusion coefficient."""
        variance, slope = jax.value_and_grad(self.variance)(jnp.asarray(t, float))
        return slope - 2 * self.drift(t) * variance


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
    """A diffusion model: the marginals q_t of a noising process that started from the model's data.

    Args:
        noising: the process.
        score: `(x, t) -> grad log q_t(x)` for one point x of shape `shape`, t a scalar.
        shape: shape of one point; for points that are trees of arrays (several sites) the tree of their shapes, e.g.
            {"place": (13, 3), "charge": (13,)}.
        log_density: `(x, t) -> log q_t(x)` in nats, normalised, where it is known.
        noise: law of eps, the shape of a point and of unit scale, where it is not Normal(0, I). `score` is then defined by
            `denoise`, and belongs to the flow alone: methods with noise of their own refuse such a model.

    Validity: methods that call themselves exact are so where `score` is that of a solution of the noising process. A
    learned score is not quite.
    """

    noising: Noising
    score: Callable[[PyTree, Array], PyTree]
    shape: Any = ()
    log_density: Callable[[PyTree, Array], Array] | None = None
    noise: PyTree = None

    def prior(self) -> PyTree:
        """Normal(0, variance(end)), what the marginal at `end` is taken for where its density is not known.

        A distribution, or a tree of them where points are trees; the law of std(end) eps for other noise.
        """
        scale = self.noising.std(self.noising.end)
        if self.noise is not None:
            return dist.TransformedDistribution(
                self.noise, dist.transforms.AffineTransform(0.0, scale)
            )
        return normal_law(self.shape, scale)

    def score_at(self, x: PyTree, t: Time) -> PyTree:
        """What `score` returns; refuses what has another structure or shape than x, which sums would broadcast."""
        return checked("a score", self.score(x, jnp.asarray(t, float)), x)

    def log_density_at(self, x: PyTree, t: Time) -> Float[Array, ""]:
        """What `log_density` returns; refuses what is not one number."""
        assert self.log_density is not None
        found = log_number("Diffusion: log_density", self.log_density(x, jnp.asarray(t, float)))
        if found.shape != ():
            raise ValueError(
                f"Diffusion: log_density returned shape {found.shape} for one point. Return one number, log q_t(x) in nats: a "
                "sum over coordinates, of one point without a leading axis."
            )
        return found

    def denoise(self, x: Array, t: Time) -> Array:
        """E[x_0 | x_t = x] = (x + variance(t) score(x, t)) / alpha(t) (Tweedie's formula)."""
        variance, alpha = self.noising.variance(t), self.noising.alpha(t)
        score = self.score_at(x, t)
        return jax.tree.map(lambda x, s: (x + variance * s) / alpha, x, score)

    def with_clipped_score(self, max_norm: float) -> Diffusion:
        """The model with scores no longer than `max_norm`: in `fkc` they are cut in drift and weight alike."""

        def clipped(x: PyTree, t: Array) -> PyTree:
            score = self.score_at(x, t)
            norm = jnp.sqrt(total(jnp.square, score))
            factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
            return jax.tree.map(lambda s: s * factor, score)

        return dataclasses.replace(self, score=clipped)


def reverse_step(
    noising: Noising, x: Array, score: Array, t: Time, s: Time, eta: float = 1.0
) -> tuple[Array, Array]:
    """Mean and variance of the step from x at time t to an earlier time s.

        mean = alpha_s x_0 + sqrt(std_s^2 - eta^2 v) eps,   variance = eta^2 v,

    where x_0 = (x + std_t^2 score) / alpha_t is the denoised point, eps = -std_t score its noise, and v the variance of x_s given
    x_t and x_0 under the noising process. eta = 1 is the ancestral step of DDPM, eta = 0 that of DDIM.

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239, equation 7; Song, Meng and Ermon 2021, arXiv:2010.02502, equation 12.
    """
    kept = jnp.exp(2 * (noising.log_alpha(t) - noising.log_alpha(s)))
    before, after = noising.variance(t), noising.variance(s)
    variance = eta**2 * after * (before - kept * after) / before
    data = (x + before * score) / noising.alpha(t)
    noise = -jnp.sqrt(before) * score
    return noising.alpha(s) * data + jnp.sqrt(after - variance) * noise, variance


def check_noise(name: str, diffusion: Diffusion) -> None:
    """Refuse a model whose noise is not Normal, for methods that follow the reverse process."""
    if diffusion.noise is not None:
        raise ValueError(
            f"{name}: the model's noise is {type(diffusion.noise).__name__}, for which there is no reverse process with noise of "
            "its own, only a flow. Use diffusion.flow_sample, or heun or ddim without noise."
        )


def check_array(name: str, diffusion: Diffusion) -> tuple[int, ...]:
    """The shape of a point that is one array; refuses trees."""
    if not is_shape(diffusion.shape):
        raise ValueError(
            f"{name}: points are one array, and the model's are a tree of shapes {diffusion.shape}. Flatten them into one array, "
            "e.g. by jax.flatten_util.ravel_pytree."
        )
    return diffusion.shape


def check_times(name: str, noising: Noising, times: Array) -> Array:
    """Times as a known array; refuses what is traced, or no descending grid within [0, end]."""
    if not is_concrete(times):
        raise ValueError(
            f"{name}: times must be concrete numbers, and are traced by jax.jit, jax.grad or jax.vmap here: whether they fit the "
            "process could not be checked. Make them outside, or by NumPy or noising.times(num_steps), which stay known within."
        )
    _check_grid(name, noising, np.asarray(times, float))
    _check_process(name, noising, np.asarray(times, float))
    with jax.ensure_compile_time_eval():
        return jnp.asarray(times, float)


def _check_grid(name: str, noising: Noising, times: np.ndarray) -> None:
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"{name}: times must be a vector of two or more noising times, got shape {times.shape}. Use noising.times(num_steps)."
        )
    first, last = times[0], times[-1]
    if not np.all(np.diff(times) < 0):
        raise ValueError(
            f"{name}: times must descend from noise to data, got {first:g} ... {last:g}. Reverse or sort them."
        )
    if last < 0 or first > noising.end * (1 + 1e-5):
        raise ValueError(
            f"{name}: times must lie in [0, {noising.end:g}], got {first:g} ... {last:g}. Use noising.times(num_steps)."
        )


def _check_process(name: str, noising: Noising, times: np.ndarray) -> None:
    """Refuse what is no process from data to noise on a grid, where its numbers are known."""
    what = f"{name}: the process {type(noising).__name__}"
    with jax.ensure_compile_time_eval():
        at = jnp.asarray(times, float)
        try:
            found = [jax.vmap(fn)(at) for fn in (noising.log_alpha, noising.variance)]
        except jax.errors.TracerArrayConversionError as err:
            raise TypeError(
                f"{what} makes NumPy's arrays of its times, which JAX traces. Write log_alpha and variance with jax.numpy."
            ) from err
    for method, values in zip(("log_alpha", "variance"), found, strict=True):
        if values.shape != at.shape:
            raise ValueError(
                f"{what} returns shape {values.shape[1:]} by {method} at one time. Return one number: all coordinates have one "
                "noise."
            )
    if not is_concrete(found):
        return
    log_alpha, variance = (np.asarray(x, float) for x in found)
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.log(variance) - 2 * log_alpha
    rises = np.diff(noise) > ROUNDING  # towards the data
    is_sound = np.all(variance >= 0) and np.all(log_alpha <= ROUNDING) and not np.isnan(noise).any()
    if not is_sound or rises.any() or not noise[-1] < noise[0]:
        raise ValueError(
            f"{what} has log_alpha from {log_alpha[0]:g} to {log_alpha[-1]:g} and variance from {variance[0]:g} to "
            f"{variance[-1]:g} along times that fall from {times[0]:g} to {times[-1]:g}. It goes from data (log_alpha 0, "
            "variance 0 at t = 0) to noise: log_alpha is 0 or less, variance 0 or more, and log variance - 2 log_alpha rises "
            "with t. Return the logarithm of alpha, and the square of the noise's scale."
        )


def is_one_process(one: Noising, other: Noising) -> bool:
    """Whether two processes are equal; by their values where their fields, being arrays, cannot be compared."""
    if one is other:
        return True
    try:
        return bool(one == other)
    except ValueError:
        if type(one) is not type(other) or one.end != other.end:
            return False
    with jax.ensure_compile_time_eval():
        at = jnp.linspace(0.0, 1.0, 33) * one.end
        values = [jax.vmap(fn)(at) for p in (one, other) for fn in (p.log_alpha, p.variance)]
    if not is_concrete(values):
        return False
    return all(np.array_equal(a, b) for a, b in zip(values[:2], values[2:], strict=True))
