"""All paths, of real numbers, of points on manifolds and of tokens, pass the same tests, on the nodes of a quadrature.

Exact end marginals; d/dt E f(x_t) is the mean of the exact field's generator at f, for f linear and quadratic (for tokens the
Kolmogorov forward equation of all 2^6 states); and the loss at the exact field is E Var(u | x_t).
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from lapilli.models import diffusion, paths
from lapilli.models.paths._chord import Separation
from lapilli.models.paths._tokens import TokenPath

TIMES = 0.2, 0.85


@dataclasses.dataclass(frozen=True)
class Member:
    """A path, nodes and weights (x_0, x_1, z, w) of its ends at t, its exact field, and what functions of a point are of."""

    path: paths.Path
    nodes: Callable
    velocity: Callable
    coordinates: Callable = lambda x: x
    rtol: float = 1e-7


def product(*parts):
    """Nodes of independent variables, each (values [n], weights [n])."""
    grids = np.meshgrid(*[np.arange(len(w)) for _, w in parts], indexing="ij")
    values = [np.asarray(x)[g.ravel()] for (x, _), g in zip(parts, grids, strict=True)]
    weights = np.prod([w[g.ravel()] for (_, w), g in zip(parts, grids, strict=True)], 0)
    return values, weights


def normal(num):
    x, w = np.polynomial.hermite_e.hermegauss(num)
    return x[:, None], w / w.sum()


def mixture(law, num):
    """Of a `Mixture` in one dimension."""
    x, w = normal(num)
    means = np.ravel(law.means)
    places = (means[:, None] + np.sqrt(law.variance) * x[:, 0]).ravel()[:, None]
    return places, np.tile(w, len(means)) / len(means)


ENDS = paths.Mixture([[-1.0], [0.8]], 0.5**2), paths.Mixture([[-0.6], [1.5]], 0.7**2)
POINTS = paths.Mixture([[-0.6], [1.5]], 0.0)  # where the path has a point of t = 0 that noise fills


def interpolant(path, num=40, num_z=40):
    parts = [mixture(law, num) for law in ENDS]
    if path.has_noise:
        (x0, x1, z), w = product(*parts, normal(num_z))
    else:
        (x0, x1), w = product(*parts)
        z = np.zeros_like(x0)
    return Member(path, lambda t: (x0, x1, z, w), paths.mixture_field(path, *ENDS).velocity)


def normal_noise(noising):
    """Of a diffusion model: noise is standard normal."""
    path, start = paths.of_noising(noising), paths.Mixture([[0.0]], 1.0)
    (x0, x1), w = product(mixture(start, 50), mixture(ENDS[1], 50))
    field = paths.mixture_field(path, start, ENDS[1])
    return Member(path, lambda t: (x0, x1, 0 * x0, w), field.velocity)


def student(noising, num_extra=7):
    """Of a Poisson flow to two points: E[x_1 | x_t] by Bayes' formula from the densities of the noise."""
    path, noise = paths.of_noising(noising), diffusion.PoissonNoise((1,), num_extra)
    s = np.linspace(-9, 9, 1201)  # x = sinh(s): the trapezoidal rule converges fast
    x0 = np.sinh(s)[:, None]
    w0 = np.exp(np.asarray(noise.log_prob(x0), float)) * np.cosh(s)
    points = np.asarray(POINTS.means, float)
    (x0, x1), w = product((x0, w0 / w0.sum()), (points, np.array([0.5, 0.5])))

    def velocity(t, x):
        t = jnp.asarray(t, float)
        (a, da), (b, db) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (path.alpha, path.beta))
        ends = jnp.asarray(points)
        share = jax.nn.softmax(jax.vmap(lambda end: noise.log_prob((x - b * end) / a))(ends))
        end = share @ ends
        return da * (x - b * end) / a + db * end

    return Member(path, lambda t: (x0, x1, 0 * x0, w), velocity)


def torus(a=0.8):
    """x_0 uniform, x_1 of density (1 + a cos x) / 2 pi: given x_t = x the turn d has a density like 1 + a cos(x + (1 - t) d)."""
    d, wd = np.polynomial.legendre.leggauss(60)
    turns, angles = np.pi * d, 2 * np.pi * np.arange(64) / 64 - np.pi + 0.01
    (x0, d), w = product((angles[:, None], np.full(64, 1 / 64)), (turns[:, None], wd / 2))
    w = w * (1 + a * np.cos(x0 + d))[:, 0]
    x1 = (x0 + d + np.pi) % (2 * np.pi) - np.pi

    def velocity(t, x):
        s = 1 - t
        top = -a * jnp.sin(x) * 2 * (jnp.sin(jnp.pi * s) / s**2 - jnp.pi * jnp.cos(jnp.pi * s) / s)
        return top / (2 * jnp.pi + a * jnp.cos(x) * 2 * jnp.sin(jnp.pi * s) / s)

    on = lambda x: jnp.concatenate([jnp.cos(x), jnp.sin(x)])
    return Member(paths.torus(), lambda t: (x0, x1, 0 * x0, w), velocity, on)


