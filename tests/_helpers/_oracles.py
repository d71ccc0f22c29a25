"""Exact expectations, gradients and estimator moments of tiny programs, independent of the engine.

`from _oracles import ...`. Three tools, in order of preference (conventions, section 6):

- `exact(fn, params, spec)`: value and gradient of E[fn(params, noise)] by summing over all assignments of the
  discrete sites and over Gauss-Hermite nodes of the Normal ones, in float64. The program runs under a NumPyro
  handler of its own: `ppl.scan` and `ppl.particles` become Python loops, `ppl.cond` runs both branches
  and selects, `ppl.draw` and `ppl.score` only add log-densities up. No code of the engine runs.
- `moments(expectation, params, spec)`: exact mean and variance of the engine's estimate, without random numbers: the
  draws of the sites are data (`bernoulli`, `categorical`, `normal` below take them from `noise`), so that the
  estimate can be averaged over every outcome of the noise. The discrete draws are inverse-CDF
  draws; their uniforms run through the cells between all values that the site's CDF takes, hence the sums are
  exact also where enumeration lanes share a draw.
- `estimates(expectation, params, key, n)`: n independent estimates with the samplers' own noise, for z scores.

Conventions of the programs: `fn(params, noise)`; a site has the name of its entry in `noise`; sites in `ppl.scan`
take theirs from the scanned `xs` (`steps(noise, ...)`); `noise=None` means the real samplers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.special
from numpyro.primitives import Messenger

from _stats import assert_unbiased
from lapilli import ppl

# Sites whose draws are data.


@dataclasses.dataclass(frozen=True)
class Site:
    """Noise of one site: shape of all its elements, number of discrete values (0: continuous), quadrature of one element."""

    shape: tuple[int, ...]
    num_values: int
    rule: tuple[np.ndarray, np.ndarray]

    @property
    def size(self):
        return math.prod(self.shape)


def bits(*shape):
    """A Bernoulli site."""
    return digits(2, *shape)


def digits(num_values, *shape):
    """A Categorical site."""
    return Site(shape, num_values, (np.arange(num_values), np.ones(num_values)))


def nodes(num_nodes, *shape):
    """A Normal site: Gauss-Hermite, exact for polynomials of degree 2 num_nodes - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    return Site(shape, 0, (x, w / w.sum()))


def gamma_nodes(concentration, num_nodes, *shape):
    """A Gamma site of constant concentration: Gauss-Laguerre, exact for polynomials of degree 2 num_nodes - 1."""
    x, w = scipy.special.roots_genlaguerre(num_nodes, concentration - 1)
    return Site(shape, 0, (x, w / w.sum()))


class _Run(SimpleNamespace):
    """Where the reference stands: mode of the draws, lane, path of regions, masks of open branches."""


_RUN = _Run(mode="uniform", lane=None, path=(), active=())


class _Bernoulli(dist.BernoulliProbs):
    pytree_data_fields = ("noise",)

    def __init__(self, probs, noise):
        self.noise = noise
        super().__init__(jnp.broadcast_to(probs, jnp.shape(noise)))

    def sample(self, key, sample_shape=()):
        assert sample_shape == (), "a preset site must have its full shape"
        if _RUN.mode == "value":
            return self.noise.astype(int)
        return (self.noise > 1 - self.probs).astype(int)

    def cdf_table(self):
        return (1 - self.probs)[..., None]


class _Categorical(dist.CategoricalLogits):
    pytree_data_fields = ("noise",)

    def __init__(self, logits, noise):
        self.noise = noise
        super().__init__(jnp.broadcast_to(logits, jnp.shape(noise) + jnp.shape(logits)[-1:]))

    def sample(self, key, sample_shape=()):
        assert sample_shape == (), "a preset site must have its full shape"
        if _RUN.mode == "value":
            return self.noise.astype(int)
        return (self.noise[..., None] > self.cdf_table()).sum(-1)

    def cdf_table(self):
        return jnp.cumsum(jax.nn.softmax(self.logits, -1), -1)[..., :-1]


