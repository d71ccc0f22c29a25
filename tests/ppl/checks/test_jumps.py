"""Reparameterised values that make the result jump are refused; continuous uses pass.

The programs are those of a decoder, a likelihood, an image model, and the classical discontinuities.
A check with false alarms is worthless, and so is one that lets `where(z > 0, 1., 0.)` through. Known
limit, by design: a jump that no draw comes near (at 20 standard deviations) is not found; its part
of the gradient is of the order of the density there, 1e-88.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _slow import some_slow
from jax.scipy.ndimage import map_coordinates
from numpyro.infer.autoguide import AutoIAFNormal

from lapilli import inference, ppl
from lapilli.ppl.checks._jumps import suspects_of
from lapilli.ppl.estimation import _checked

KEY = jax.random.key(0)
JUMPS = "Site 'z': the result jumps by .* as a function of its reparameterised value"
CENTRE = jnp.array([0.1, -0.2, 0.3])

IMAGE = jnp.asarray(np.random.default_rng(0).random((20, 20)))
PIXELS = jnp.arange(28.0)
W = jnp.asarray(np.random.default_rng(1).normal(size=(3, 200)))
V = jnp.asarray(np.random.default_rng(2).normal(size=(200, 784)) / 14)


def bilinear(z):
    rows = PIXELS * 0.6 * jnp.exp(0.1 * z[0]) + z[1]
    grid = jnp.stack(jnp.meshgrid(rows, PIXELS * 0.6 + z[2], indexing="ij"))
    return map_coordinates(IMAGE, grid, order=1, mode="constant").sum()


def decoder(z):
    logits = jax.nn.leaky_relu(z @ W) @ V
    return dist.Bernoulli(logits=logits).log_prob(jnp.ones(784)).sum()


def convolutional(z):
    """A small transposed-convolution decoder with relu, max-pooling and a Bernoulli likelihood."""
    image = jax.nn.relu((z @ W[:, :49]).reshape(1, 1, 7, 7))
    kernel = W[:, :36].reshape(3, 1, 6, 6)[:1] / 6
    up = jax.lax.conv_transpose(image, kernel.transpose(1, 0, 2, 3), (2, 2), "SAME",
                                dimension_numbers=("NCHW", "IOHW", "NCHW"))  # fmt: skip
    up = jax.nn.leaky_relu(up)
    pooled = jax.lax.reduce_window(up, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return dist.Bernoulli(logits=pooled).log_prob(jnp.ones(pooled.shape)).sum()


def spline(z):
    """Cubic Hermite interpolation on a fixed grid: search, gather and a polynomial."""
    knots, values = jnp.linspace(-20.0, 20.0, 41), jnp.sin(jnp.linspace(-20.0, 20.0, 41))
    slopes = jnp.gradient(values, 1.0)
    i = jnp.clip(jnp.searchsorted(knots, z) - 1, 0, 39)
    t = (z - knots[i]) / (knots[i + 1] - knots[i])
    h00, h10 = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t
    h01, h11 = -2 * t**3 + 3 * t**2, t**3 - t**2
    return (h00 * values[i] + h10 * slopes[i] + h01 * values[i + 1] + h11 * slopes[i + 1]).sum()


def _interpolate(z):
    i, values = jnp.floor(z), jnp.sin(jnp.arange(-50.0, 50.0))
    at = lambda k: values[jnp.clip(k + 50, 0, 99).astype(int)]
    return (1 - (z - i)) * at(i) + (z - i) * at(i + 1)


def rational_spline(z):
    """A step of a neural spline flow (NumPyro's RationalQuadratic-like bins by cumulative sums)."""
    widths = jax.nn.softmax(jnp.arange(4.0)) * 6
    edges = jnp.concatenate([jnp.array([-3.0]), -3 + jnp.cumsum(widths)])
    heights = jnp.concatenate([jnp.array([-3.0]), -3 + jnp.cumsum(jax.nn.softmax(jnp.ones(4)) * 6)])
    inside = (z > -3) & (z < 3)
    return jnp.where(inside, jnp.interp(z, edges, heights), z).sum()


CONTINUOUS = {
    "linear": lambda z: z.sum(),
    "relu": lambda z: jax.nn.relu(z).sum(),
    "leaky_relu": lambda z: jax.nn.leaky_relu(z).sum(),
    "elu": lambda z: jax.nn.elu(z).sum(),
    "selu": lambda z: jax.nn.selu(z).sum(),
    "hard_tanh": lambda z: jax.nn.hard_tanh(z).sum(),
    "clip": lambda z: jnp.clip(z, -1, 1).sum(),
    "abs": lambda z: jnp.abs(z).sum(),
    "huber": lambda z: jnp.where(jnp.abs(z) < 1, 0.5 * z**2, jnp.abs(z) - 0.5).sum(),
    "softplus": lambda z: jax.nn.softplus(z).sum(),
    "gelu": lambda z: jax.nn.gelu(z).sum(),
    "sorted_values": lambda z: (jnp.sort(z) * jnp.arange(3.0)).sum(),
    "order_statistics_by_argsort": lambda z: (z[jnp.argsort(z)] * jnp.arange(3.0)).sum(),
    "top_k_values": lambda z: jax.lax.top_k(z, 2)[0].sum(),
    "max": lambda z: z.max(),
    "max_by_argmax": lambda z: z[jnp.argmax(z)],
    "median": lambda z: jnp.median(z),
    "quantile": lambda z: jnp.quantile(z, 0.3),
    "maximum": lambda z: jnp.maximum(z, 0.2).sum(),
    "bilinear": bilinear,
    "decoder": decoder,
    "convolutional_decoder": convolutional,
    "spline": spline,
    "rational_spline": rational_spline,
    "linear_interpolation_by_terms": lambda z: _interpolate(z).sum(),
    "logsumexp": lambda z: jax.nn.logsumexp(z),
    "log_softmax": lambda z: jax.nn.log_softmax(z)[0],
    "hinge": lambda z: jnp.where(z > 0, z, 0.0).sum(),
    "guarded": lambda z: (z * (z > 0)).sum(),
    "sign_times_value": lambda z: (jnp.sign(z) * z).sum(),
    "interp": lambda z: jnp.interp(z, jnp.array([-1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 5.0])).sum(),
    "truncated_normal": lambda z: dist.TruncatedNormal(0.0, 1.0, low=-50.0).log_prob(z).sum(),
    "uniform": lambda z: dist.Uniform(-100.0, 100.0).log_prob(z).sum(),
    "half_normal": lambda z: dist.HalfNormal(1.0).log_prob(jnp.exp(z)).sum(),
    "half_cauchy": lambda z: dist.HalfCauchy(1.0).log_prob(jnp.exp(z)).sum(),
    "log_normal": lambda z: dist.LogNormal(0.0, 1.0).log_prob(jnp.exp(z)).sum(),
    "gamma": lambda z: dist.Gamma(jnp.exp(z), 1.0).log_prob(1.3).sum(),
    "gamma_value": lambda z: dist.Gamma(2.0, 1.0).log_prob(jnp.exp(z)).sum(),
    "beta": lambda z: dist.Beta(jnp.exp(z), 2.0).log_prob(0.3).sum(),
    "beta_value": lambda z: dist.Beta(2.0, 2.0).log_prob(jax.nn.sigmoid(z)).sum(),
    "dirichlet": lambda z: dist.Dirichlet(jnp.ones(3)).log_prob(jax.nn.softmax(z)),
    "von_mises": lambda z: dist.VonMises(0.0, jnp.exp(z)).log_prob(0.3).sum(),
    "poisson": lambda z: dist.Poisson(jnp.exp(z)).log_prob(3).sum(),
    "negative_binomial": lambda z: dist.NegativeBinomial2(jnp.exp(z), 2.0).log_prob(3).sum(),
    "student_t": lambda z: dist.StudentT(3.0, z, jnp.exp(z)).log_prob(0.3).sum(),
    "laplace": lambda z: dist.Laplace(z, 1.0).log_prob(0.3).sum(),
    "categorical": lambda z: dist.Categorical(logits=z).log_prob(1),
    "ordered_logistic": lambda z: dist.OrderedLogistic(z, jnp.array([0.0, 1.0])).log_prob(1).sum(),
    "zero_inflated": lambda z: dist.ZeroInflatedPoisson(0.3, jnp.exp(z)).log_prob(0).sum(),
    "mixture": lambda z: dist.MixtureSameFamily(
        dist.Categorical(logits=z), dist.Normal(z, 1.0)
    ).log_prob(0.3),
    "cholesky": lambda z: jnp.linalg.slogdet(jnp.eye(3) + jnp.outer(z, z))[1],
    "multivariate_normal": lambda z: dist.MultivariateNormal(
        z, jnp.eye(3) + jnp.outer(z, z)
    ).log_prob(jnp.ones(3)),
    "guard_of_numbers": lambda z: jnp.nan_to_num(jnp.exp(z)).sum(),
    "overflow_that_saturates": lambda z: jnp.tanh(jnp.exp(100 * z)).sum(),
    "nan_guard": lambda z: jnp.where(jnp.isfinite(z), z**2, 0.0).sum(),
    "double_where": lambda z: jnp.where(z > 0, jnp.log1p(jnp.where(z > 0, z, 1.0)), 0.0).sum(),
    "stop_gradient": lambda z: (z * jax.lax.stop_gradient(jnp.tanh(z))).sum(),
    "l2_norm": lambda z: jnp.linalg.norm(z),
}  # fmt: skip

JUMPING = {
    "step": lambda z: jnp.where(z > 0, 1.0, 0.0).sum(),
    "step_between_functions": lambda z: jnp.where(z > 0, z, z + 5.0).sum(),
    "round": lambda z: jnp.round(z).sum(),
    "floor": lambda z: jnp.floor(z).sum(),
    "ceil": lambda z: jnp.ceil(2 * z).sum(),
    "sign": lambda z: jnp.sign(z).sum(),
    "argmax": lambda z: jnp.arange(3.0)[jnp.argmax(z)],
    "argsort": lambda z: z[jnp.argsort(-z)][0] * jnp.argsort(z)[0],
    "cast": lambda z: z.astype(jnp.int32).sum() * 1.0,
    "mod": lambda z: (z % 1.0).sum(),
    "lax_cond": lambda z: jax.lax.cond(z[0] > 0, lambda: 1.0, lambda: 2.0),
    "lax_switch": lambda z: jax.lax.switch((z[0] > 0).astype(int), [lambda: 1.0, lambda: 2.0]),
    "small": lambda z: jnp.where(z[0] > 0, 1e-3, 0.0) + z.sum(),
    "indicator_times_value": lambda z: (z * (z > 1)).sum(),
    "comparison_of_two": lambda z: (z[0] > z[1]) * 1.0,
    "all": lambda z: jnp.all(z > 0) * 1.0,
    "while": lambda z: jax.lax.while_loop(
        lambda c: c[0] < z[0], lambda c: (c[0] + 1, c[1] + 1.0), (0.0, 0.0)
    )[1],
    "histogram": lambda z: jnp.histogram(z, bins=4, range=(-2.0, 2.0))[0][1] * 1.0,
    "searchsorted": lambda z: jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), z).sum() * 1.0,
    "digitize": lambda z: jnp.digitize(z, jnp.array([-1.0, 0.5])).sum() * 1.0,
    "nearest_neighbour": lambda z: map_coordinates(IMAGE[0], [5 + z], order=0).sum(),
    "one_hot": lambda z: jax.nn.one_hot(jnp.argmax(z), 3)[0],
    "hidden_in_exp": lambda z: jnp.exp(-jnp.where(z[2] > 0.5, 0.3, 0.0)),
    "overflow": lambda z: jnp.where(jnp.isfinite(jnp.exp(100 * z[0])), 1.0, 0.0),
    "overflow_of_a_product": lambda z: jnp.where(jnp.isinf(z[0] * 1e38), 1.0, 0.0),
    "overflow_minus_overflow": lambda z: jnp.isnan(jnp.exp(100 * z[0]) - jnp.exp(90 * z[0])) * 1.0,
    "overflow_below_infinity": lambda z: (jnp.exp(100 * z[0]) < jnp.inf) * 1.0,
    "overflow_replaced": lambda z: jnp.tanh(jnp.nan_to_num(jnp.exp(100 * z[0]), posinf=0.0)),
    "overflow_in_steps": lambda z: (
        jnp.isfinite(jax.lax.fori_loop(0, 5, lambda _, c: c * jnp.exp(30 * z[0]), 1.0)) * 1.0
    ),
    "in_a_log_prob": lambda z: dist.Normal(jnp.where(z[0] > 0, 1.0, 0.0), 1.0).log_prob(0.2),
}


