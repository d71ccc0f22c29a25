"""Arguments that are parameters of a law lie where the law has a density: per cent are no probabilities, nor 0 a scale."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

Y = np.array([0, 1, 1])
SHARES = np.array([0.2, 0.5, 0.4])
SEEN = np.array([True, False, True])


def trial(p, y=None):
    skill = ppl.sample("skill", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(skill, 1.0), obs=0.3)
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Bernoulli(p), obs=y)


def measured(p, y):
    mean = ppl.sample("skill", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(jnp.full(3, mean), p), obs=y)


def behind_a_mask(p, y):
    mean = ppl.sample("skill", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3), numpyro.handlers.mask(mask=SEEN):
        ppl.sample("y", dist.Normal(jnp.full(3, mean), p), obs=y)


def with_cells(p, y):
    mean = ppl.sample("skill", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(jnp.full(3, mean), p), obs=y, obs_mask=SEEN)


def guide(p, y):
    ppl.sample("skill", dist.Normal(ppl.param("loc", 0.0), 1.0))


CALLS = {
    "fit": lambda model, args: inference.fit(model, args=args, num_steps=1, progress=False),
    "objective": lambda model, args: inference.fit(
        inference.elbo(model, guide), optax.adam(0.1), args, num_steps=1, progress=False
    ),
    "infer": lambda model, args: inference.infer(model, args=args, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (trial, [20.0, 50.0, 0.4], r"'y'.*probs of BernoulliProbs is the argument 'p'.* 20 \(2 of 3"),
        (measured, [1.0, 0.0, 2.0], r"'y'.*scale of Normal is the argument 'p', which holds 0 \(1 of 3"),
    ],
    ids=["per cent", "no scale"],
)  # fmt: skip
def test_an_argument_outside_of_its_parameters_range_is_named(call, model, values, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](model, (np.array(values), Y.astype(float) if model is measured else Y))


@pytest.mark.parametrize("model", [behind_a_mask, with_cells])
def test_what_a_mask_hides_may_be_anything(model):
    args = (np.array([1.0, 0.0, 2.0]), Y.astype(float))
    assert not inference.inputs._runs.abstract_run(ppl.model(model), args).outside


@pytest.mark.parametrize("values", [SHARES, jnp.asarray(SHARES), [0.0, 1.0, np.nan]])
def test_numbers_of_the_range_pass_and_nan_is_told_elsewhere(values):
    args = (values if isinstance(values, jax.Array) else np.asarray(values), Y)
    assert not inference.inputs._runs.abstract_run(ppl.model(trial), args).outside


def test_impossible_categories_may_have_infinite_logits():
    def program(logits, k):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(mean, 1.0), obs=0.3)
        ppl.sample("k", dist.Categorical(logits=logits), obs=k)
        ppl.factor("table", logits[0])

    args = (np.array([0.0, -np.inf]), np.array(0))
    assert not inference.inputs._runs.abstract_run(ppl.model(program), args).outside