class _Normal(dist.Normal):
    pytree_data_fields = ("noise",)

    def __init__(self, loc, scale, noise):
        self.noise = noise
        shape = jnp.shape(noise)
        super().__init__(jnp.broadcast_to(loc, shape), jnp.broadcast_to(scale, shape))

    def sample(self, key, sample_shape=()):
        assert sample_shape == (), "a preset site must have its full shape"
        return self.loc + self.scale * self.noise


class _Gamma(dist.Gamma):
    """For the reference only: JAX's gamma sampler has no noise that could be preset."""

    pytree_data_fields = ("noise",)

    def __init__(self, concentration, rate, noise):
        self.noise = noise
        shape = jnp.shape(noise)
        super().__init__(jnp.broadcast_to(concentration, shape), jnp.broadcast_to(rate, shape))

    def sample(self, key, sample_shape=()):
        assert _RUN.mode == "value" and sample_shape == ()
        return self.noise / self.rate


# The engine knows distributions by the names of their classes.
_Bernoulli.__name__ = "BernoulliProbs"
_Categorical.__name__ = "CategoricalLogits"
_Normal.__name__ = "Normal"


def bernoulli(probs, noise=None):
    return dist.BernoulliProbs(probs) if noise is None else _Bernoulli(probs, noise)


def categorical(logits, noise=None):
    return dist.CategoricalLogits(logits) if noise is None else _Categorical(logits, noise)


def normal(loc, scale, noise=None):
    return dist.Normal(loc, scale) if noise is None else _Normal(loc, scale, noise)


def gamma(concentration, rate, noise=None):
    return dist.Gamma(concentration, rate) if noise is None else _Gamma(concentration, rate, noise)


def of(noise, name):
    """The noise of a site (of its lane, inside `ppl.particles`), or None for the real sampler."""
    if noise is None:
        return None
    return noise[name] if _RUN.lane is None else noise[name][_RUN.lane]


def steps(noise, *names):
    """The `xs` of a scan: the noise of the sites in its step, leading axis time; None for the real samplers."""
    return None if noise is None else {name: of(noise, name) for name in names}


# The reference: NumPyro's plates and masks, Python loops for the regions.


class _Reference(Messenger):
    """Draw every latent site from its noise; add up the log-probabilities of the discrete draws."""

    def __init__(self):
        super().__init__()
        self.log_weight = 0.0
        self.cdfs = {}

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        msg["value"] = msg["fn"].sample(None)
        base = msg["fn"]
        while isinstance(
            base, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution
        ):
            base = base.base_dist
        if not isinstance(base, _Normal | _Gamma):
            # In a branch that is not taken all values stand for one and the same outcome.
            log_prob = base.log_prob(msg["value"])
            idle = -math.log(base.enumerate_support(expand=False).shape[0]) * log_prob.size
            self.log_weight = self.log_weight + _if_active(jnp.sum(log_prob), idle)
            self.cdfs.setdefault(msg["name"], []).append(base.cdf_table())


def _if_active(x, otherwise=0.0):
    for active in _RUN.active:
        x = jnp.where(active, x, otherwise)
    return x


class _Adder(Messenger):
    """The trace of a program: values by (path, name), log-probs scaled and masked."""

    def __init__(self, values=None):
        super().__init__()
        self.given, self.values, self.by_address, self.dims = values, {}, {}, {}

    def process_message(self, msg):
        if self.given is not None and msg["type"] == "sample" and not msg["is_observed"]:
            address = (_RUN.path, msg["name"])
            if address in self.given:
                msg["value"] = self.given[address]
            else:
                assert msg["infer"].get("imputed"), f"the guide misses {address}"

    def postprocess_message(self, msg):
        if msg["type"] != "sample":
            return
        address = (_RUN.path, msg["name"])
        log_prob = msg["fn"].log_prob(msg["value"])
        log_prob = log_prob if msg["scale"] is None else msg["scale"] * log_prob
        if self.given is not None and not msg["is_observed"] and address not in self.given:
            log_prob = jnp.zeros_like(log_prob)  # imputed: drawn from its prior, so that it cancels
        dims = [None] * jnp.ndim(log_prob)
        for frame in msg["cond_indep_stack"]:
            dims[frame.dim] = frame.name
        self.by_address[address] = _if_active(log_prob)
        self.dims[address] = tuple(dims)
        if not msg["is_observed"]:
            self.values[address] = msg["value"]

    @property
    def log_density(self):
        return sum((jnp.sum(x) for x in self.by_address.values()), jnp.zeros(()))

    @property
    def choices(self):
        return _stacked(self.values)

    @property
    def log_probs(self):
        return _stacked(self.by_address)