def cost_of(f, **site):
    def cost(m):
        return f(ppl.sample("z", dist.Normal(m, 1.0).to_event(1), **site))

    return cost


@pytest.mark.fast(
    "abs",
    "clip",
    "convolutional_decoder",
    "elu",
    "gamma_value",
    "half_normal",
    "hinge",
    "l2_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsumexp",
    "max",
    "maximum",
    "median",
    "nan_guard",
    "overflow_that_saturates",
    "stop_gradient",
    "top_k_values",
)
@pytest.mark.parametrize(
    "name",
    CONTINUOUS,
)
def test_a_continuous_use_passes(name):
    ppl.expectation(cost_of(CONTINUOUS[name])).plan(CENTRE)


@pytest.mark.parametrize("name", JUMPING)
def test_a_jump_is_suspected(name):
    """By the table of primitives alone, before anything is compiled."""
    assert suspects_of(ppl.expectation(cost_of(JUMPING[name]), check_jumps=False).ready(CENTRE))


@pytest.mark.fast("in_a_log_prob")
@pytest.mark.parametrize("name", JUMPING)
def test_a_jump_is_refused_by_name(name):
    with pytest.raises(ValueError, match=JUMPS) as caught:
        ppl.expectation(cost_of(JUMPING[name])).plan(CENTRE)
    assert "strategies={'z': 'reinforce'}" in str(caught.value)
    assert "operation: " in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise",
    [lambda: ppl.sample("z", dist.Normal(0.0, 1.0)), lambda: jax.random.normal(ppl.rng_key("z"))],
)
def test_parameters_that_move_an_overflow_across_noise_that_stays_are_refused(noise):
    cost = lambda m: jnp.where(jnp.isfinite(jnp.exp(100 * (noise() - m))), 1.0, 0.0)
    with pytest.raises(ValueError, match="of an overflow"):
        ppl.expectation(cost).plan(0.3)


