"""Paths between two laws: where a point is at time t, given the two ends between which it moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...inference.diffusion import Noising
from ...ppl._compat import is_concrete

type Position = Callable[[Array, Array, Array, Array], Array]
type OfTime = Callable[[Array], Array]
# (t, x) -> a vector of the shape of x, for one point; of tokens, rates [variables, values].
type VectorField = Callable[[Array, Array], Array]
type Sites = dict[str, tuple[dist.Distribution, Array]]  # name -> law and value of a regression


@dataclasses.dataclass(frozen=True)
class Path:
    """A conditional path x_t = position(t, x_0, x_1, z), t from 0 to 1, z standard normal noise of the shape of a point.

    With ends of any joint law and z independent of them, x_t has a law at each time, and the velocity

        b(t, x) = E[u | x_t = x],   u = d position / dt at fixed x_0, x_1 and z,

    carries it: the flow dx = b dt leads from the law of x_0 to that of x_1. `flow_matching` learns b.

    Args:
        position: `(t, x_0, x_1, z) -> x_t` of one point: x_0 at t = 0 and x_1 at t = 1 for every z.
        has_noise: whether z counts.
        first: smallest time that is asked for in training, above 0 where u is infinite at the ends.
        last: largest one.

    Reference: Lipman et al. 2023, arXiv:2210.02747, theorem 2; Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797.
    """

    position: Position
    has_noise: bool = False
    first: float = 0.0
    last: float = 1.0

    def at(
        self, t: ArrayLike, start: Float[Array, "*shape"], end: Float[Array, "*shape"], z: Float[Array, "*shape"] | None = None
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:  # fmt: skip
        """The point x_t and the conditional velocity u.

        Args:
            t: time in [0, 1].
            start: x_0.
            end: x_1.
            z: the noise; none by default.

        Raises:
            ValueError: ends of different shapes; a path with noise, and none is given, or of another shape.
        """
        start, end, z = self.checked(start, end, z)
        t = jnp.asarray(t, float)
        return jax.jvp(lambda t: self.position(t, start, end, z), (t,), (jnp.ones_like(t),))

    def checked(self, start: Array, end: Array, z: Array | None) -> tuple[Array, Array, Array]:
        """The ends and the noise of one point, of one shape."""
        if jnp.shape(start) != jnp.shape(end):
            raise ValueError(
                f"Path: the ends of one point have shapes {jnp.shape(start)} and {jnp.shape(end)}. Give points of one shape."
            )
        if z is None and self.has_noise:
            raise ValueError(
                "Path: this path has noise between its ends. Give z=jax.random.normal(key, shape)."
            )
        z = jnp.zeros(jnp.shape(start)) if z is None else z
        if jnp.shape(z) != jnp.shape(start):
            raise ValueError(
                f"Path: the noise z has shape {jnp.shape(z)}, and a point {jnp.shape(start)}: coordinates would share theirs. "
                "Give z=jax.random.normal(key, shape) of a point's shape."
            )
        return start, end, z

    def sites(
        self, network: Callable[..., PyTree], t: Array, start: Array, end: Array, z: Array, context: PyTree
    ) -> Sites:  # fmt: skip
        """What `flow_matching` observes at rows of ends: u, and z where there is noise, about what the network says."""
        law = lambda mean: dist.Normal(mean, 1.0).to_event(end.ndim - 1)
        found = {}
        for sign in (1, -1) if self.has_noise else (1,):
            x, u = jax.vmap(self.at)(t, start, end, sign * z)
            said = jax.vmap(network)(x, t, context)
            if not self.has_noise:
                return {"u": (law(said), u)}
            found |= {f"u at {sign} z": (law(said[0]), u), f"z at {sign} z": (law(said[1]), sign * z)}  # fmt: skip
        return found


@dataclasses.dataclass(frozen=True, init=False)
class Interpolant(Path):
    """The path x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z.

    The score of x_t is known from what a network learns: -E[z | x_t] / gamma, and -E[x_0 | x_t] / alpha where x_0 is standard
    normal and independent of x_1.

    Args:
        alpha: `t -> alpha`, 1 at 0 and 0 at 1.
        beta: `t -> beta`, 0 at 0 and 1 at 1.
        variance: `t -> gamma^2`, 0 at both ends and positive between; None for no noise.
        margin: training asks for times in [margin, 1 - margin].
    """

    alpha: OfTime
    beta: OfTime
    variance: OfTime | None

    def __init__(
        self, alpha: OfTime, beta: OfTime, variance: OfTime | None = None, *, margin: float = 0.0
    ) -> None:
        def position(t: Array, start: Array, end: Array, z: Array) -> Array:
            x = alpha(t) * start + beta(t) * end
            return x if variance is None else x + self.gamma(t) * z

        for name, value in {"alpha": alpha, "beta": beta, "variance": variance}.items():
            object.__setattr__(self, name, value)
        super().__init__(position, variance is not None, margin, 1 - margin)

    def gamma(self, t: ArrayLike) -> Float[Array, ""]:
        """The factor of z. Its derivative is infinite at the ends, where it is said to be 0."""
        if self.variance is None:
            return jnp.zeros(())
        variance = self.variance(jnp.asarray(t, float))
        return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def linear(noise: float = 0.0) -> Interpolant:
    """The path x_t = (1 - t) x_0 + t x_1 + noise sqrt(t (1 - t)) z: straight lines, and Brownian bridges where there is noise.

    Without noise, of flow matching and rectified flows; with noise s and the entropic coupling of s^2, whose bridges run at s^2
    per unit of time, x_t is the Schrödinger bridge.

    Args:
        noise: standard deviation of the Brownian motion after a unit of time.

    Raises:
        ValueError: negative noise.

    Reference: Liu, Gong and Liu 2023, arXiv:2209.03003; Tong et al. 2024, arXiv:2302.00482.
    """
    return _bridged(lambda t: 1 - t, lambda t: t, noise)


def trigonometric(noise: float = 0.0) -> Interpolant:
    """The path x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1 + noise sqrt(t (1 - t)) z.

    Without noise, and between independent ends of equal variance, variance stays.

    Args:
        noise: as for `linear`.

    Raises:
        ValueError: negative noise.

    Reference: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, section 4.
    """
    cos, sin = (lambda t: jnp.cos(0.5 * jnp.pi * t)), (lambda t: jnp.sin(0.5 * jnp.pi * t))
    return _bridged(cos, sin, noise)


def of_noising(noising: Noising, margin: float = 1e-3) -> Interpolant:
    """The path of a diffusion model, from noise to data: x_t = std(s) x_0 + alpha(s) x_1 at the noising time s = end (1 - t).

    At t = 0 it is alpha(end) x_1 + std(end) x_0: noise up to what the process leaves of the data. `diffusion.PoissonNoise` as law
    of x_0 makes it the path of a Poisson flow.

    Args:
        noising: the process.
        margin: training asks for times in [margin, 1 - margin]; std is not differentiable where it vanishes.
    """
    at = lambda t: noising.end * (1 - t)
    return Interpolant(lambda t: noising.std(at(t)), lambda t: noising.alpha(at(t)), margin=margin)


def _bridged(alpha: OfTime, beta: OfTime, noise: float) -> Interpolant:
    """The interpolant with the noise of a Brownian bridge, whose factor has no derivative at the ends."""
    if noise < 0:
        raise ValueError(f"Path: noise must be >= 0, got {noise}. Give 0 for none, or more.")
    if not noise:
        return Interpolant(alpha, beta)
    return Interpolant(alpha, beta, lambda t: noise**2 * t * (1 - t), margin=1e-3)


def sphere() -> Path:
    """The path along great circles of the unit sphere.

        x_t = sin((1 - t) a) / sin(a) x_0 + sin(t a) / sin(a) x_1,   a the angle between the ends.

    Points are unit vectors, u is tangent to the sphere and of constant length a. Opposite ends have no shortest path; laws
    with a density do not draw them.

    Raises:
        ValueError: by `at`, an end that is no unit vector, to 0.1 %; where this becomes known under jit only, x_t and u are NaN.

    Reference: Chen and Lipman 2024, arXiv:2302.03660, section 3.2.
    """

    def position(t: Array, start: Array, end: Array, z: Array) -> Array:
        is_unit = _are_units(start, end)
        # The angle by its tangent: arccos has no digits, and no derivative, for ends close to each other.
        away = end - jnp.sum(start * end) * start
        length = jnp.linalg.norm(away)
        # NaN by way of the angle, which the velocity has, too.
        angle = jnp.where(is_unit, jnp.arctan2(length, jnp.sum(start * end)), jnp.nan)
        direction = away / jnp.maximum(length, jnp.finfo(away.dtype).tiny)
        return jnp.cos(t * angle) * start + jnp.sin(t * angle) * direction

    return Path(position)


def _are_units(start: Array, end: Array) -> Array:
    """Whether both ends are unit vectors; refuses known ones that are not."""
    lengths = jnp.stack([jnp.linalg.norm(jnp.ravel(x)) for x in (start, end)])
    found = jnp.all(jnp.abs(lengths - 1) <= 1e-3)
    if is_concrete(found) and not found:
        one, other = (float(x) for x in lengths)
        raise ValueError(
            f"sphere: the ends, of shape {jnp.shape(start)}, have the lengths {one:.4g} and {other:.4g}, and great circles of "
            "the unit sphere join unit vectors. Divide each point by its length, x / jnp.linalg.norm(x, axis=-1, keepdims=True)."
        )
    return found


def torus() -> Path:
    """The path of angles in [-pi, pi) that turns each the shorter way round: x_t = x_0 + t wrap(x_1 - x_0), wrapped.

    Reference: Chen and Lipman 2024, arXiv:2302.03660, section 3.2.
    """
    return Path(lambda t, start, end, z: wrapped(start + t * wrapped(end - start)))


def wrapped(angle: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Angles in [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi
