"""A call that repeats another one, of the same objects or of equal new ones, on the same data or other, compiles nothing."""

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _compilations import compilations
from _slope import new_programs

from lapilli import inference, ppl

KEY = jax.random.key(0)
STEPS = {"num_steps": 120, "progress": False, "k_hat": "skip"}


def rows(seed, size=40):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size).astype(np.float32)
    return x, (0.5 * x + rng.normal(size=size)).astype(np.float32)


def new_objective():
    return inference.elbo(*new_programs())


def fit(seed=0, num_steps=120, **options):
    options = STEPS | {"num_steps": num_steps} | options
    return inference.fit(new_objective(), optax.adam(0.01), rows(seed), **options)


@pytest.fixture(scope="module")
def fitted():
    return fit()


def test_a_fit_of_new_objects_on_other_data_by_more_steps(fitted):
    with compilations() as num_compiled:
        other = fit(seed=1, num_steps=130)
    assert num_compiled() == 0
    assert other.history["value"].shape == (130,)
    assert other.history["value"][0] != fitted.history["value"][0]


def test_a_fit_with_minibatches():
    fit(subsample={"rows": 10})
    with compilations() as num_compiled:
        fit(seed=1, subsample={"rows": 10})
    assert num_compiled() == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_seeds": 2}, {"average": 0.9}], ids=str)
def test_a_fit_with_options(options):
    fit(**options)
    with compilations() as num_compiled:
        fit(seed=1, **options)
    assert num_compiled() == 0


@pytest.mark.slow
def test_a_fit_of_a_model():
    def call(seed):
        model = ppl.model(new_objective().model)
        return inference.fit(model, args=rows(seed), num_steps=500, progress=False)

    call(0)
    with compilations() as num_compiled:
        call(1)
    assert num_compiled() == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda fit, seed: fit.predict(KEY, rows(seed)[0], num_samples=20),
        lambda fit, seed: fit.posterior(jax.random.fold_in(KEY, seed), 20),
        lambda fit, seed: inference.to_arviz(fit, key=KEY, num_samples=20),
    ],
    ids=["predict", "posterior", "to_arviz"],
)
def test_the_results_of_a_fit_are_used_again(fitted, use):
    use(fitted, 0)
    other = fit(seed=1)
    with compilations() as num_compiled:
        use(fitted, 1)
        use(other, 0)
    assert num_compiled() == 0


def new_series():
    def series(ys):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(0.9 * z, 1.0))
            ppl.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        ppl.scan(step, 0.0, ys)

    return series


def smc(seed):
    return inference.smc(new_series(), jax.random.key(seed), rows(seed, 5)[0], num_particles=8)


def tempered(seed):
    model = ppl.model(new_objective().model)
    return inference.tempered_smc(model, jax.random.key(seed), *rows(seed), num_particles=16)


@pytest.mark.parametrize("call", [smc, pytest.param(tempered, marks=pytest.mark.slow)])
def test_particle_runs(call):
    call(0)
    with compilations() as num_compiled:
        call(1)
    assert num_compiled() == 0