def test_overflow_is_a_jump_of_the_gradient():
    """P(exp(100 z) overflows) = P(z > c), c = log(largest) / 100: pathwise zero, by the score the density at c, 200,000 draws."""
    edge = float(np.log(np.finfo(np.float32).max)) / 100
    cost = cost_of(
        lambda z: jnp.where(jnp.isfinite(jnp.exp(100 * z[0])), 0.0, 1.0), strategy="reinforce"
    )
    keys = jax.random.split(jax.random.key(1), 200_000)
    mean = jnp.full(1, 0.3)
    grads = jax.jit(jax.vmap(lambda k: ppl.expectation(cost).grad(mean, k)))(keys)[:, 0]
    exact = np.exp(-0.5 * (edge - 0.3) ** 2) / np.sqrt(2 * np.pi)
    assert abs(grads.mean() - exact) < 4.5 * grads.std() / np.sqrt(len(keys))
    assert exact > 7 * grads.std() / np.sqrt(len(keys))  # what a pathwise gradient misses


@pytest.mark.slow  # four fine searches
def test_a_finer_search_finds_narrower_windows():
    """The stated limits, of the default and of another."""
    window = lambda width: cost_of(lambda z: (jnp.abs(z[0] - 0.7) < width / 2) * 1.0)
    finer = ppl.JumpSearch(num_paths=200, num_points=1024, budget=1e11)
    mean = jnp.full(1, 0.3)
    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(window(0.02)).plan(mean)
    ppl.expectation(window(0.002)).plan(mean)
    for width in (0.002, 0.0002):
        with pytest.raises(ValueError, match=JUMPS):
            ppl.expectation(window(width), check_jumps=finer).plan(mean)