def _stacked(by_address):
    """Arrays by name, stacked along scans."""
    by_name = {}
    for (_, name), value in by_address.items():
        by_name.setdefault(name, []).append(value)
    return {k: v[0] if len(v) == 1 else jnp.stack(v) for k, v in by_name.items()}


def _draw(program, *args):
    adder = _Adder()
    with adder:
        adder.retval = program(*args)
    return adder


def _score(program, trace, *args):
    adder = _Adder(trace.values)
    with adder:
        adder.retval = program(*args)
    return adder


def reference_elbo(model, guide):
    """The ELBO log p - log q, as a function of params and noise."""

    def fn(params, noise):
        q = _draw(guide.bind(params), noise)
        return _score(model.bind(params), q, noise).log_density - q.log_density

    return fn


def reference_iwelbo(model, guide, num_particles, plate=None):
    """The bound log 1/K sum_k w_k, of the whole program or summed over the rows of `plate`."""

    def log_weight(params, noise):
        q = _draw(guide.bind(params), noise)
        p = _score(model.bind(params), q, noise)
        total = 0.0
        for sign, trace in ((1, p), (-1, q)):
            for address, log_prob in trace.by_address.items():
                keep = -1 if plate is None else trace.dims[address].index(plate)
                others = tuple(a for a in range(log_prob.ndim) if plate is None or a != keep)
                total = total + sign * log_prob.sum(others)
        return total

    def fn(params, noise):
        lanes = []
        for k in range(num_particles):
            with _at(path=("lane", k), lane=k):
                lanes.append(log_weight(params, noise))
        return jnp.sum(jax.nn.logsumexp(jnp.stack(lanes), 0) - math.log(num_particles))

    return fn


@contextlib.contextmanager
def _at(**change):
    old = {name: getattr(_RUN, name) for name in change}
    _RUN.__dict__.update(change)
    try:
        yield
    finally:
        _RUN.__dict__.update(old)


