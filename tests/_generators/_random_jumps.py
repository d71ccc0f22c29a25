"""Random compositions of continuous and jumping functions of one real number, for which it is known whether they jump.

A continuous program is a chain of continuous pieces, some of which cancel nearly equal numbers. A jumping one has one jumping
piece in such a chain: its jump, at 0, is laid where the numbers that reach it are most common, and what follows it is kept
only if the values on both sides stay apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from lapilli import ppl
from lapilli.ppl.checks import ProgramSearch, suspects_of

OFFSETS = jnp.array([0.3, -0.4, 0.1])
DRAWS = np.random.default_rng(0).normal(0.3, 1.0, 400)

_NOISE = 0.37  # a draw that stays: a key of the program's own is refused


def _solve(x):
    matrix = jnp.array([[2.0, 0.5], [0.5, 1.0]]) + jnp.array([[1.0, 0.0], [0.0, 0.0]]) * x**2
    return jnp.linalg.solve(matrix, jnp.array([1.0, 2.0]))[1] * x


def _cholesky(x):
    low = jnp.linalg.cholesky(jnp.array([[2.0, 0.3], [0.3, 1.0]]) * (1 + x**2))
    return low[1, 0] + x


def _spline(x):
    i = jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), x)
    at, slope = jnp.array([0.0, 0.0, 1.0, 3.0])[i], jnp.array([0.5, 1.0, 2.0, 0.3])[i]
    return at + slope * (x - jnp.array([-1.0, -1.0, 0.0, 1.0])[i])


def _scan(x):
    steps = jnp.array([0.2, 0.5], x.dtype)
    return lax.scan(lambda c, d: (jnp.tanh(c) + d * x, None), x, steps)[0]


def _conditional(x):
    return lax.cond(x > 0, lambda: x**2, lambda: -x)


def _loop(x):
    return lax.fori_loop(0, 3, lambda _, y: 0.5 * (y + (1 + x**2) / y), 1.0) + x


# On the whole line, with bounded slopes where |x| < 10.
CONTINUOUS = {
    "affine": lambda x: 1.3 * x - 0.2,
    "square": lambda x: 0.3 * x**2 + x,
    "abs": lambda x: jnp.abs(x - 0.1),
    "relu": lambda x: jax.nn.relu(x) - 0.1 * x,
    "leaky by where": lambda x: jnp.where(x > 0, x, 0.2 * x),
    "elu": jax.nn.elu,
    "softplus": lambda x: jax.nn.softplus(x) + 0.1 * x,
    "gelu": lambda x: jax.nn.gelu(x) + x,
    "tanh": lambda x: 2 * jnp.tanh(x),
    "sigmoid": lambda x: 3 * jax.nn.sigmoid(x),
    "sin": lambda x: jnp.sin(x) + 0.5 * x,
    "arctan": lambda x: 2 * jnp.arctan(x),
    "arcsinh": jnp.arcsinh,
    "clip": lambda x: jnp.clip(x, -1.5, 1.5) + 0.1 * x,
    "huber": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5) + 0.2 * x,
    "cube root": lambda x: jnp.cbrt(1 + x**2) + x,
    "log1p of a square": lambda x: jnp.log1p(x**2) + 0.3 * x,
    "ratio": lambda x: x / (1 + jnp.abs(x)),
    "root": lambda x: jnp.sqrt(1 + x**2) + 0.5 * x,
    "angle in the right half plane": lambda x: 2 * jnp.arctan2(x, 1 + x**2),
    "logsumexp": lambda x: jax.nn.logsumexp(jnp.stack([x, -0.5 * x, 0.2])),
    "softmax": lambda x: jax.nn.softmax(x * OFFSETS)[0] + x,
    "maximum": lambda x: jnp.maximum(x, 0.3 * x - 0.1),
    "largest": lambda x: (x * OFFSETS).max(),
    "sorted": lambda x: jnp.sort(x + OFFSETS * x**2) @ OFFSETS,
    "median": lambda x: jnp.median(jnp.stack([x, 0.2, -x])) + 0.1 * x,
    "by argsort": lambda x: (v := x * OFFSETS)[jnp.argsort(v)] @ jnp.arange(3.0),
    "at argmax": lambda x: (v := x * OFFSETS)[jnp.argmax(v)],
    "top": lambda x: lax.top_k(x * OFFSETS, 2)[0].sum(),
    "running": lambda x: jnp.cumsum(x * OFFSETS)[1] + lax.cummax(x * OFFSETS)[2],
    "interpolation": lambda x: jnp.interp(x, jnp.array([-2.0, 0.0, 1.0, 3.0]), jnp.array([0.0, 1.0, 0.5, 2.0])) + 0.1 * x,
    "spline": _spline,
    "triangle wave": lambda x: jnp.abs(x - jnp.round(x)) + 0.3 * x,
    "sign times value": lambda x: jnp.sign(x) * x + 0.2 * x,
    "guarded logarithm": lambda x: jnp.where(x > 0, jnp.log1p(jnp.where(x > 0, x, 1.0)), 0.0) + 0.1 * x,
    "condition": _conditional,
    "scan": _scan,
    "loop": _loop,
    "solve": _solve,
    "determinant": lambda x: jnp.linalg.det(jnp.array([[1.0, x], [0.3 * x, 1 + x**2]])) * 0.2 + x,
    "cholesky": _cholesky,
    "eigenvalue": lambda x: jnp.linalg.eigvalsh(jnp.array([[1.0, 0.3], [0.3, -1.0]]) * x)[1] + 0.2 * x,
    "matrix exponential": lambda x: jax.scipy.linalg.expm(jnp.array([[0.0, 1.0], [-1.0, 0.0]]) * jnp.tanh(x))[0, 1],
    "convolution": lambda x: jnp.convolve(x * OFFSETS, OFFSETS)[2] + x,
    "fourier": lambda x: jnp.abs(jnp.fft.rfft(x * OFFSETS)[1]) + x,
    "normal": lambda x: dist.Normal(x, 1.0).log_prob(0.3) * 0.3 + x,
    "bernoulli": lambda x: dist.Bernoulli(logits=x).log_prob(1.0) + 0.1 * x,
    "gamma": lambda x: dist.Gamma(jax.nn.softplus(x) + 0.1, 1.0).log_prob(0.7) * 0.3 + x,
    "student": lambda x: dist.StudentT(3.0, x, 1.0).log_prob(0.2) + 0.3 * x,
    "mixture": lambda x: dist.MixtureSameFamily(
        dist.Categorical(logits=OFFSETS), dist.Normal(x * OFFSETS, 1.0)
    ).log_prob(0.3) + x,
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x) + x),
    "vmap": lambda x: jax.vmap(lambda o: jax.nn.relu(x - o))(OFFSETS).sum() + 0.1 * x,
}  # fmt: skip


def _bins(x):
    """The bin of a spline in which x lies, its edges a running sum of shares, and the place of x in it."""
    shares = jax.nn.softmax(OFFSETS * 3)
    edges = jnp.concatenate([jnp.zeros(1), jnp.cumsum(shares)]) * 8 - 4
    i = jnp.clip(jnp.searchsorted(edges, x) - 1, 0, 2)
    heights = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jax.nn.softmax(-OFFSETS))])
    place = (x - edges[i]) / (edges[i + 1] - edges[i])
    return 3 * (heights[i] + (heights[i + 1] - heights[i]) * place) + 0.1 * x


def _sigmoid_between(x):
    steps = jax.nn.sigmoid(jnp.array([-1.0, 0.0, 2.0]) - x)
    return steps[1:] - steps[:-1]


# Continuous, with few digits or none where numbers cancel or underflow.
CANCELLING = {
    "logit of a share": lambda x: (p := jax.nn.sigmoid(6 * x), 0.1 * (jnp.log(p) - jnp.log1p(-p)))[1],
    "logit by 1 - p": lambda x: (p := jax.nn.sigmoid(6 * x), 0.1 * jnp.log(p / (1 - p)))[1],
    "logit of a quantile": lambda x: (p := jax.scipy.special.ndtr(2 * x), 0.1 * (jnp.log(p) - jnp.log1p(-p)))[1],
    "share between cut points": lambda x: 0.2 * jnp.log(_sigmoid_between(4 * x)[0]) + x,
    "ordered outcome": lambda x: 0.2 * dist.OrderedLogistic(4 * x, jnp.array([-1.0, 0.5])).log_prob(1) + x,
    "share between quantiles": lambda x: 0.1 * jnp.log(jax.scipy.special.ndtr(2 * x + 0.5) - jax.scipy.special.ndtr(2 * x)) + x,
    "difference of logarithms": lambda x: jnp.log(jnp.log(x**2 + 1.001) - jnp.log(x**2 + 1)) * 0.2 + x,
    "difference of powers": lambda x: jnp.log(jnp.exp(3 * x) - jnp.exp(3 * x - 1e-6)) * 0.2,
    "log1mexp": lambda x: jnp.log(1 - jnp.exp(-jnp.exp(4 * x))) * 0.1 + x,
    "log1mexp of log1p": lambda x: jnp.log1p(-jnp.exp(-jax.nn.softplus(8 * x))) * 0.1 + x,
    "inverse of softplus": lambda x: jnp.log(jnp.expm1(jax.nn.softplus(8 * x))) * 0.1 + x,
    "inverse of softplus by exp": lambda x: jnp.log(jnp.exp(jax.nn.softplus(6 * x)) - 1) * 0.1 + x,
    "inverse of tanh": lambda x: jnp.arctanh(jnp.tanh(4 * x)) * 0.1 + x,
    "slope of tanh": lambda x: jnp.log(1 - jnp.tanh(4 * x) ** 2) * 0.1 + x,
    "inverse of erf": lambda x: jax.scipy.special.erfinv(jax.scipy.special.erf(1.5 * x)) * 0.3 + x,
    "root of a square": lambda x: jnp.sqrt((x - 0.3) ** 2) + 0.2 * x,
    "root at 0": lambda x: jnp.sqrt(jax.nn.relu(x)) + 0.2 * x,
    "root of a difference": lambda x: jnp.sqrt((x + 1) ** 2 - 4 * x) + 0.3 * x,
    "distance of neighbours": lambda x: jnp.log(jnp.abs((x + 1e5) - 1e5) + 1e-3) * 0.3 + x,
    "one less a cosine": lambda x: (1 - jnp.cos(x)) / x**2 + x,
    "quotient of differences": lambda x: (jnp.exp(x) - 1) / x + x,
    "variance by squares": lambda x: (v := 1e3 + x * OFFSETS, jnp.log((v**2).mean() - v.mean() ** 2 + 1e-6) * 0.2 + x)[1],
    "step of a running sum": lambda x: jnp.log(jnp.diff(jnp.cumsum(jnp.exp(jnp.stack([9 + x, x, -3 * x])))))[1] * 0.1 + x,
    "rest of a stick": lambda x: jnp.log(1 - jnp.cumsum(jax.nn.softmax(jnp.stack([6 * x, 0.0, -1.0])))[1]) * 0.1 + x,
    "underflow": lambda x: jnp.log(jnp.maximum(jnp.exp(-jnp.exp(3 * x)), 1e-300)) * 0.01 + x,
    "product of densities": lambda x: jnp.log(jnp.maximum(jnp.prod(jnp.exp(-((9 * x + OFFSETS) ** 2))), 1e-290)) * 0.01 + x,
    "clipped logarithm": lambda x: jnp.log(jnp.maximum(jax.nn.sigmoid(8 * x + 1) - jax.nn.sigmoid(8 * x), 1e-18)) * 0.1 + x,
    "bins": _bins,
    "beta near its ends": lambda x: dist.Beta(0.7, 0.6).log_prob(jax.nn.sigmoid(6 * x)) * 0.1 + x,
    "transformed uniform": lambda x: jax.scipy.special.ndtri(jax.nn.sigmoid(5 * x)) * 0.3 + x,
}  # fmt: skip


def _bits(x):
    return (
        lax.bitcast_convert_type(x, jnp.int64 if x.dtype == jnp.float64 else jnp.int32) < 0
    ) * 1.0


def _root(x):
    gate = jnp.where(x > 0, 1.0, 0.0)
    return lax.custom_root(lambda y: y - gate, 0.0, lambda f, y: y - f(y), lambda g, y: y / g(1.0))


def _linear_solve(x):
    return lax.custom_linear_solve(
        lambda y: jnp.where(x > 0, 1.0, 2.0) * y, jnp.ones(1), lambda mv, b: b / mv(jnp.ones(1)), symmetric=True
    )[0]  # fmt: skip


@jax.custom_jvp
def _straight_through(x):
    return jnp.where(x > 0, 1.0, 0.0)


_straight_through.defjvp(lambda p, t: (_straight_through(p[0]), t[0]))


# Jump at 0.
JUMPING = {
    "step": lambda x: jnp.where(x > 0, 1.0, 0.0),
    "two functions": lambda x: jnp.where(x > 0, x, x + 1.0),
    "indicator": lambda x: (x > 0) * (1.0 + x),
    "floor": lambda x: jnp.floor(x / 5),
    "ceil": lambda x: jnp.ceil(x / 5),
    "round": lambda x: jnp.round(x / 5 + 0.5),
    "sign": jnp.sign,
    "remainder": lambda x: jnp.mod(x, 5.0) / 5,
    "cast": lambda x: (x / 5 + 3).astype(jnp.int32) * 1.0,
    "argmax": lambda x: OFFSETS[jnp.argmax(jnp.stack([x, -x]))],
    "argsort": lambda x: jnp.argsort(jnp.stack([x, -x]))[0] * 1.0,
    "payload of a sort": lambda x: lax.sort_key_val(jnp.stack([x, -x]), OFFSETS[:2])[1][0],
    "top index": lambda x: lax.top_k(jnp.stack([x, -x]), 1)[1][0] * 1.0,
    "search": lambda x: jnp.searchsorted(jnp.array([-50.0, 0.0, 50.0]), x) * 1.0,
    "histogram": lambda x: jnp.histogram(x, jnp.array([-100.0, 0.0, 100.0]))[0][0] * 1.0,
    "one-hot": lambda x: jax.nn.one_hot((x > 0).astype(int), 2)[0],
    "condition": lambda x: lax.cond(x > 0, lambda: 1.0, lambda: -1.0),
    "switch": lambda x: lax.switch((x > 0).astype(int), [lambda: 0.5, lambda: 2.0]),
    "while": lambda x: lax.while_loop(lambda c: (c[0] < 1) & (c[1] > 0), lambda c: (c[0] + 1, c[1]), (0.0, x))[0],
    "scan": lambda x: lax.scan(lambda c, _: (c + jnp.where(x > 0, 1.0, 0.0), None), 0.0, None, 2)[0],
    "angle": lambda x: jnp.arctan2(x, -1.0),
    "complex angle": lambda x: jnp.angle(-1.0 + 1j * x),
    "complex logarithm": lambda x: jnp.imag(jnp.log(-1.0 + 1j * x)),
    "complex root": lambda x: jnp.imag(jnp.sqrt(-1.0 + 1j * x)),
    "ratio": lambda x: jnp.abs(x) / x,
    "inverse, squashed": lambda x: jnp.tanh(1 / x),
    "inverse, in a sigmoid": lambda x: jax.nn.sigmoid(1 / x),
    "inverse, its angle": lambda x: jnp.arctan(1 / x),
    "tangent, its angle": lambda x: jnp.arctan(jnp.tan(x / 5 + jnp.pi / 2)),
    "0 ** 0": lambda x: jnp.power(0.0, jax.nn.relu(x)),
    "exp(-inf)": lambda x: jnp.exp(jnp.where(x > 0, 0.0, -jnp.inf)),
    "1 / inf": lambda x: 1 / jnp.where(x > 0, 1.0, jnp.inf),
    "masked softmax": lambda x: jax.nn.softmax(jnp.stack([0.0, jnp.where(x > 0, 0.0, -jnp.inf)]))[1],
    "masked logsumexp": lambda x: jax.nn.logsumexp(jnp.stack([0.0, jnp.where(x > 0, 1.0, -jnp.inf)])),
    "minimum with inf": lambda x: jnp.minimum(jnp.where(x > 0, jnp.inf, 0.0), 3.0),
    "is finite": lambda x: jnp.where(jnp.isfinite(jnp.log(x)), 1.0, 0.0),
    "is nan": lambda x: jnp.where(jnp.isnan(jnp.sqrt(x)), 1.0, 0.0),
    "nan to number": lambda x: jnp.nan_to_num(jnp.where(x > 0, 1.0, jnp.nan)),
    "mean without nan": lambda x: jnp.nanmean(jnp.stack([jnp.where(x > 0, 2.0, jnp.nan), 0.0])),
    "density of a half line": lambda x: jnp.exp(dist.HalfNormal(1.0).log_prob(x)),
    "eigenvector": lambda x: jnp.linalg.eigh(jnp.array([[1.0, 0.0], [0.0, -1.0]]) * x)[1][0, 0] ** 2,
    "sign of a determinant": lambda x: jnp.linalg.slogdet(jnp.array([[1.0, 0.0], [0.0, 1.0]]) * jnp.stack([x, 1.0]))[0],
    "sign of a root": lambda x: jnp.sqrt(x**2) / x,
    "copied sign": lambda x: jnp.copysign(1.0, x),
    "bits": _bits,
    "pivots": lambda x: jax.scipy.linalg.lu(jnp.array([[1.0, 1.0], [1.0, 0.0]]) + x * jnp.eye(2)[:1].T @ jnp.eye(2)[:1])[0][0, 0],
    "custom root": _root,
    "custom linear solve": _linear_solve,
    "straight through": _straight_through,
    "fixed noise": lambda x: (_NOISE < jax.nn.sigmoid(x + 0.0)) * 1.0 + jnp.sign(x),
    "reduction": lambda x: lax.reduce(jnp.stack([x, 0.5]), 0.0, lambda a, b: jnp.where(a > 0, a + 1, b), (0,)),
}  # fmt: skip


PIECES = CONTINUOUS | CANCELLING


class Composition:
    """f(z) and what is known of it: `name`; with `cancels`, one of the continuous pieces is of `CANCELLING`."""

    def __init__(self, rng: np.random.Generator, jumps: bool, cancels: bool = False) -> None:
        self.cancels = cancels
        while True:
            self._draw(rng, jumps)
            if self._is_clear(jumps):
                return

    def _draw(self, rng: np.random.Generator, jumps: bool) -> None:
        chain = lambda n: [str(k) for k in rng.choice(sorted(CONTINUOUS), n)]
        self.inner, self.outer = chain(rng.integers(0, 3)), chain(rng.integers(0, 3))
        if self.cancels:
            where = self.inner if rng.integers(2) else self.outer
            where.insert(rng.integers(len(where) + 1), str(rng.choice(sorted(CANCELLING))))
        self.piece = str(rng.choice(sorted(JUMPING))) if jumps else ""
        self.shift = 0.0
        if jumps:
            with jax.enable_x64(True):
                reached = np.asarray(jax.vmap(self.before)(jnp.asarray(DRAWS)))
            self.low, self.shift, self.high = (
                float(q) for q in np.quantile(reached, [0.2, 0.5, 0.8])
            )

    def before(self, x):
        for name in self.inner:
            x = PIECES[name](x)
        return x

    def after(self, x):
        for name in self.outer:
            x = PIECES[name](x)
        return x

    def __call__(self, x):
        x = self.before(x)
        if self.piece:
            x = JUMPING[self.piece](x - self.shift)
        return self.after(x)

    def _is_clear(self, jumps: bool) -> bool:
        """Whether the jump is crossed by many draws and is large."""
        if not jumps:
            return True
        if self.high - self.low < 0.2 or abs(self.high) + abs(self.low) > 20:
            return False
        with jax.enable_x64(True):
            sides = [float(self.after(JUMPING[self.piece](jnp.asarray(s)))) for s in (-1e-7, 1e-7)]
        return bool(np.isfinite(sides).all()) and abs(sides[1] - sides[0]) > 0.01

    @property
    def name(self) -> str:
        return " > ".join([*self.inner, *([f"[{self.piece}]"] if self.piece else []), *self.outer])


def jumps_found(compositions: list[Composition]) -> list[bool]:
    """Which of the compositions, each of a site of its own in one expectation, the search finds to jump."""

    def cost(m):
        draws = (ppl.sample(f"z{i}", dist.Normal(m, 1.0)) for i in range(len(compositions)))
        return sum(f(z) for f, z in zip(compositions, draws, strict=True))

    at = jnp.float32(0.3)
    expectation = ppl.expectation(cost, check_jumps=False)
    program = expectation.ready(at)
    found = {}
    if suspects := suspects_of(program):
        search = ProgramSearch(
            program.sites, suspects, lambda: expectation.programs.copy(at, (), {})
        )
        found = search([at], [])
    return [i in found and found[i].here > 0 for i in range(len(compositions))]