@pytest.mark.slow
def test_a_finer_threshold_finds_smaller_jumps():
    small = cost_of(lambda z: 1e-6 * jnp.where(z[0] > 0, 1.0, 0.0) + z[0])
    mean = jnp.full(1, 0.3)
    ppl.expectation(small).plan(mean)
    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(small, check_jumps=ppl.JumpSearch(threshold=1e-7)).plan(mean)


@pytest.mark.slow
def test_an_objective_searches_as_it_is_told():
    model = lambda: ppl.sample("z", dist.Normal(0.0, 1.0))
    guide = lambda: ppl.sample("z", dist.Normal(ppl.param("m", 0.3), 1.0))

    def narrow():
        ppl.factor("f", (jnp.abs(model() - 0.7) < 1e-3) * 1.0)

    finer = ppl.JumpSearch(num_paths=200, num_points=1024, budget=1e11)
    inference.elbo(narrow, guide).plan({"m": 0.3})
    with pytest.raises(ValueError, match=JUMPS):
        inference.elbo(narrow, guide, check_jumps=finer).plan({"m": 0.3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 0}, "num_points must be a positive whole number, got 0"),
        ({"num_paths": 100.0}, "num_paths must be a positive whole number, got 100.0"),
        ({"budget": -1.0}, "budget must be a positive number, got -1.0"),
        ({"num_points": 8}, "num_points=8 is coarser than the default, 32.*check_jumps=False"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=f"JumpSearch: {message}"):
        ppl.JumpSearch(**options)


