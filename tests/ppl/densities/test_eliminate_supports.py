"""Every law with a finite support is summed over its values, whatever they are called and whatever reads them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC, NUTS

from lapilli import inference, ppl

KEY = jax.random.key(0)
LAWS = {
    "uniform": dist.DiscreteUniform(0, 3),
    "uniform_from_two": dist.DiscreteUniform(2, 4),
    "uniform_below_zero": dist.DiscreteUniform(-3, -1),
    "equal": dist.Categorical(probs=jnp.ones(3) / 3),
    "coin": dist.Bernoulli(0.5),
    "binomial": dist.Binomial(3, 0.4),
    "binomial_logits": dist.Binomial(2, logits=0.2),
    "beta_binomial": dist.BetaBinomial(2.0, 3.0, 3),
    "masked": dist.DiscreteUniform(1, 3).mask(True),
}


def unread(law):
    ppl.sample("c", law)
    ppl.sample("y", dist.Normal(0.0, 1.0), obs=0.3)


def rows(law):
    with ppl.plate("rows", 3):
        c = ppl.sample("c", law)
        ppl.sample("y", dist.Normal(c, 1.0), obs=jnp.array([0.3, 1.0, 2.0]))


def one_row_read(law):
    with ppl.plate("rows", 3):
        c = ppl.sample("c", law)
    ppl.sample("y", dist.Normal(1.0 * c[0], 1.0), obs=0.3)


def steps(law):
    def step(before, y):
        c = ppl.sample("c", law)
        ppl.sample("y", dist.Normal(0.5 * c + 0.2 * before, 1.0), obs=y)
        return c, None

    ppl.scan(step, jnp.array(0), jnp.array([0.3, 0.1, 1.0]))


def beside_a_scale(law):
    scale = ppl.sample("scale", dist.Exponential(1.0))
    c = ppl.sample("c", law)
    ppl.sample("y", dist.Normal(scale * jnp.where(jnp.arange(4) < c, 1.0, 2.0), 1.0).to_event(1), obs=jnp.ones(4))  # fmt: skip


PROGRAMS = {"unread": unread, "rows": rows, "one_row_read": one_row_read, "steps": steps}


@pytest.mark.fast("uniform-unread", "uniform_from_two-rows", "coin-unread")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("law", LAWS)
def test_a_sum_over_any_support_is_that_of_all_assignments(law, program):
    """`unread` was off by log k for laws of equal probabilities, whose density does not depend on the value."""
    whole = ppl.model(lambda: PROGRAMS[program](LAWS[law]))
    summed = ppl.eliminate(whole, "c")
    values = np.asarray(LAWS[law].enumerate_support(expand=False)).reshape(-1)
    shape = jax.eval_shape(lambda: whole.simulate(KEY).choices)["c"].shape
    table = itertools.product(values, repeat=int(np.prod(shape)))
    table = jnp.asarray(list(table)).reshape(-1, *shape)

    @jax.jit
    def found():
        log_joint = jax.vmap(lambda c: whole.log_density({"c": c}))(table)
        shares = [jnp.tensordot(jax.nn.softmax(log_joint), 1.0 * (table == v), 1) for v in values]
        by_hand = logsumexp(log_joint), jnp.stack(shares, -1), log_joint.max()
        trace = summed.trace({})
        assert "c" not in trace.sites and trace.choices == {}
        ours = trace.log_density, summed.posterior_probs({})["c"], summed.mode({})[1]
        return by_hand, ours, summed.posterior(KEY, {})["c"]

    by_hand, ours, drawn = found()
    for one, other in zip(ours, by_hand, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert np.isin(drawn, values).all()


@pytest.mark.slow  # NUTS and an export
@pytest.mark.parametrize("law", ["uniform", "uniform_from_two", "equal", "binomial"])
def test_draws_of_a_sampler_are_exported_without_the_sites_that_are_summed(law):
    summed = ppl.eliminate(lambda: beside_a_scale(LAWS[law]), "c")
    mcmc = MCMC(NUTS(summed), num_warmup=5, num_samples=5, num_chains=1, progress_bar=False)
    mcmc.run(KEY)
    assert list(inference.to_arviz(mcmc, key=KEY).posterior) == ["scale"]


@pytest.mark.slow_for("equal")
@pytest.mark.parametrize("law", ["uniform_from_two", "equal"])
def test_an_export_of_draws_has_no_summed_site(law):
    summed = ppl.eliminate(lambda: beside_a_scale(LAWS[law]), "c")
    tree = inference.to_arviz({"scale": np.ones(2)}, model=summed, key=KEY, groups=())
    assert list(tree.posterior) == ["scale"]
