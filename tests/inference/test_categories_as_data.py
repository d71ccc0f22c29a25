"""Categories of pandas are indices and classes; under a law of real numbers their codes would be measurements."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pandas as pd
import pytest

from lapilli import inference, ppl

GROUP = pd.Series(["a", "b", "a", "c"], dtype="category")
Y = jnp.array([0.1, 0.9, 0.2, 2.0])


def model(y, law):
    m = ppl.sample("m", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("rows", 4):
        ppl.sample(
            "y", dist.Normal(m[0], 1.0) if law == "normal" else dist.Categorical(logits=m), obs=y
        )


def guide(y, law):
    ppl.sample("m", dist.Normal(ppl.param("l", jnp.zeros(3)), 1.0).to_event(1))


CALLS = {
    "fit": lambda *args: inference.fit(model, args=args, num_steps=2, k_hat="skip", progress=False),
    "by name": lambda y, law: inference.fit(model, args={"y": y, "law": law}, num_steps=2, k_hat="skip", progress=False),
    "objective": lambda *args: inference.fit(inference.elbo(model, guide), args=args, num_steps=2, progress=False),
    "nuts": lambda *args: inference.nuts(model, args=args, progress=False),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_categories_are_no_measurements(call):
    with pytest.raises(TypeError, match="site 'y' observes categories of pandas under Normal"):
        CALLS[call](GROUP, "normal")


def test_categories_are_classes_and_numbers_are_numbers():
    CALLS["objective"](GROUP, "categorical")
    CALLS["objective"](GROUP.cat.codes.astype(float), "normal")


def test_categories_are_indices():
    def by_group(g, y):
        e = ppl.sample("e", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with ppl.plate("rows", 4):
            ppl.sample("y", dist.Normal(e[g], 1.0), obs=y)

    guide = lambda g, y: (
        ppl.sample("e", dist.Normal(ppl.param("l", jnp.zeros(3)), 1.0).to_event(1)) * 0
    )
    inference.fit(inference.elbo(by_group, guide), args=(GROUP, Y), num_steps=2, progress=False)


def test_data_one_after_the_other_are_told_where_they_go():
    with pytest.raises(TypeError, match=r"4 arguments by position.*fit\(model, args=\(x, y\)\)"):
        inference.fit(model, guide, Y, Y)


@pytest.mark.parametrize(
    ("law", "y", "message"),
    [
        (dist.Poisson(2.0), [1, 2, -1, 3], "where 1 of 4 values have no density under Poisson, the first -1"),
        (dist.Poisson(2.0), [1.0, 2.5, 1.5, 3.0], "where 2 of 4 values.*Poisson, the first 2.5"),
        (dist.Bernoulli(0.3), [0, 1, 2, 1], "where 1 of 4 values.*BernoulliProbs, the first 2"),
    ],
)  # fmt: skip
def test_observations_outside_of_their_law_are_counted_and_shown(law, y, message):
    def outside(y):
        ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 4):
            ppl.sample("y", law, obs=y)

    with pytest.raises(ValueError, match=message):
        inference.fit(
            outside, args=(jnp.array(y),), num_steps=2, key=jax.random.key(0), progress=False
        )


def test_measurements_that_happen_to_equal_the_codes_are_measurements():
    def by_group(g, y):
        e = ppl.sample("e", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with ppl.plate("rows", 4):
            ppl.sample("y", dist.Normal(e[g], 1.0), obs=y)

    same = GROUP.cat.codes.to_numpy(float)
    for args in ((GROUP, same), {"y": same, "g": GROUP}, (GROUP, GROUP.cat.codes.to_numpy())):
        inference.fit(by_group, args=args, num_steps=2, k_hat="skip", progress=False)