def test_something_else_than_a_search_is_refused():
    with pytest.raises(
        TypeError, match="check_jumps must be True, False or a ppl.JumpSearch, got 3"
    ):
        ppl.expectation(lambda m: m, check_jumps=3)


def test_a_jump_far_outside_of_all_draws_is_not_found():
    """The stated limit: nothing is probed near 20 standard deviations."""
    far = lambda z: jnp.where(z[0] > 20.0, 1.0, 0.0) + z.sum()
    ppl.expectation(cost_of(far)).plan(CENTRE)


@pytest.mark.fast("2.5")
@pytest.mark.parametrize("threshold", [-4.0, 2.5, 5.0, 9.0])
def test_a_jump_at_moderate_distance_is_found(threshold):
    """At 2.5 standard deviations a jump of one biases the derivative by 0.018, though few draws cross it."""
    cost = cost_of(lambda z: jnp.where(z[0] > threshold, 1.0, 0.0) + z.sum())
    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(jnp.zeros(3))


@pytest.mark.fast("equal_values")
@pytest.mark.parametrize("kind", ["equal_values", "zero_weight"])
def test_a_jump_that_vanishes_at_the_initial_parameters_is_found(kind):
    """The check is made once, where training starts; a jump that opens later would bias every step."""

    def cost(p):
        z = ppl.sample("z", dist.Normal(p["m"], 1.0))
        if kind == "equal_values":
            return jnp.where(z > 0, p["a"], p["b"])
        return p["a"] * jnp.where(z > 0, 1.0, 0.0) + p["b"] * z

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan({"m": 0.1, "a": 0.0, "b": 0.0})


@pytest.mark.slow
def test_every_entry_runs_the_check():
    expectation = ppl.expectation(cost_of(JUMPING["step"]))
    for run in (
        lambda: expectation.value(CENTRE, KEY),
        lambda: expectation.grad(CENTRE, KEY),
        lambda: expectation.init_state(CENTRE),
    ):
        with pytest.raises(ValueError, match=JUMPS):
            run()


TRANSFORMED = {
    "jit": lambda f: jax.jit(f)(CENTRE),
    "grad": lambda f: jax.grad(f)(CENTRE),
    "vmap": lambda f: jax.vmap(f)(jnp.stack([CENTRE, CENTRE + 1])),
    "jit_grad": lambda f: jax.jit(jax.grad(f))(CENTRE),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c + f(x), None), 0.0, jnp.stack([CENTRE] * 2)),
}


@pytest.mark.fast("jit_grad")
@pytest.mark.parametrize("wrap", TRANSFORMED)
def test_the_check_runs_when_parameters_are_tracers(wrap):
    """Called under an outer transformation only, there is no concrete parameter to probe at."""
    jumping = ppl.expectation(cost_of(JUMPING["step_between_functions"]))
    with pytest.raises(ValueError, match=JUMPS):
        TRANSFORMED[wrap](lambda m: jumping.value(m, KEY))
    continuous = ppl.expectation(cost_of(CONTINUOUS["huber"]))
    TRANSFORMED[wrap](lambda m: continuous.value(m, KEY))