def sphere():
    """x_0 uniform, x_1 one of two points: at t their polar angles are (1 - t) times what they were."""
    ends, share = np.array([[0.0, 0.0, 1.0], [np.sin(0.4), 0.0, np.cos(0.4)]]), np.array([0.3, 0.7])
    c, wc = np.polynomial.legendre.leggauss(240)
    phi = 2 * np.pi * (np.arange(96) + 0.5) / 96
    (theta, phi), w = product((0.5 * np.pi * (1 + c), wc), (phi, np.full(96, 1 / 96)))
    w = w * np.sin(theta) * np.pi / 4
    local = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1)
    frame = lambda e: np.stack([np.cross(e, [0.0, 1.0, 0.0]), [0.0, 1.0, 0.0], e])
    x0 = np.concatenate([local @ frame(e) for e in ends])
    x1, w = np.repeat(ends, len(w), 0), np.concatenate([s * w for s in share])

    def velocity(t, x):
        cos = jnp.asarray(ends) @ x
        towards = jnp.asarray(ends) - cos[:, None] * x
        sin = jnp.linalg.norm(towards, axis=1)
        angle = jnp.arctan2(sin, cos)  # now; at t = 0 it was angle / (1 - t), of density sin / 2
        weight = jnp.where(angle < (1 - t) * jnp.pi, jnp.sin(angle / (1 - t)) / sin, 0.0) * share
        steps = (angle / (1 - t) / sin)[:, None] * towards
        return weight @ steps / weight.sum()

    return Member(paths.sphere(), lambda t: (x0, x1, 0 * x0, w), velocity, rtol=2e-4)


D, K = 6, 2
ROWS = np.array(list(itertools.product(range(K), repeat=D)))


def of_rows(kind, coupling):
    """A table of 2^6 rows; `coupling` is p(x_0 | x_1), [rows of x_1, rows of x_0], and 2^6 sets of what has passed."""
    shares = np.exp(np.random.default_rng(0).normal(size=len(ROWS)))
    shares /= shares.sum()
    starts = np.full((1, D), -1) if kind == "masked" else ROWS
    joint = (shares[:, None] * coupling).ravel()
    end, begin = (
        g.ravel() for g in np.meshgrid(np.arange(len(ROWS)), np.arange(len(starts)), indexing="ij")
    )
    (pair, passed), _ = product((np.arange(len(joint)), joint), (ROWS, np.ones(len(ROWS))))
    x0, x1 = starts[begin[pair]], ROWS[end[pair]]

    def nodes(t):
        z = np.where(passed > 0, float(ndtri(t)) - 1, float(ndtri(t)) + 1)
        return x0, x1, z, joint[pair] * (t**passed * (1 - t) ** (1 - passed)).prod(1)

    path = paths.tokens(K, kind)

    def velocity(t, x):
        """p(x_1 | x_t) by Bayes' formula over all pairs of ends."""
        now = t * (x == ROWS[end]) + (1 - t) * (x == starts[begin])
        weight = jnp.asarray(joint) * now.prod(1)
        probs = jnp.tensordot(weight, jax.nn.one_hot(ROWS[end], K), 1) / weight.sum()
        return path.rates(t, x, probs)

    return Member(path, nodes, velocity, rtol=1e-6)


def members():
    angles = np.linspace(0, np.pi / 2, 60)
    mixed = np.exp(np.random.default_rng(1).normal(size=(64, 64)))
    return {
        "linear": lambda: interpolant(paths.linear()),
        "linear, noise": lambda: interpolant(paths.linear(0.8), 24, 24),
        "trigonometric": lambda: interpolant(paths.trigonometric()),
        "trigonometric, noise": lambda: interpolant(paths.trigonometric(0.5), 24, 24),
        "chord": lambda: interpolant(Separation(angles, np.sin(angles)).chord()),
        "VP": lambda: normal_noise(diffusion.VP()),
        "EDM": lambda: normal_noise(diffusion.EDM(sigma_max=3.0)),
        "Student, VP": lambda: student(diffusion.VP()),
        "Student, EDM": lambda: student(diffusion.EDM(sigma_max=3.0)),
        "torus": torus,
        "sphere": sphere,
        "masked tokens": lambda: of_rows("masked", np.ones((64, 1))),
        "uniform tokens": lambda: of_rows("uniform", np.full((64, 64), 1 / 64)),
        "coupled tokens": lambda: of_rows("uniform", mixed / mixed.sum(1, keepdims=True)),
    }


