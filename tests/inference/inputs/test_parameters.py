"""Parameters of laws that are none: numbers of the program, what is computed of arguments, what draws make of them."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.inputs._parameters import check_parameters
from lapilli.inference.inputs._runs import abstract_run

KEY = jax.random.key(0)
HALVES, ZEROS = jnp.array([0.7, 0.7]), jnp.zeros(2)
SADDLE = jnp.array([[1.0, 2.0], [2.0, 1.0]])
SQUARES = jnp.square(jnp.arange(3.0)[:, None] - jnp.arange(3.0))
Y, KINDS = np.array([0.3, 1.2]), np.array([0, 1])


def check(model, *args):
    """What infer, nuts and fit check of a program before anything is computed."""
    program = ppl.as_program(model)
    run = abstract_run(program, args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_parameters("infer", program, args, run.suspected)


def observed(law, y=Y):
    """A program with a law that may use one latent site."""

    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", law(z), obs=y)

    return model


WRONG = {
    "probabilities": (lambda z: dist.Bernoulli(probs=jnp.array([0.2, 1.3])), KINDS, "probs of BernoulliProbs .*1.3 .50%"),
    "scale": (lambda z: dist.Normal(z, jnp.array([1.0, -2.0])), Y, "scale of Normal .positive. is -2"),
    "zero": (lambda z: dist.Normal(z, jnp.array([1.0, 0.0])), Y, "scale of Normal .positive. is 0"),
    "simplex": (lambda z: dist.Categorical(probs=jnp.array([0.2, 0.3])), KINDS, "with the sum 1"),
    "rate": (lambda z: dist.Poisson(jnp.array([1.0, -1.0])), KINDS, "rate of Poisson"),
    "mixture": (lambda z: dist.MixtureSameFamily(dist.Categorical(probs=1.0 * HALVES), dist.Normal(ZEROS, 1.0)), Y, "sum 1"),
    "interval": (lambda z: dist.Uniform(jnp.array([0.0, 3.0]), 2.0), Y, "low of Uniform .below its upper end. is 3"),
    "matrix": (lambda z: dist.MultivariateNormal(ZEROS, 1.0 * SADDLE), np.zeros((2, 2)), "positive definite"),
    "student": (lambda z: dist.StudentT(-jnp.ones(2), z, 1.0), Y, "df of StudentT"),
    "half": (lambda z: dist.TruncatedNormal(z, jnp.array([-1.0, 1.0]), low=0.0), Y, "scale of Normal"),
}  # fmt: skip


@pytest.mark.parametrize("law, y, match", WRONG.values(), ids=WRONG)
def test_a_number_of_the_program_where_the_law_is_none_is_refused(law, y, match):
    with pytest.raises(ValueError, match=f"infer: site 'y' of .*{match}"):
        check(observed(law, y))


def test_so_is_one_that_is_computed_of_arguments():
    def model(percent, y):
        ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Bernoulli(probs=percent / 10), obs=y)

    check(model, np.array([2.0, 9.0]), KINDS)
    with pytest.raises(ValueError, match=r"probs of BernoulliProbs \(from 0 to 1\) is 4"):
        check(model, np.array([2.0, 40.0]), KINDS)


RIGHT = {
    "probabilities at their ends": (lambda z: dist.Bernoulli(probs=jnp.array([0.0, 1.0])), KINDS),
    "thirds": (lambda z: dist.Categorical(probs=jnp.full(3, 1 / 3)), KINDS),
    "many": (lambda z: dist.Categorical(probs=jnp.full(700, 1 / 700)), KINDS),
    "softmax": (lambda z: dist.Categorical(probs=jax.nn.softmax(z * jnp.arange(5.0))), KINDS),
    "logits": (lambda z: dist.Bernoulli(logits=jnp.array([-300.0, 20.0]) * z), KINDS),
    "exp": (lambda z: dist.Normal(0.0, jnp.exp(z)), Y),
    "softplus": (lambda z: dist.Normal(0.0, jax.nn.softplus(z)), Y),
    "sigmoid": (lambda z: dist.Bernoulli(probs=jax.nn.sigmoid(z)), KINDS),
    "rounded up": (lambda z: dist.Bernoulli(probs=jnp.array([1.0 + 1e-7, 0.5])), KINDS),
    "kernel": (lambda z: dist.MultivariateNormal(jnp.zeros(3), jnp.exp(-SQUARES)), np.zeros((2, 3))),
    "masked": (lambda z: dist.Normal(z, jnp.array([1.0, -2.0])).mask(jnp.array([True, False])), Y),
    "root": (lambda z: dist.Normal(0.0, jnp.sqrt(0.1 + z**2)), Y),
}  # fmt: skip


@pytest.mark.parametrize("law, y", RIGHT.values(), ids=RIGHT)
def test_what_is_right_or_right_to_rounding_passes(law, y):
    check(observed(law, y))


def powers(z):
    return jnp.exp(z[..., None] * jnp.arange(5.0))


def spread(z):
    return (1 + z**2)[..., None, None]


OFF = 1.0 - jnp.eye(2)
BY_ROW = {
    "simplex": (lambda z, c: dist.Categorical(c * powers(z) / powers(z).sum(-1, keepdims=True)), 1.3, "with the sum 1"),
    "in order": (lambda z, c: dist.OrderedLogistic(z, c * jnp.cumsum(powers(z), -1)), -1.0, "in order"),
    "matrix": (lambda z, c: dist.MultivariateNormal(jnp.zeros(2), spread(z) * (jnp.eye(2) + 0.1 * c * OFF)), None, ""),
    "root": (lambda z, c: dist.MultivariateNormal(jnp.zeros(2), scale_tril=c * spread(z) * jnp.eye(2)), None, ""),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(2,), (4, 3)], ids=str)
@pytest.mark.parametrize("law, broken, match", BY_ROW.values(), ids=BY_ROW)
def test_each_row_may_have_a_vector_or_a_matrix_of_its_own(law, broken, match, shape):
    """Laws made of draws, one a row, in plates of one and two axes: right ones pass, wrong ones are named."""

    def model(c):
        with contextlib.ExitStack() as plates:
            for axis, size in enumerate(reversed(shape)):
                plates.enter_context(ppl.plate(f"plate {axis}", size))
            rows = law(ppl.sample("z", dist.Normal(0.0, 0.3)), c)
            ppl.sample("y", rows, obs=jnp.zeros((*shape, *rows.event_shape), int))

    check(model, jnp.array(1.0))
    if broken is not None:  # a matrix of draws is NaN where it is needed
        with pytest.raises(ValueError, match=match):
            check(model, jnp.array(broken))


def test_draws_that_make_a_law_none_are_refused_with_their_share():
    with pytest.raises(
        ValueError,
        match=r"scale of Normal \(positive\) is not so in 4\d\.\d% of 200 draws.*softplus",
    ):
        check(observed(lambda z: dist.Normal(0.0, z)))
    with pytest.raises(ValueError, match="rate of Poisson"):
        check(observed(lambda z: dist.Poisson(2.0 + 2 * z), KINDS))
    with pytest.raises(ValueError, match="low of Uniform"):
        check(observed(lambda z: dist.Uniform(0.0, z)))
    with pytest.raises(ValueError, match="sum 1.* is not so in 100.0%"):
        check(observed(lambda z: dist.Categorical(probs=jnp.array([0.9, 0.3]) * jax.nn.sigmoid(z)), KINDS))  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_the_share_is_that_of_the_prior(seed):
    """A scale a + b z is negative with probability Phi(-a / b): refused above a twentieth, told below it.

    At two standard deviations 5 of 200 draws are expected, of which there are none, or more than ten, in one of fifty keys.
    """
    rng = np.random.default_rng(seed)
    b = rng.uniform(0.5, 2.0)
    a = b * [0.5, 1.0, 2.0, 1.95, 8.0, 9.0][seed]
    model = observed(lambda z: dist.Normal(0.0, a + b * z))
    if seed < 2:
        with pytest.raises(ValueError, match="scale of Normal"):
            check(model)
    elif seed < 4:
        program = ppl.as_program(model)
        with pytest.warns(UserWarning, match="the prior is taken as cut to where it is one"):
            check_parameters("infer", program, (), abstract_run(program, ()).suspected)
    else:
        check(model)


def test_steps_of_a_scan_and_branches_are_looked_into():
    def walk(scale):
        def model(y):
            def step(state, x):
                state = ppl.sample("s", dist.Normal(state, 1.0))
                ppl.sample("y", dist.Normal(state, scale(state)), obs=x)
                return state, None

            ppl.scan(step, 0.0, y)

        return model

    check(walk(jnp.exp), Y)
    with pytest.raises(ValueError, match="site 's?y'.*is not so in"):
        check(walk(lambda s: 0.5 * s), Y)

    def branched(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        one = lambda: ppl.sample("y", dist.Normal(z, jnp.array([-1.0, 1.0])), obs=y)
        other = lambda: ppl.sample("y", dist.Normal(z, jnp.array([1.0, 1.0])), obs=y)
        ppl.cond(z > 0, one, other)

    with pytest.raises(ValueError, match="site 'y'"):
        check(branched, Y)


def test_right_laws_of_draws_are_proved_and_nothing_is_computed(monkeypatch):
    """Scales, rates, probabilities and ends made of draws as people make them."""
    from lapilli.inference.inputs import _parameters

    def model(x, y):
        s = ppl.sample("s", dist.HalfNormal(1.0))
        tau = ppl.sample("tau", dist.Gamma(2.0, 2.0))
        p = ppl.sample("p", dist.Beta(2.0, 2.0))
        top = ppl.sample("top", dist.Pareto(1.0, 2.0))
        a = ppl.sample("a", dist.Normal(jnp.zeros(3), s))
        ppl.sample("b", dist.Normal(a[0], 1 / jnp.sqrt(tau)))
        ppl.sample("c", dist.Uniform(0.0, top))
        with ppl.plate("rows", len(y)):
            ppl.sample("k", dist.Bernoulli(p * jnp.ones(2)), obs=y)
            ppl.sample("n", dist.Poisson(jnp.exp(a[0] + x)), obs=y)
            ppl.sample("m", dist.Normal(a[1] * x, s * tau + 0.1), obs=x)

    def fails(*_):
        raise AssertionError("something was computed")

    monkeypatch.setattr(_parameters._MarkedRun, "on_draws", fails)
    check(model, Y, KINDS)


@pytest.mark.parametrize("call", ["infer", "fit"])
def test_infer_and_fit_refuse_it(call):
    model = observed(lambda z: dist.Normal(0.0, z))
    calls = {
        "infer": lambda: inference.infer(model, (), key=KEY, progress=False),
        "fit": lambda: inference.fit(model, args=(), key=KEY, progress=False),
    }
    with pytest.raises(ValueError, match=f"{call}: site 'y'.*is not so in"):
        calls[call]()


def coins(ys, probs):
    def step(z, row):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("y", dist.Bernoulli(row[1] / 10), obs=row[0])
        return z, None

    ppl.scan(step, 0.0, (ys, probs))


def coin(y, prob):
    ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Bernoulli(prob / 10), obs=y)


TENTHS = np.array([5.0, 13.0, 5.0], np.float32)
RUNS = {
    "smc": lambda: inference.smc(coins, KEY, np.zeros(3, int), TENTHS, num_particles=4),
    "smooth": lambda: inference.smooth(coins, KEY, np.zeros(3, int), TENTHS, num_particles=4),
    "tempered_smc": lambda: inference.tempered_smc(coin, KEY, 1, TENTHS[1], num_particles=16),
    "reference_table": lambda: inference.simulators.reference_table(
        coin, args=(1, TENTHS[1]), num_simulations=100, progress=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", RUNS)
def test_whatever_runs_a_program_looks_at_its_parameters(call):
    """A particle's weight by a probability of 1.3 is a number as others are."""
    with pytest.raises(ValueError, match=f"^{call}: site 'y' of .*from 0 to 1.* is 1.3"):
        RUNS[call]()


def test_particles_tell_of_parameters_that_draws_make():
    def model(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Bernoulli(z), obs=y)

    with pytest.raises(ValueError, match="smc: site 'y' of .* is not so in .*% of 200 draws"):
        inference.smc(model, KEY, 1, num_particles=4)


def test_within_a_trace_parameters_are_looked_at_where_they_are_known():
    def model(y, unit=1.0):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(0.0, unit * jnp.log1p(z**2) + 0.1), obs=y)

    def evidence(model):
        return lambda key: inference.smc(model, key, 1.0, num_particles=4).log_evidence

    keys = jax.random.split(KEY, 3)
    assert jax.eval_shape(jax.vmap(evidence(model)), keys).shape == (3,)
    with pytest.raises(ValueError, match="smc: site 'y' of .* is not so in .*% of 200 draws"):
        jax.eval_shape(jax.vmap(evidence(lambda y: model(y, -1.0))), keys)
    own = lambda unit: evidence(lambda y: model(y, unit))(KEY)
    assert jax.eval_shape(own, -1.0).shape == ()  # nobody knows the unit