@pytest.mark.slow
def test_the_check_runs_when_data_are_tracers():
    def cost(m, x):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        return jnp.where(z > x, 1.0, 0.0)

    run = jax.jit(lambda m, x: ppl.expectation(cost).grad(m, KEY, x))
    with pytest.raises(ValueError, match=JUMPS):
        run(0.0, 0.1)


# Where the jump may hide.


def test_a_jump_in_the_parameters_of_another_site():
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        w = ppl.sample("w", dist.Normal(jnp.where(z > 0, 1.0, -1.0), 1.0))
        return w**2 + w

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(0.3)


@pytest.mark.fast("reinforce")
@pytest.mark.parametrize("strategy", ["enum", "mvd", "reinforce"])
def test_a_jump_in_the_parameters_of_a_site_with_another_strategy(strategy):
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        b = ppl.sample("b", dist.Bernoulli(jnp.where(z > 0, 0.8, 0.2)))
        return b * 3.0

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost, strategies={"b": strategy}).plan(0.3)

    def smooth(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(z)))
        return b * 3.0

    ppl.expectation(smooth, strategies={"b": strategy}).plan(0.3)


def test_a_jump_behind_another_reparameterised_site_is_attributed_to_a_site_upstream():
    def cost(m):
        a = ppl.sample("a", dist.Normal(m, 1.0))
        z = ppl.sample("z", dist.Normal(a, 1.0))
        return jnp.sign(z)

    with pytest.raises(ValueError, match="jumps by") as caught:
        ppl.expectation(cost).plan(0.3)
    assert "Site 'z'" in str(caught.value) or "Site 'a'" in str(caught.value)


@pytest.mark.fast("True")
@pytest.mark.parametrize("same", [True, False])
def test_a_jump_through_a_cond_predicate(same):
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        w = lambda: ppl.sample("w", dist.Normal(0.0, 1.0))
        return ppl.cond(z > 0, lambda: w() + z, lambda: w() + (z if same else 2.0))

    if same:  # both branches agree at the boundary: no jump
        ppl.expectation(cost).plan(0.3)
    else:
        with pytest.raises(ValueError, match=JUMPS):
            ppl.expectation(cost).plan(0.3)


def test_a_cond_predicate_that_chooses_between_different_laws_is_refused():
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        return ppl.cond(
            z > 0,
            lambda: ppl.sample("w", dist.Normal(3.0, 1.0)),
            lambda: ppl.sample("v", dist.Normal(-3.0, 1.0)),
        )

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(0.3)


def test_jumps_in_plates():
    def cost(f):
        def run(m):
            with ppl.plate("rows", 4):
                z = ppl.sample("z", dist.Normal(m, 1.0))
            return f(z).sum()

        return run

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost(lambda z: jnp.where(z > 0.5, 1.0, 0.0))).plan(0.3)
    ppl.expectation(cost(jax.nn.relu)).plan(0.3)


@pytest.mark.fast("particles")
@pytest.mark.parametrize("region", ["scan", "particles", "nested"])
def test_jumps_in_regions(region):
    def cost(f):
        def site(c):
            return f(ppl.sample("z", dist.Normal(c, 1.0)))

        def run(m):
            if region == "particles":
                return ppl.particles(3)(site)(m).sum()
            scan = lambda: ppl.scan(lambda c, _: (site(c), None), m, None, length=3)[0]
            return scan() if region == "scan" else ppl.particles(2)(scan)().sum()

        return run

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost(lambda z: jnp.where(z > 0.5, 1.0, z))).plan(0.3)
    ppl.expectation(cost(jax.nn.relu)).plan(0.3)


def test_a_jump_in_a_raw_scan_over_a_value():
    """A raw lax.scan without a site inside is an ordinary function of the value."""

    def cost(f):
        def run(m):
            z = ppl.sample("z", dist.Normal(m, 1.0))
            body = lambda c, x: (f(c + x), None)
            return jax.lax.scan(body, z, jnp.array([0.1, -0.2, 0.3]))[0]

        return run

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost(jnp.round)).plan(0.3)
    ppl.expectation(cost(jax.nn.relu)).plan(0.3)


