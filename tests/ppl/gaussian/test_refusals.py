"""What cannot be integrated exactly is refused when the program is traced, by site, with what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import ppl

Y = jnp.arange(3.0)


def z(**law):
    return ppl.sample("z", dist.Normal(jnp.zeros(3), 1.0, **law).to_event(1))


def observed(mean, scale=1.0):
    ppl.sample("y", dist.Normal(mean, scale).to_event(1), obs=Y)


def curved():
    observed(jnp.exp(z()))


def product():
    x = z()
    observed(x * x)


def kinked():
    observed(jax.nn.relu(z()))


def compared():
    x = z()
    observed(jnp.where(x > 0, x, 0.0))


def counted():
    observed(z().astype(int).astype(float))


def index():
    x = z()
    observed(jnp.ones(3)[x.argmax()] + x)


def stopped():
    observed(jax.lax.stop_gradient(z()))


def scale_of_it():
    x = z()
    observed(x, jnp.exp(x))


def counts():
    ppl.sample("y", dist.Poisson(jnp.exp(z())).to_event(1), obs=jnp.arange(3))


def heavy_tails():
    ppl.sample("y", dist.StudentT(3.0, z()).to_event(1), obs=Y)


def low_rank():
    ppl.sample("y", dist.LowRankMultivariateNormal(z(), jnp.ones((3, 1)), jnp.ones(3)), obs=Y)


def folded():
    ppl.sample("y", dist.LogNormal(z()).to_event(1), obs=Y + 1)


def weighed():
    ppl.factor("f", -z().sum())


def observation_of_it():
    x = z()
    ppl.sample("y", dist.Normal(x, 1.0).to_event(1), obs=Y - x)


def masked_prior():
    x = ppl.sample("z", dist.Normal(jnp.zeros(3), 1.0).mask(Y > 1).to_event(1))
    observed(x)


def scaled_data():
    x = z()
    with numpyro.handlers.scale(scale=2.0):
        observed(x)


def scaled_altogether():
    with numpyro.handlers.scale(scale=2.0):
        observed(z())


def subsampled_data():
    x = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 10, subsample_size=3):
        ppl.sample("y", dist.Normal(x, 1.0), obs=Y)


def steps_before():
    x = z()
    ppl.scan(lambda c, x: (ppl.sample("y", dist.Normal(x + c, 1.0), obs=0.0), None), 0.0, x)


def in_a_branch():
    x = z()
    ppl.cond(Y[0] > 1, lambda: observed(x), lambda: None)


def branch_by_it():
    x = z()
    ppl.cond(
        x[0] > 1, lambda: ppl.sample("a", dist.Normal()), lambda: ppl.sample("a", dist.Normal())
    )


def as_particles():
    observed(ppl.particles(2)(z)()[0])


def noise_of_its_own():
    observed(z() + jax.random.normal(ppl.rng_key("noise")))


def a_laplace():
    ppl.sample("z", dist.Laplace())


def too_many():
    x = ppl.sample("z", dist.Normal(jnp.zeros(3000), 1.0).to_event(1))
    observed(x[:3])


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (curved, r"Site 'y': its mean depends on sites.*'exp'.*Keep the sites as choices"),
        (product, r"Site 'y': its mean.*'(mul|square|integer_pow)'"),
        (kinked, r"Site 'y': its mean.*'the custom derivative of relu'"),
        (compared, r"Site 'y': its mean.*'gt'"),
        (counted, r"Site 'y': its mean.*'convert_element_type'"),
        (index, r"Site 'y': its mean.*'argmax'"),
        (stopped, r"Site 'y': its mean.*'stop_gradient'"),
        (scale_of_it, r"Site 'y': its scale or mask.*only its mean may"),
        (counts, r"Site 'y': its law, Poisson.*not normal"),
        (heavy_tails, r"Site 'y': its law, StudentT.*not normal"),
        (low_rank, r"Site 'y': its law, LowRankMultivariateNormal"),
        (folded, r"Site 'y': its law, LogNormal"),
        (weighed, r"Site 'f': the factor.*Make it an observation"),
        (observation_of_it, r"Site 'y': what is observed"),
        (masked_prior, r"Site 'z': it is masked.*Mask the observations only"),
        (scaled_data, r"Site 'y': log-probs that meet.*'z': 1.0, 'y': None"),
        (scaled_altogether, r"Site 'z': log-probs that meet.*None"),
        (subsampled_data, r"Plate 'rows' subsamples 3 of 10 rows by itself"),
        (steps_before, r"Site 'y': its mean.*a scan over sites outside of it.*inside of the step"),
        (in_a_branch, r"a statement in a branch of ppl.cond meets the sites \['z'\]"),
        (branch_by_it, r"a statement in a branch of ppl.cond meets the sites \['z'\]"),
        (as_particles, r"ppl.particles stands inside the program"),
        (noise_of_its_own, r"ppl.rng_key\('noise'\).*Make the draw a site"),
        (a_laplace, r"Site 'z'.*finite support, but this one is Laplace"),
        (too_many, r"Site 'z': .*3000 numbers jointly, more than 2048"),
    ],
)
def test_refused(program, match):
    with pytest.raises(ValueError, match=match):
        ppl.eliminate(program, "z").log_density({})


def test_choices_are_those_that_are_left():
    def two():
        ppl.sample("a", dist.Normal(z()[0], 1.0))

    left = ppl.eliminate(two, "z")
    with pytest.raises(ppl.ChoiceMismatch, match=r"\['z'\] are integrated out and take no value"):
        left.log_density({"a": 0.0, "z": Y})
    with pytest.raises(ppl.ChoiceMismatch, match=r"missing \['a'\]"):
        left.log_density({})
    with pytest.raises(ValueError, match=r"\['b'\] are no latent sites"):
        ppl.eliminate(two, ["z", "b"]).log_density({"a": 0.0})
    with pytest.raises(TypeError, match=r"its sites are normal.*posterior_marginals"):
        left.posterior_probs({"a": 0.0})


def test_a_site_that_numbers_leave_out_is_refused():
    def program(flag):
        ppl.sample("a", dist.Normal(ppl.sample("z", dist.Normal(0.0, 1.0)) if flag else 0.0, 1.0))

    left = ppl.eliminate(program, "z")
    left.log_density({"a": 0.0}, np.array(True))
    with pytest.raises(
        ValueError, match=r"\['z'\] are no latent sites.*are \['a'\].*integrate out"
    ):
        left.log_density({"a": 0.0}, np.array(False))


def test_mixed_sites_have_no_normal_marginals_and_no_known_mode():
    def mixed():
        k = ppl.sample("k", dist.Bernoulli(0.3))
        x = ppl.sample("z", dist.Normal(1.0 * k, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=0.3)

    both = ppl.eliminate(mixed, ["k", "z"])
    with pytest.raises(TypeError, match=r"\['k'\] are summed out.*Draw them"):
        both.posterior_marginals({})
    with pytest.raises(TypeError, match="most probable assignment.*compare values of"):
        both.mode({})
    np.testing.assert_allclose(
        both.log_density({}),
        np.logaddexp(
            np.log(0.7) + float(dist.Normal(0.0, 2**0.5).log_prob(0.3)),
            np.log(0.3) + float(dist.Normal(1.0, 2**0.5).log_prob(0.3)),
        ),
        rtol=1e-6,
    )
