"""A guide or proposal that cannot be what the model can, known at run time only, where the model must be covered."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

PRIOR = jnp.array([0.5, 0.3, 0.2])
affine = dist.transforms.AffineTransform

# name -> (model's law, guide's law of x, x that covers, x that does not)
LAWS = {
    "categorical": (
        lambda: dist.Categorical(PRIOR), dist.Categorical,
        jnp.array([0.4, 0.4, 0.2]), jnp.array([0.6, 0.4, 0.0]),
    ),
    "categorical logits": (
        lambda: dist.Categorical(PRIOR), lambda x: dist.Categorical(logits=x),
        jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 1.0, -jnp.inf]),
    ),
    "bernoulli": (lambda: dist.Bernoulli(0.3), dist.Bernoulli, 0.5, 1.0),
    "bernoulli logits": (
        lambda: dist.Bernoulli(0.3), lambda x: dist.Bernoulli(logits=x), 0.5, jnp.inf,
    ),
    "bernoulli for two categories": (
        lambda: dist.Categorical(jnp.array([0.3, 0.7])), dist.Bernoulli, 0.5, 1.0,
    ),
    "poisson": (lambda: dist.Poisson(2.0), dist.Poisson, 3.0, 0.0),
    "binomial": (lambda: dist.Binomial(3, 0.5), lambda x: dist.Binomial(3, x), 0.4, 0.0),
    "uniform": (lambda: dist.Uniform(0.0, 1.0), lambda x: dist.Uniform(0.0, x), 1.0, 0.5),
    "uniform, lower end": (
        lambda: dist.Uniform(0.0, 1.0), lambda x: dist.Uniform(x, 1.0), 0.0, 0.5,
    ),
    "scaled": (
        lambda: dist.Uniform(0.0, 1.0),
        lambda x: dist.TransformedDistribution(dist.Uniform(0.0, 1.0), affine(0.0, x)), 1.0, 0.5,
    ),
    "scaled, turned around": (
        lambda: dist.Uniform(-1.0, 0.0),
        lambda x: dist.TransformedDistribution(dist.Uniform(0.0, 1.0), affine(0.0, x)), -1.0, -0.5,
    ),
    "shifted": (
        lambda: dist.Exponential(1.0),
        lambda x: dist.TransformedDistribution(dist.Exponential(1.0), affine(x, 1.0)), 0.0, 0.5,
    ),
    "truncated": (
        lambda: dist.Normal(0.0, 1.0), lambda x: dist.TruncatedNormal(0.0, 1.0, low=x), -jnp.inf, 0.0,
    ),
    "elementwise": (
        lambda: dist.Uniform(0.0, 1.0).expand([2]).to_event(1),
        lambda x: dist.Uniform(0.0, x).to_event(1), jnp.ones(2), jnp.array([1.0, 0.5]),
    ),
}  # fmt: skip
rows = pytest.mark.parametrize("name", LAWS)


def pair(name):
    law, proposal, *numbers = LAWS[name]

    @ppl.model
    def model(x):
        z = ppl.sample("z", law())
        ppl.sample("y", dist.Normal(jnp.sum(z), 1.0), obs=0.8)

    @ppl.model
    def guide(x):
        ppl.sample("z", proposal(x))

    return model, guide, *(jnp.asarray(x, float) for x in numbers)


@pytest.mark.fast("scaled")
@rows
def test_a_proposal_that_misses_values_makes_the_evidence_nan(name, key):
    model, guide, good, bad = pair(name)
    run = jax.jit(
        lambda x: inference.smc(model, key, x, num_particles=20_000, proposal=guide).log_evidence
    )
    prior = jax.jit(lambda x: inference.smc(model, key, x, num_particles=20_000).log_evidence)
    assert abs(run(good) - prior(good)) < 0.1
    assert jnp.isnan(run(bad))


@pytest.mark.fast("scaled")
@pytest.mark.parametrize("name", ("categorical", "scaled"))
def test_a_proposal_that_misses_values_is_refused_outside_of_jit(name, key):
    model, guide, _, bad = pair(name)
    with pytest.raises(
        ValueError, match=r"proposal's law of site\(s\) \['z'\] gives probability 0"
    ):
        inference.smc(model, key, bad, num_particles=10, proposal=guide)


@pytest.mark.fast("bernoulli logits")
@rows
def test_objectives_that_must_cover_the_model_are_nan_or_refused(name, key):
    model, guide, good, bad = pair(name)
    cross_entropy = inference.forward_kl(model, guide, num_particles=2)
    assert jnp.isfinite(cross_entropy.value({}, key, good))
    try:
        value = cross_entropy.value({}, key, bad)
    except ValueError as err:
        assert "Site 'z'" in str(err)
    else:
        assert jnp.isnan(value)
    assert jnp.isnan(jax.jit(lambda x: cross_entropy.value({}, key, x))(bad))


def test_a_guide_that_misses_values_at_known_numbers_is_refused(key):
    model, guide, _, bad = pair("categorical")
    known = inference.forward_kl(lambda: model.fn(bad), lambda: guide.fn(bad), num_particles=2)
    with pytest.raises(ValueError, match="Site 'z': .* probability 0 to a value.*must reach all"):
        known.value({}, key)


@pytest.mark.fast("cubo")
@pytest.mark.parametrize(
    "make",
    (
        lambda m, g: inference.renyi(m, g, alpha=-1.0, num_particles=2),
        lambda m, g: inference.cubo(m, g, num_particles=1),
        lambda m, g: inference.f_divergence(m, g, f="chi2", num_particles=2),
        lambda m, g: inference.wake_phi(m, g, num_particles=2),
    ),
    ids=("renyi", "cubo", "chi2", "wake_phi"),
)
def test_upper_bounds_under_a_guide_whose_ends_are_computed(make, key):
    model, guide, good, bad = pair("uniform")
    objective = make(model, guide)
    assert jnp.isfinite(objective.value({}, key, good))
    assert jnp.isnan(jax.jit(lambda x: objective.value({}, key, x))(bad))


def test_a_lower_bound_needs_no_cover(key):
    model, guide, _, bad = pair("uniform")
    assert jnp.isfinite(jax.jit(lambda x: inference.elbo(model, guide).value({}, key, x))(bad))


@pytest.mark.fast("True")
@pytest.mark.parametrize("is_bad", (False, True))
def test_particles_of_a_normalised_program(is_bad, key):
    target, proposal, good, bad = pair("categorical")
    normalised = ppl.normalize(target, proposal=proposal, num_particles=3)
    total = ppl.expectation(
        lambda params, x: ppl.draw(normalised, x).log_density, strategies="reinforce"
    )
    assert jnp.isnan(total.value({}, key, bad if is_bad else good)) == is_bad


@pytest.mark.fast("True")
@pytest.mark.parametrize("is_bad", (False, True))
def test_importance_weights_of_a_fitted_guide(is_bad, key):
    model, _, good, bad = pair("categorical")

    @ppl.model
    def guide(x):
        ppl.sample("z", dist.Categorical(x * jnp.exp(ppl.param("scale", 0.0))))

    loss = inference.elbo(model, guide, strategies={"z": "enum"})
    fit = inference.fit(loss, optax.sgd(0.1), (good,), num_steps=1, key=key)
    posterior = fit.posterior(key, num_samples=4, args=(bad if is_bad else good,))
    assert bool(np.isnan(posterior.log_weights).all()) == is_bad


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", (1, 2))
def test_a_marginal_has_the_known_ends_of_its_sites(num_particles, key):
    @ppl.model
    def joint(x):
        rate = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        ppl.sample("z", dist.Exponential(rate))

    @ppl.model
    def gamma(x):
        ppl.sample("z", dist.Gamma(1.0, 1.0))

    @ppl.model
    def uniform(x):
        ppl.sample("z", dist.Uniform(0.0, x))

    model = ppl.marginal(joint, keep=["z"], num_particles=num_particles)
    make = lambda guide: inference.renyi(model, guide, alpha=-1.0, num_particles=2)
    assert jnp.isfinite(make(gamma).value({}, key, 1.0))
    assert jnp.isnan(jax.jit(lambda x: make(uniform).value({}, key, x))(1.0))


@pytest.mark.parametrize("scale", (1.0, 0.5))
def test_a_proposal_at_the_statement_must_cover_its_prior(scale, key):
    @ppl.model
    def model(x):
        z = ppl.sample("z", dist.Uniform(0.0, 1.0), proposal=dist.Uniform(0.0, x))
        ppl.sample("y", dist.Normal(z, 1.0), obs=0.8)

    bound = inference.renyi(model, ppl.guide_of(model), alpha=-1.0, num_particles=2)
    value = jax.jit(lambda x: bound.value({}, key, x))(scale)
    assert jnp.isnan(value) == (scale < 1)


class Dependent(dist.Distribution):
    """A uniform law that does not say what its support is."""

    support = dist.constraints.dependent

    def sample(self, key, sample_shape=()):
        return jax.random.uniform(key, sample_shape)

    def log_prob(self, value):
        return jnp.zeros(jnp.shape(value))


def test_a_proposal_whose_support_is_not_known_is_refused(key):
    @ppl.model
    def model():
        ppl.sample("z", dist.Uniform(0.0, 1.0))

    @ppl.model
    def guide():
        ppl.sample("z", Dependent())

    with pytest.raises(ValueError, match=r"site\(s\) \['z'\]"):
        inference.smc(model, key, num_particles=5, proposal=guide)


LEFT_TO_RIGHT = jnp.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
YS = jnp.array([0.1, 0.9, 1.2, 2.2])


@ppl.model
def chain(transition):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(LEFT_TO_RIGHT[k]))
        ppl.sample("y", dist.Normal(k, 1.0), obs=y)
        return k, None

    ppl.scan(step, jnp.array(0), YS)


@ppl.model
def moved(transition):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(transition[k]))
        return k, None

    ppl.scan(step, jnp.array(0), YS)


def exact(transition):
    alpha = jnp.array([1.0, 0.0, 0.0])
    for y in YS:
        alpha = (alpha @ transition) * jnp.exp(dist.Normal(jnp.arange(3.0), 1.0).log_prob(y))
    return jnp.log(alpha.sum())


@pytest.mark.fast("full")
@pytest.mark.parametrize("history", ("none", "ancestors", "full"))
def test_zeros_that_model_and_proposal_share_step_by_step_are_sound(history, key):
    other = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])
    result = jax.jit(
        lambda t: (
            inference.smc(
                chain, key, t, num_particles=20_000, proposal=moved, history=history
            ).log_evidence
        )
    )(other)
    assert abs(result - exact(LEFT_TO_RIGHT)) < 0.05


@pytest.mark.slow
def test_a_zero_of_the_proposal_alone_in_some_state_of_a_chain(key):
    other = LEFT_TO_RIGHT.at[1].set(jnp.array([0.0, 1.0, 0.0]))
    run = lambda t: inference.smc(chain, key, t, num_particles=2000, proposal=moved).log_evidence
    assert jnp.isnan(jax.jit(run)(other))
    with pytest.raises(ValueError, match="probability 0"):
        run(other)


@pytest.mark.slow
def test_smoothing_by_backward_draws_scores_choices_without_their_proposal(key):
    other = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])
    smoothed = inference.smooth(
        chain, key, other, num_particles=2000, num_samples=4000, proposal=moved
    )
    assert set(smoothed.paths) == {"k"}
    forward = [jnp.array([1.0, 0.0, 0.0])]
    for y in YS:
        like = jnp.exp(dist.Normal(jnp.arange(3.0), 1.0).log_prob(y))
        forward.append((forward[-1] @ LEFT_TO_RIGHT) * like)
    beta = jnp.ones(3)
    for t in reversed(range(len(YS))):
        mean = (forward[t + 1] * beta) / (forward[t + 1] * beta).sum() @ jnp.arange(3.0)
        assert abs(smoothed.paths["k"][:, t].mean() - mean) < 0.06
        like = jnp.exp(dist.Normal(jnp.arange(3.0), 1.0).log_prob(YS[t]))
        beta = LEFT_TO_RIGHT @ (like * beta)


def test_a_branch_has_the_limits_of_its_own_law(key):
    def branching(end):
        @ppl.model
        def program(x):
            flag = ppl.sample("flag", dist.Bernoulli(0.5))
            ppl.cond(
                flag == 1,
                lambda: ppl.sample("z", dist.Uniform(0.0, 1.0)),
                lambda: ppl.sample("z", dist.Uniform(0.0, end(x))),
            )

        return program

    model, guide = branching(lambda x: 0.4), branching(lambda x: x)
    run = jax.jit(
        lambda x: inference.smc(model, key, x, num_particles=500, proposal=guide).log_evidence
    )
    assert abs(run(0.5)) < 0.2
    assert jnp.isnan(run(0.3))