GUIDES = {
    "Gamma": lambda m: dist.Gamma(jnp.exp(m), 1.0),
    "Beta": lambda m: dist.Beta(jnp.exp(m), 2.0),
    "LogNormal": lambda m: dist.LogNormal(m, 1.0),
    "HalfNormal": lambda m: dist.HalfNormal(jnp.exp(m)),
    "Uniform": lambda m: dist.Uniform(0.0, jnp.exp(m)),
    "TruncatedNormal": lambda m: dist.TruncatedNormal(m, 1.0, low=0.0),
    "Laplace": lambda m: dist.Laplace(m, 1.0),
    "StudentT": lambda m: dist.StudentT(4.0, m, 1.0),
    "Cauchy": lambda m: dist.Cauchy(m, 1.0),
    "Gumbel": lambda m: dist.Gumbel(m, 1.0),
    "Dirichlet": lambda m: dist.Dirichlet(jnp.exp(m) * jnp.ones(3)),
    "MultivariateNormal": lambda m: dist.MultivariateNormal(m * jnp.ones(2), jnp.eye(2)),
    "Kumaraswamy": lambda m: dist.Kumaraswamy(jnp.exp(m), 2.0),
    "Weibull": lambda m: dist.Weibull(jnp.exp(m), 2.0),
}


@pytest.mark.parametrize("family", some_slow(GUIDES, "Beta", "Dirichlet"))
def test_no_false_alarm_in_an_elbo_with_this_guide(family):
    """The density of a reparameterised site under its own family, support guards included."""
    make = GUIDES[family]

    def cost(m):
        q = ppl.draw(ppl.model(lambda: ppl.sample("z", make(m))))
        p = ppl.score(ppl.model(lambda: ppl.sample("z", make(0.1))), q)
        return p.log_density - q.log_density

    ppl.expectation(cost).plan(0.3)


BOUNDED = {
    "TruncatedNormal": (lambda m: dist.TruncatedNormal(m, 1.0, low=0.0), (1.0, 2.6)),
    "Uniform": (lambda m: dist.Uniform(0.0, 2 * jnp.exp(m)), (1.0, 1.98)),
    "Gamma": (lambda m: dist.Gamma(jnp.exp(m), 1.0), (1.0, 4.6)),
    "LogNormal": (lambda m: dist.LogNormal(m, 1.0), (1.0, 10.2)),
    "Beta": (lambda m: dist.Beta(jnp.exp(m), 1.0), (0.5, 0.99)),
}


@pytest.mark.fast("Uniform-99th percentile")
@pytest.mark.parametrize("where", ["median", "99th percentile"])
@pytest.mark.parametrize("family", BOUNDED)
def test_steps_are_found_under_other_laws_too(family, where):
    make, thresholds = BOUNDED[family]
    threshold = thresholds[where == "99th percentile"]

    def cost(m):
        return jnp.where(ppl.sample("z", make(m)) > threshold, 1.0, 0.0)

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(0.0)


def test_a_density_evaluated_outside_its_support_is_a_jump():
    """A guide that leaves the model's support: the density drops to zero, loudly (-inf), or the check names the site."""

    def cost(m):
        q = ppl.draw(ppl.model(lambda: ppl.sample("z", dist.Normal(m, 1.0))))
        return jnp.exp(
            ppl.score(
                ppl.model(lambda: ppl.sample("z", dist.HalfNormal(1.0))), q.choices
            ).log_density
        )

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(0.3)


@pytest.mark.slow  # seconds of compilation
def test_no_false_alarm_for_a_flow_as_a_guide():
    def model():
        w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ppl.sample("x", dist.Bernoulli(logits=jax.nn.relu(w).sum()), obs=1)

    objective = inference.elbo(model, AutoIAFNormal(model, hidden_dims=[4]))
    objective.plan(objective.init(KEY))


def test_no_false_alarm_for_an_equinox_decoder():
    net = eqx.nn.MLP(3, 8, 16, 2, activation=jax.nn.leaky_relu, key=KEY)

    @ppl.model
    def model(x):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            logits = jax.vmap(ppl.module("net", net))(z)
            ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @ppl.model
    def guide(x):
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("z", dist.Normal(ppl.param("m", jnp.zeros(3)), 1.0).to_event(1))

    x = jnp.ones((2, 8))
    objective = inference.elbo(model, guide)
    objective.plan(objective.init(KEY, x), x)