def _scan(step, init, xs, length=None):
    length = length if length is not None else jax.tree.leaves(xs)[0].shape[0]
    carry, ys = init, []
    for t in range(length):
        with _at(path=(*_RUN.path, t)):
            carry, y = step(carry, jax.tree.map(lambda x, t=t: x[t], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def _cond(pred, true_fn, false_fn, *operands):
    outs = []
    for name, fn, active in (("true", true_fn, pred), ("false", false_fn, jnp.logical_not(pred))):
        with _at(path=(*_RUN.path, name), active=(*_RUN.active, active)):
            outs.append(fn(*operands))
    return jax.tree.map(functools.partial(jnp.where, pred), *outs)


def _particles(size):
    def lanes(fn):
        def run(*args):
            outs = []
            for k in range(size):
                with _at(path=(*_RUN.path, k), lane=k):
                    outs.append(fn(*args))
            return jax.tree.map(lambda *x: jnp.stack(x), *outs)

        return run

    return lanes


@contextlib.contextmanager
def _reference():
    replaced = {
        "scan": _scan,
        "cond": _cond,
        "particles": _particles,
        "draw": _draw,
        "score": _score,
    }
    handler = _Reference()
    with mock.patch.multiple(ppl, **replaced), _at(mode="value"), handler:
        yield handler


def _table(spec, values_of):
    """All combinations of the elements' nodes: (noise arrays with a leading row axis, weights of the rows)."""
    elements = [(name, i) for name, site in spec.items() for i in range(site.size)]
    lists = [values_of(name, i) for name, i in elements]
    sizes = [len(v) for v, _ in lists]
    index = np.indices(sizes).reshape(len(sizes), -1) if sizes else np.zeros((0, 1), int)
    weights = np.ones(index.shape[1])
    columns = {}
    for (name, _), (values, weight), which in zip(elements, lists, index, strict=True):
        columns.setdefault(name, []).append(np.asarray(values, float)[which])
        weights = weights * np.asarray(weight, float)[which]
    rows = {name: np.stack(c, -1).reshape(-1, *spec[name].shape) for name, c in columns.items()}
    return rows, weights


@dataclasses.dataclass
class Exact:
    """An exact expectation: `value`, `grads` (like the parameters) and the CDF values that each site takes."""

    value: float
    grads: object
    cdfs: dict


def exact(fn, params, spec):
    """E[fn(params, noise)] and its gradient, by summing over all outcomes."""
    rows, weights = _table(spec, lambda name, _: spec[name].rule)
    with jax.enable_x64(True):

        def total(params):
            def row(noise):
                with _reference() as handler:
                    cost = fn(params, noise)
                return cost, handler.log_weight, {k: jnp.stack(v) for k, v in handler.cdfs.items()}

            cost, log_weight, cdfs = jax.vmap(row)(jax.tree.map(jnp.asarray, rows))
            probability = jnp.exp(jnp.broadcast_to(log_weight, cost.shape)) * weights
            return jnp.sum(probability * cost), (probability, cdfs)

        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        out = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        (value, (probability, cdfs)), grads = jax.tree.map(np.asarray, out)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-8, err_msg="the reference's own total")
    possible = probability > 0
    cdfs = {
        k: v[possible].reshape(possible.sum(), -1, max(spec[k].num_values - 1, 1))
        for k, v in cdfs.items()
    }
    return Exact(float(value), grads, cdfs)


# The engine's estimates.


@dataclasses.dataclass
class Moments:
    """Exact moments of an estimate over all outcomes of its noise.

    Attributes:
        value: mean of the value.
        grads: mean of the gradient.
        variances: variance of each coordinate of the gradient.
        size: mean absolute gradient, the scale of its rounding error.
    """

    value: float
    grads: object
    variances: object
    size: object


def moments(expectation, params, spec, truth, *, enumerated=(), args=(), state=None):
    """Exact mean and variance of the engine's estimates.

    Args:
        expectation: an Expectation or Objective of `fn(params, noise)` / programs of `noise`.
        params: where.
        spec: noise of the sites.
        truth: what `exact` gave at `params`; it knows the CDF values.
        enumerated: sites under `enum`, whose own draw has no influence.
        args: arguments before the noise.
        state: state of baselines; None for a fresh one.
    """
    rows, weights = _table(spec, _cells(spec, truth, enumerated))

    rows = jax.tree.map(lambda x: jnp.asarray(x, float), rows)
    value, grads = _on_rows(expectation)(params, state, rows, *args)

    def mean(x):
        return np.tensordot(weights, np.asarray(x, float), 1)

    means = jax.tree.map(mean, grads)
    second = jax.tree.map(lambda g: mean(np.square(np.asarray(g, float))), grads)
    variances = jax.tree.map(lambda s, m: s - m**2, second, means)
    return Moments(
        float(mean(value)), means, variances, jax.tree.map(lambda g: mean(np.abs(g)), grads)
    )


def num_outcomes(spec, truth, enumerated=()):
    """Rows that `moments` would evaluate."""
    cells = _cells(spec, truth, enumerated)
    return math.prod(
        len(cells(name, i)[0]) for name, site in spec.items() for i in range(site.size)
    )


def _cells(spec, truth, enumerated):
    """The values that the noise of one element takes, and their probabilities."""

    def cells(name, i):
        site = spec[name]
        if not site.num_values:
            return site.rule
        if name in enumerated:
            return [0.5], [1.0]
        edges = np.unique(np.round(truth.cdfs[name][:, i].ravel(), 9))
        edges = np.unique(np.concatenate([[0.0], edges, [1.0]]).clip(0, 1))
        return (edges[1:] + edges[:-1]) / 2, np.diff(edges)

    return cells


def outcomes(spec, truth, enumerated=()):
    """All outcomes of the noise: (arrays with a leading row axis by site, probabilities of the rows)."""
    rows, weights = _table(spec, _cells(spec, truth, enumerated))
    return jax.tree.map(lambda x: jnp.asarray(x, float), rows), weights


def on_rows(expectation, params, rows, *args, state=None):
    """The engine's estimates (values, grads) on each row of noise; all other random numbers are the same everywhere."""
    return _on_rows(expectation)(params, state, rows, *args)


@functools.lru_cache(maxsize=8)
def _on_rows(expectation):
    def one(params, state, noise, *args):
        return expectation.step(params, state, jax.random.key(0), *args, noise)[:2]

    return jax.jit(
        lambda params, state, rows, *args: jax.vmap(lambda n: one(params, state, n, *args))(rows)
    )


def assert_exact(got, truth, *, rtol=2e-5):
    """The moments' means equal the truth up to float32 rounding of the estimates' own size."""
    np.testing.assert_allclose(got.value, truth.value, rtol=rtol, atol=rtol, err_msg="value")
    size = max(1.0, max(float(np.max(s)) for s in jax.tree.leaves(got.size)))
    leaves = jax.tree_util.tree_leaves_with_path(truth.grads)
    for (path, want), have in zip(leaves, jax.tree.leaves(got.grads), strict=True):
        np.testing.assert_allclose(
            have, want, rtol=rtol, atol=rtol * size, err_msg=jax.tree_util.keystr(path)
        )


def estimates(expectation, params, key, n, *args, steps=0):
    """Independent estimates (values, grads), each leaf with a leading axis; `steps` updates of the state come first."""
    return _batch(expectation, steps)(params, jax.random.split(key, n), *args)


@functools.lru_cache(maxsize=8)
def _batch(expectation, steps):
    def one(params, key, *args):
        keys = jax.random.split(key, steps + 1)
        state = None
        for k in keys[:-1]:
            state = expectation.step(params, state, k, *args)[2]
        value, grads, _ = expectation.step(params, state, keys[-1], *args)
        return value, grads

    return jax.jit(lambda params, keys, *args: jax.vmap(lambda k: one(params, k, *args))(keys))


def flat(values, grads):
    """(n, 1 + number of parameters), value first, and the coordinates' names."""
    columns, names = [np.asarray(values, float).reshape(-1, 1)], ["value"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        leaf = np.asarray(leaf, float)
        leaf = leaf.reshape(columns[0].shape[0], -1)
        columns.append(leaf)
        names += [f"{jax.tree_util.keystr(path)}[{i}]" for i in range(leaf.shape[1])]
    return np.concatenate(columns, 1), names


def assert_mean(expectation, params, truth, key, *args, n=20_000, catches=0.2, steps=0):
    """Test z scores of value and gradient over seeds 0, 1, 2 (shifted by --seed-shift through `key`).

    False-alarm rate 6.8e-6 per coordinate and seed. A bias of `catches` times the largest coordinate of the exact
    gradient (or of 1, when that is larger) is found with a power over 99%: it is at least 7 standard errors, which is asserted.
    """
    want, names = flat(truth.value, jax.tree.map(np.asarray, truth.grads))
    scale = max(1.0, np.abs(want[0, 1:]).max(initial=0.0))
    for seed in range(3):
        got, _ = flat(
            *estimates(expectation, params, jax.random.fold_in(key, seed), n, *args, steps=steps)
        )
        error = got[:, 1:].std(0, ddof=1) / math.sqrt(n)
        assert 7 * error.max(initial=0.0) <= catches * scale, (
            f"n = {n} finds a bias of {7 * error.max() / scale:.3g} of the gradient only"
        )
        try:
            assert_unbiased(got, want[0], names=names)
        except AssertionError as err:
            raise AssertionError(f"seed {seed}: {err}") from err