class Told:
    """A member, with its functions compiled once."""

    def __init__(self, member):
        self.member, path = member, member.path
        self.is_of_tokens = isinstance(path, TokenPath)
        self.point = jax.jit(jax.vmap(path.at, (None, 0, 0, 0)))
        self.velocity = jax.jit(jax.vmap(member.velocity, (None, 0)))
        self.of = jax.jit(jax.vmap(self.features))
        self.generated = jax.jit(jax.vmap(self.generator))

    def features(self, x):
        """A point's coordinates and their products."""
        y = self.member.coordinates(x.astype(float))
        return jnp.concatenate([y, jnp.outer(y, y)[jnp.triu_indices(len(y))]])

    def generator(self, x, b):
        """Of a field, at the features: a derivative; for rates, differences."""
        if not self.is_of_tokens:
            return jax.jvp(self.features, (x,), (b,))[1]
        to = jax.vmap(lambda i: jax.vmap(lambda v: self.features(x.at[i].set(v)))(jnp.arange(K)))
        return jnp.tensordot(b, to(jnp.arange(D)) - self.features(x), 2)

    def at(self, t):
        """Nodes' conditional velocities u and the field's b, weights; different points, b and weights there."""
        x0, x1, z, w = (jnp.asarray(v) for v in self.member.nodes(t))
        x, u = map(np.asarray, self.point(t, x0, x1, z))
        w = np.asarray(w)
        if not self.is_of_tokens:
            b = np.asarray(self.velocity(t, x))
            return (u, b, w), (x, b, w)
        _, first, index = np.unique(
            (x + 1) @ 3 ** np.arange(D), return_index=True, return_inverse=True
        )
        b = np.asarray(self.velocity(t, x[first]))
        return (u, b[index], w), (x[first], b, np.bincount(index, w))

    def mean(self, t):
        """E f(x_t) of the features."""
        x, _, w = self.at(t)[1]
        return w @ np.asarray(self.of(x))


SLOW = "linear", "trigonometric", "Student, VP", "uniform tokens"  # others are like them
PARAMS = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in members()]


@pytest.fixture(params=PARAMS, scope="module")
def told(request):
    with jax.enable_x64(True):
        yield Told(members()[request.param]())


def test_ends_have_their_laws(told):
    """Each node is at its ends at t = 0 and 1, whatever the noise, up to what a diffusion leaves of the data and of its own."""
    path, (x0, x1, z, _) = told.member.path, told.member.nodes(0.5)
    z = np.random.default_rng(0).normal(size=np.shape(z))
    reached = lambda t: jax.vmap(path.position, (None, 0, 0, 0))(
        t, *(jnp.asarray(v) for v in (x0, x1, z))
    )
    a, b = 1.0, 0.0
    if isinstance(path, paths.Interpolant):
        a, b = (f(jnp.zeros(())) for f in (path.alpha, path.beta))
    np.testing.assert_allclose(reached(0.0), a * x0 + b * x1, atol=1e-9)
    np.testing.assert_allclose(reached(1.0), x1, atol=2e-3 * np.abs(x0).max() if b else 1e-9)


def test_the_field_carries_the_laws(told):
    rtol = 10 * told.member.rtol
    for t in TIMES:
        x, b, w = told.at(t)[1]
        got = w @ np.asarray(told.generated(x, b))
        near, far = (told.mean(t + h) - told.mean(t - h) for h in (1e-4, 2e-4))
        want = (8 * near - far) / 1.2e-3
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def test_the_loss_at_the_field_is_the_variance_that_is_left(told):
    """E |u - b|^2 = E |u|^2 - E |b|^2, as it is for b = E[u | x_t]; another field has more."""
    for t in TIMES:
        u, b, w = told.at(t)[0]
        square = lambda v, w=w: w @ (v.reshape(len(v), -1) ** 2).sum(1)
        left = square(u) - square(b)
        assert left > 1e-3 * square(u)
        np.testing.assert_allclose(square(u - b), left, rtol=10 * told.member.rtol)
        assert square(u - 1.1 * b) > left * (1 + 1e-4)