# Opting out, and other strategies.


def test_allow_jumps_accepts_the_bias_of_the_named_site_only():
    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        w = ppl.sample("w", dist.Normal(m, 1.0))
        return jnp.where(z > 0, 1.0, 0.0) + z + jnp.sign(w)

    allow = ppl.Reparam(allow_jumps=True)
    with pytest.raises(ValueError, match="Site 'w': the result jumps"):
        ppl.expectation(cost, strategies={"z": allow}).plan(0.3)
    plan = ppl.expectation(cost, strategies={"z": allow, "w": "reinforce"}).plan(0.3)
    assert plan["z"].strategy == "reparam"
    grad = ppl.expectation(cost_of(JUMPING["step_between_functions"], strategy=allow)).grad(
        CENTRE, KEY
    )
    np.testing.assert_allclose(grad, np.ones(3))


def test_implicit_sites_are_checked_too():
    def cost(m):
        z = ppl.sample("z", dist.Gamma(jnp.exp(m), 1.0), strategy="implicit")
        return jnp.where(z > 1.0, 1.0, 0.0)

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan(0.1)
    allow = {"z": ppl.Implicit(allow_jumps=True)}
    ppl.expectation(cost, strategies=allow).plan(0.1)


def test_check_jumps_false_switches_the_check_off():
    ppl.expectation(cost_of(JUMPING["step"]), check_jumps=False).plan(CENTRE)


@pytest.mark.parametrize("strategy", ["reinforce", "mvd", "reinforce_loo"])
def test_strategies_that_need_no_smoothness_take_jumps(strategy):
    def cost(m):
        return jnp.where(ppl.sample("z", dist.Normal(m, 1.0)) > 0, 1.0, 0.0)

    ppl.expectation(cost, strategies=strategy).plan(0.3)


def test_auto_avoids_reparam_where_it_jumps():
    plan = ppl.expectation(cost_of(JUMPING["step"]), strategies="auto").plan(CENTRE)
    assert plan["z"].strategy in ("mvd", "reinforce") and "reparam refused" in plan["z"].why


def test_a_jump_in_a_value_without_a_parameter_upstream_is_harmless_or_refused_never_wrong():
    """A draw from N(0, 1) has no parameter: its pathwise derivative is zero, and so is the exact one."""

    def cost(m):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        return m * jnp.where(z > 0, 1.0, 0.0)

    try:
        grads = [ppl.expectation(cost).grad(1.0, jax.random.key(i)) for i in range(4)]
    except ValueError as error:
        assert "Site 'z'" in str(error)
    else:
        assert set(map(float, grads)) <= {0.0, 1.0}


def test_the_check_is_remembered_per_shape(monkeypatch):
    calls = []
    real = _checked.suspects_of
    monkeypatch.setattr(_checked, "suspects_of", lambda *a: (calls.append(1), real(*a))[1])
    expectation = ppl.expectation(cost_of(CONTINUOUS["relu"]))
    for i in range(3):
        expectation.value(CENTRE + i, jax.random.key(i))
    assert len(calls) == 1
    expectation.value(jnp.zeros(2), KEY)
    assert len(calls) == 2


@pytest.mark.slow
def test_of_several_suspects_the_one_that_jumps_is_named():
    """Gamma variates, in a loop as well, are drawn approximately by the search."""

    def cost(a, jumping):
        w = ppl.sample("w", dist.Dirichlet(a * jnp.ones(3)))
        step = lambda c, _: (c + ppl.sample("t", dist.Gamma(a + 1, 2.0)), None)
        total, _ = ppl.scan(step, 0.0, None, 2)
        s = ppl.sample("s", dist.LogNormal(a, 1.0))
        kinks = jnp.where(w[0] > 0.3, w[0], 0.3) + jnp.where(total > 1, total, 1.0)
        kinks = kinks + jnp.where(s > 1, s, 1.0)
        return kinks + (jnp.where(total > 1, 1.0, 0.0) if jumping else 0.0)

    smooth, rough = (ppl.expectation(lambda a, j=j: cost(a, j)) for j in (False, True))
    assert len(smooth.plan(1.5).sites) == 3
    with pytest.raises(ValueError, match="Site 't': the result jumps by .*'reinforce'"):
        rough.plan(1.5)
