"""A guide is scored with its model only where both count the same: laws, scales, rows and supports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.autoguide as autoguide
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
X = jnp.array([0.7, -0.3, 1.2, 0.1, -0.9, 0.4])


def model(x):
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(logits=-0.4))
        ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)


def drawing(rows=2, plate="rows"):
    """The model on rows that its plate draws."""

    def program():
        with ppl.plate(plate, 6, subsample_size=rows) as i:
            b = ppl.sample("b", dist.Bernoulli(logits=-0.4))
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=X[i])

    return program


def bernoulli(name, size=None):
    return ppl.sample(name, dist.Bernoulli(logits=jnp.full(size or (), 0.5)))


def without_plate(x):
    bernoulli("b", x.shape[0])


def other_name(x):
    with ppl.plate("others", x.shape[0]):
        bernoulli("b")


def half(program):
    return numpyro.handlers.scale(program, scale=0.5)


def halved_rows(x):
    with numpyro.handlers.scale(scale=jnp.array([1.0, 0.5, 1.0, 1.0, 1.0, 1.0])):
        model(x)


def same_plate(x):
    with ppl.plate("rows", x.shape[0]):
        bernoulli("b")


def nested(x):
    with ppl.plate("columns", 2, dim=-2), ppl.plate("rows", x.shape[0], dim=-1):
        b = bernoulli("b")
        ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=jnp.stack([x, x]))


def one_of_two(x):
    with ppl.plate("columns", 2, dim=-2):
        bernoulli("b", (2, x.shape[0]))


def vector_model(x):
    with ppl.plate("rows", x.shape[0]):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


def event_guide(x):
    ppl.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[0]]).to_event(1))


SCALED = {
    "no plate": (model, without_plate, {"rows": 12}),
    "a plate of another name": (model, other_name, {"rows": 12}),
    "one plate of two": (nested, one_of_two, {"rows": 12, "columns": 4}),
    "an event in place of rows": (vector_model, event_guide, {"rows": 12}),
    "a scale in the model": (half(model), same_plate, {}),
    "a scale in the guide": (model, half(same_plate), {}),
    "an array of scales in the model": (halved_rows, same_plate, {}),
    "an endless plate": (model, without_plate, {"rows": np.inf}),
}
OBJECTIVES = {
    "elbo": lambda p, q: inference.elbo(p, q, strategies="auto"),
    "iwelbo": lambda p, q: inference.iwelbo(
        p, q, num_particles=2, per="rows", strategies={"*": "reinforce"}
    ),
    "wake_phi": lambda p, q: inference.wake_phi(p, q, num_particles=2, per="rows"),
    "rws": lambda p, q: inference.rws(p, q, num_particles=2, per="rows"),
    "log_variance": lambda p, q: inference.log_variance(p, q, num_particles=2),
}
SITE = r"Site '[bz]': model and guide scale its log-prob differently \(model x .*guide x .*plate"


@pytest.mark.fast(
    "elbo-a scale in the guide",
    "elbo-an array of scales in the model",
    "elbo-an event in place of rows",
    "iwelbo-a scale in the guide",
    "iwelbo-an array of scales in the model",
    "log_variance-a scale in the guide",
    "log_variance-a scale in the model",
    "rws-a scale in the guide",
    "rws-a scale in the model",
    "wake_phi-a scale in the guide",
    "wake_phi-a scale in the model",
    "wake_phi-an array of scales in the model",
)
@pytest.mark.parametrize("case", SCALED)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_scales_that_differ_are_refused(case, name):
    p, q, sizes = SCALED[case]
    objective = OBJECTIVES[name](p, q)
    objective = objective.with_plate_sizes(sizes) if sizes else objective
    with pytest.raises(ValueError, match=SITE):
        objective.value({}, KEY, X)


def test_the_refusal_is_the_same_under_jit_and_inside_a_program():
    objective = inference.elbo(model, without_plate, strategies="enum").with_plate_sizes(
        {"rows": 12}
    )
    with pytest.raises(ValueError, match=SITE):
        jax.jit(lambda key: objective.value({}, key, X))(KEY)

    def cost(x):
        q = ppl.draw(without_plate, x)
        p = ppl.score(ppl.rescale_plates(model, {"rows": 12}), q, x)
        return p.log_density - q.log_density

    with pytest.raises(ValueError, match=SITE):
        ppl.expectation(lambda _: cost(X), strategies="enum").value({}, KEY)


def test_fit_refuses_a_guide_without_the_sliced_plate():
    import optax

    objective = inference.elbo(model, without_plate, strategies="enum")
    with pytest.raises(ValueError, match=SITE):
        inference.fit(
            objective,
            optax.adam(0.1),
            (X,),
            num_steps=1,
            subsample={"rows": 2},
            key=KEY,
            progress=False,
        )


@pytest.mark.parametrize(
    "guide",
    [lambda: bernoulli("b", 2), drawing(plate="other"), lambda: same_plate(X[:2])],
    ids=["no plate", "another plate", "no subsample"],
)
def test_rows_that_a_plate_draws_are_the_same_on_both_sides(guide):
    if guide.__name__ == "program":
        guide = ppl.block(guide, ["x"])
    with pytest.raises(ValueError, match="Site 'b'|Plate 'rows' has"):
        inference.elbo(drawing(), guide, strategies="enum").value({}, KEY)


def test_scales_known_under_jit_only_are_compared_in_the_number():
    def scaled(scale, x):
        with numpyro.handlers.scale(scale=scale), ppl.plate("rows", x.shape[0]):
            b = bernoulli("b")
        return b

    def p(one, other, x):
        b = scaled(one, x)
        with ppl.plate("data", x.shape[0]):
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)

    bound = inference.elbo(p, lambda one, other, x: scaled(other, x), strategies="enum")
    run = jax.jit(lambda one, other: bound.value({}, KEY, one, other, X))
    assert np.isfinite(run(0.5, 0.5))
    assert np.isnan(run(0.5, 0.25))


def test_scales_on_both_sides_are_sound():
    scaled = inference.elbo(half(model), half(same_plate), strategies="enum")
    array = inference.elbo(
        halved_rows,
        numpyro.handlers.scale(same_plate, scale=jnp.array([1.0, 0.5, 1.0, 1.0, 1.0, 1.0])),
        strategies="enum",
    )
    plain = inference.elbo(model, same_plate, strategies="enum").value({}, KEY, X)
    np.testing.assert_allclose(scaled.value({}, KEY, X), plain / 2, rtol=1e-5)
    assert np.isfinite(array.value({}, KEY, X))


def hierarchy(x, scale=None):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    s = ppl.sample("s", dist.HalfNormal(1.0))
    with ppl.plate("rows", 6, subsample_size=scale) as i:
        z = ppl.sample("z", dist.Normal(m, s))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x[i])


@pytest.mark.slow  # compiles two objectives
def test_autoguides_with_plates_that_subsample_give_the_value_of_all_rows():
    whole, part = lambda x: hierarchy(x), lambda x: hierarchy(x, 2)
    bounds = [inference.elbo(p, autoguide.AutoNormal(p, init_scale=0.3)) for p in (whole, part)]
    params = [jax.tree.map(jnp.zeros_like, b.init(KEY, X)) for b in bounds]
    keys = jax.random.split(KEY, 40_000)
    mean, error = zip(
        *(
            (v.mean(), v.std() / 200)
            for b, p in zip(bounds, params, strict=True)
            for v in [jax.jit(jax.vmap(lambda k, b=b, p=p: b.value(p, k, X)))(keys)]
        ),
        strict=True,
    )
    # A scale missing on one side shifts the value by more than 2.
    assert abs(mean[0] - mean[1]) < 4.5 * np.hypot(*error)


def normal_model():
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(z, 1.0), obs=1.5)


def guide_with(kind):
    def guide():
        z = ppl.sample("z", dist.Normal(0.3, 1.0))
        if kind == "factor":
            ppl.factor("f", -5.0)
        if kind == "observed":
            ppl.sample("y", dist.Normal(z, 1.0), obs=3.0)

    return guide


LAWS = {
    "elbo": lambda p, q: inference.elbo(p, q).value({}, KEY),
    "stl": lambda p, q: inference.elbo(p, q, gradient="stl").value({}, KEY),
    "analytic": lambda p, q: inference.elbo(p, q, kl="analytic").value({}, KEY),
    "dreg": lambda p, q: inference.iwelbo(p, q, num_particles=2, gradient="dreg").value({}, KEY),
    "iwelbo under jit": lambda p, q: jax.jit(inference.iwelbo(p, q, num_particles=2).value)(
        {}, KEY
    ),
    "forward_kl": lambda p, q: inference.forward_kl(p, q, num_particles=2).value({}, KEY),
    "proposal": lambda p, q: inference.wake_phi(
        p, guide_with(""), num_particles=2, proposal=q
    ).value({}, KEY),
    "log_variance": lambda p, q: inference.log_variance(p, q, num_particles=2).value({}, KEY),
    "fivo": lambda p, q: inference.fivo(p, q, num_particles=2).value({}, KEY),
    "chi": lambda p, q: inference.chi(p, q).value({}, KEY),
    "smc": lambda p, q: inference.smc(p, KEY, num_particles=2, proposal=q),
    "normalize": lambda p, q: ppl.normalize(p, proposal=q, num_particles=2).simulate(KEY),
    "marginal": lambda p, q: ppl.marginal(q, keep=["z"]).simulate(KEY),
}


@pytest.mark.parametrize("kind", ["observed", "factor"])
@pytest.mark.parametrize("name", LAWS)
def test_a_guide_that_observes_or_has_a_factor_is_refused(kind, name):
    with pytest.raises(ValueError, match="observed site|factor"):
        LAWS[name](normal_model, guide_with(kind))


def test_model_and_guide_exchanged_are_refused():
    with pytest.raises(ValueError, match="(?s)Site 'x'.*observed site.*swapped"):
        inference.elbo(guide_with(""), normal_model).value({}, KEY)


def test_a_model_with_a_factor_dreams_nothing():
    def p():
        normal_model()
        ppl.factor("f", 1.0)

    loss = inference.sleep(p, lambda x: guide_with("")(), data_args=lambda seen: (seen["x"],))
    with pytest.raises(ValueError, match="Site 'f': the model of a sleep phase has a factor"):
        loss.value({}, KEY)


def drawn_from(law):
    def program():
        ppl.sample("z", law)

    return program


def prior(law):
    def program():
        z = ppl.sample("z", law)
        ppl.sample("x", dist.Normal(jnp.sum(z), 1.0), obs=0.5)

    return program


INSIDE = {
    "Normal for HalfNormal": (dist.HalfNormal(1.0), dist.Normal(0.0, 1.0)),
    "LogNormal for Beta": (dist.Beta(2.0, 2.0), dist.LogNormal(0.0, 1.0)),
    "a wider interval": (dist.Uniform(0.0, 1.0), dist.Uniform(-0.5, 1.5)),
    "Normals for Dirichlet": (
        dist.Dirichlet(jnp.ones(3)),
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
    ),
    "Dirichlet for Normals": (
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
        dist.Dirichlet(jnp.ones(3)),
    ),
    "more categories": (dist.Categorical(jnp.ones(3) / 3), dist.Categorical(jnp.ones(5) / 5)),
    "counts for a coin": (dist.Bernoulli(0.3), dist.Poisson(1.0)),
    "a relaxed coin": (dist.Bernoulli(0.3), dist.RelaxedBernoulliLogits(0.5, 0.0)),
}


@pytest.mark.parametrize("case", INSIDE)
def test_a_guide_outside_of_the_support_is_refused(case):
    p, q = INSIDE[case]
    strategies = {"*": "reinforce"}
    for bound in (
        inference.elbo(prior(p), drawn_from(q), strategies=strategies),
        inference.iwelbo(prior(p), drawn_from(q), num_particles=2, strategies=strategies),
    ):
        for value in (bound.value, jax.jit(bound.value)):
            with pytest.raises(
                ValueError, match="Site 'z': the guide draws it from .*minus infinity.*law within"
            ):
                value({}, KEY)


def test_an_inline_guide_outside_of_the_support_is_refused():
    def p():
        z = ppl.sample("z", dist.HalfNormal(1.0), proposal=dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=0.5)

    for kl in ("sampled", "analytic"):
        with pytest.raises(ValueError, match="Site 'z': the guide draws it from Normal"):
            inference.elbo(p, ppl.guide_of(p), kl=kl).value({}, KEY)


SOUND = {
    "LogNormal for HalfNormal": (dist.HalfNormal(1.0), dist.LogNormal(0.0, 1.0)),
    "a scaled Gamma for HalfNormal": (
        dist.HalfNormal(1.0),
        dist.TransformedDistribution(
            dist.Gamma(2.0, 1.0), dist.transforms.AffineTransform(0.0, 2.0)
        ),
    ),
    "Beta for Uniform": (dist.Uniform(0.0, 1.0), dist.Beta(2.0, 2.0)),
    "a narrower interval": (dist.Uniform(0.0, 1.0), dist.Uniform(0.2, 0.8)),
    "fewer categories": (dist.Categorical(jnp.ones(5) / 5), dist.Categorical(jnp.ones(3) / 3)),
    "a coin for two categories": (dist.Categorical(jnp.ones(2) / 2), dist.Bernoulli(0.3)),
    "counts up to 3 for counts": (dist.Poisson(1.0), dist.Binomial(3, 0.3)),
}


@pytest.mark.slow_for(
    "Beta for Uniform", "a scaled Gamma for HalfNormal", "counts up to 3 for counts"
)
@pytest.mark.parametrize("case", SOUND)
def test_a_guide_within_the_support_is_taken(case):
    p, q = SOUND[case]
    bound = inference.elbo(prior(p), drawn_from(q), strategies={"*": "auto"})
    assert np.isfinite(bound.value({}, KEY))


def test_a_point_mass_is_taken():
    def guide():
        ppl.sample("z", dist.Delta(ppl.param("z", 0.5)))

    bound = inference.elbo(prior(dist.HalfNormal(1.0)), guide)
    assert np.isfinite(bound.value({"z": 0.5}, KEY))


NARROW = (prior(dist.Normal(0.0, 1.0)), drawn_from(dist.Uniform(-1.0, 1.0)))
COVERING = {
    "forward_kl": lambda p, q: inference.forward_kl(p, q, num_particles=2).value({}, KEY),
    "rws": lambda p, q: inference.rws(p, q, num_particles=2).value({}, KEY),
    "sleep": lambda p, q: inference.sleep(p, lambda x: q(), data_args=lambda s: (s["x"],)).value(
        {}, KEY
    ),
    "chi": lambda p, q: inference.chi(p, q).value({}, KEY),
    "cubo": lambda p, q: inference.cubo(p, q, num_particles=2).value({}, KEY),
    "renyi above": lambda p, q: inference.renyi(p, q, alpha=-1.0, num_particles=2).value({}, KEY),
    "f_divergence": lambda p, q: inference.f_divergence(p, q, f="chi2").value({}, KEY),
    "smc": lambda p, q: inference.smc(p, KEY, num_particles=2, proposal=q),
    "normalize": lambda p, q: ppl.normalize(p, proposal=q, num_particles=2).simulate(KEY),
}


@pytest.mark.parametrize("name", COVERING)
def test_what_weighs_draws_needs_a_guide_that_reaches_all(name):
    with pytest.raises(ValueError, match="Site 'z'.*must reach all|Site 'z': .*minus infinity"):
        COVERING[name](*NARROW)


def test_lower_bounds_take_a_guide_on_a_part_of_the_support():
    assert np.isfinite(inference.elbo(*NARROW).value({}, KEY))
    assert np.isfinite(inference.f_divergence(*NARROW, f="hellinger").value({}, KEY))


@pytest.mark.slow
def test_particles_take_a_proposal_beyond_the_support():
    p, q = prior(dist.Uniform(-1.0, 1.0)), drawn_from(dist.Normal(0.0, 1.0))
    exact = (0.5 * (jax.scipy.stats.norm.cdf(1.5) - jax.scipy.stats.norm.cdf(-0.5))).item()
    weights = [
        float(inference.smc(p, jax.random.key(i), num_particles=20_000, proposal=q).log_evidence)
        for i in range(3)
    ]
    # The weights are bounded by 0.4 / 0.24 and 20,000 of them: standard error below 0.005.
    np.testing.assert_allclose(np.exp(weights), exact, atol=0.0225)


def test_an_auxiliary_draw_outside_of_its_plate_is_refused():
    def guide(x):
        u = ppl.sample("u", dist.Normal(jnp.zeros(x.shape[0]), 1.0), infer={"is_auxiliary": True})
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("z", dist.Delta(u))

    bound = inference.elbo(vector_model, guide).with_plate_sizes({"rows": 12})
    with pytest.raises(ValueError, match="Site 'u': .*auxiliary site x 1.*inside of the plates"):
        bound.value({}, KEY, X)


def masked(program, mask):
    return numpyro.handlers.mask(program, mask=mask)


SEEN = jnp.array([True, True, False, True, True, True])


def test_a_mask_in_the_guide_alone_or_another_one_is_refused():
    def p(mask):
        def program(x):
            with ppl.plate("rows", x.shape[0]), numpyro.handlers.mask(mask=mask):
                b = ppl.sample("b", dist.Bernoulli(logits=-0.4))
                ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)

        return program

    for own, other in ((True, SEEN), (SEEN, ~SEEN)):
        bound = inference.elbo(p(own), masked(same_plate, other), strategies="enum")
        with pytest.raises(ValueError, match="Site 'b': the guide's density leaves out elements"):
            bound.value({}, KEY, X)
    bound = inference.elbo(p(SEEN), masked(same_plate, SEEN), strategies="enum")
    assert np.isfinite(bound.value({}, KEY, X))


def test_masks_known_under_jit_only_are_compared_in_the_number():
    def p(own, other, x):
        with ppl.plate("rows", x.shape[0]), numpyro.handlers.mask(mask=own):
            b = ppl.sample("b", dist.Bernoulli(logits=-0.4))
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)

    def q(own, other, x):
        with ppl.plate("rows", x.shape[0]), numpyro.handlers.mask(mask=other):
            bernoulli("b")

    run = jax.jit(
        lambda own, other: inference.elbo(p, q, strategies="enum").value({}, KEY, own, other, X)
    )
    assert np.isfinite(run(SEEN, SEEN)) and np.isnan(run(SEEN, ~SEEN))


def test_a_flat_prior_takes_a_guide_without_a_mask():
    def flat():
        z = ppl.sample("z", dist.Normal(0.0, 1.0).mask(False))
        ppl.sample("x", dist.Normal(z, 1.0), obs=0.5)

    # log of the integral of N(0.5; z, 1) over z is 0, and the guide is the posterior.
    bound = inference.elbo(flat, drawn_from(dist.Normal(0.5, 1.0)))
    np.testing.assert_allclose(bound.value({}, KEY), 0.0, atol=1e-6)


def test_an_intervention_in_a_guide_is_no_observation():
    def p():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=1.5)

    def q():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("z", dist.Normal(a, 1.0))

    assert np.isfinite(inference.elbo(p, ppl.intervene(q, {"a": 0.3})).value({}, KEY))
    with pytest.raises(ValueError, match="Site 'a': the guide has an observed site.*ppl.intervene"):
        inference.elbo(p, ppl.condition(q, {"a": 0.3})).value({}, KEY)


@pytest.mark.slow  # a guide of many steps
def test_a_factor_of_an_autoguide_belongs_to_its_law():
    guide = autoguide.AutoDAIS(normal_model)
    bound = inference.elbo(normal_model, guide)
    assert np.isfinite(bound.value(bound.init(KEY), KEY))


# Scores that no guide's trace was handed to.


@inference.objective
def by_density(model, guide, *args):
    q = ppl.draw(guide, *args)
    return model.log_density(q.choices, *args) - q.log_density


@inference.objective
def by_trace_of_copies(model, guide, *args):
    q = ppl.draw(guide, *args)
    p = model.trace({name: jnp.sin(x) for name, x in q.choices.items()}, *args)
    return p.log_density - q.log_density


@inference.objective
def in_lanes(model, guide, *args):
    def lane():
        q = ppl.draw(guide, *args)
        return model.log_density(dict(q.choices), *args) - q.log_density

    return jax.nn.logsumexp(ppl.particles(2)(lane)())


@pytest.mark.parametrize("own", [by_density, in_lanes])
@pytest.mark.parametrize(
    ("guide", "sizes"),
    [(without_plate, {"rows": 12}), (other_name, {"rows": 12}), (half(same_plate), {}), (halved_rows, {})],
    ids=["no plate", "another plate", "scale", "scales"],
)  # fmt: skip
def test_own_objectives_are_compared_at_their_scores(own, guide, sizes):
    guide = ppl.block(guide, ["x"]) if guide is halved_rows else guide
    bound = own(model, guide, strategies="reinforce").with_plate_sizes(sizes)
    message = r"Site 'b': model and guide scale its log-prob differently \(model x .*guide x"
    with pytest.raises(ValueError, match=message):
        bound.value({}, KEY, X)


def test_a_value_that_is_computed_is_compared_by_its_name_and_one_that_is_renamed_by_itself():
    normal = lambda name, scale: numpyro.handlers.scale(
        lambda: ppl.sample(name, dist.Normal(0.0, 1.0)), scale=scale
    )
    with pytest.raises(
        ValueError, match="Site 'z': model and guide scale its log-prob differently"
    ):
        by_trace_of_copies(normal("z", 2.0), normal("z", 1.0)).value({}, KEY)
    assert np.isfinite(by_trace_of_copies(normal("z", 2.0), normal("z", 2.0)).value({}, KEY))

    @inference.objective
    def renamed(model, guide):
        q = ppl.draw(guide)
        return model.log_density({"w": q.choices["z"]}) - q.log_density

    with pytest.raises(
        ValueError, match="Site 'w': model and guide scale its log-prob differently"
    ):
        renamed(normal("w", 2.0), normal("z", 1.0)).value({}, KEY)
    assert renamed(normal("w", 2.0), normal("z", 2.0)).value({}, KEY) == 0.0


def test_scales_that_are_known_under_jit_only_are_compared_in_the_number():
    scaled = lambda s: numpyro.handlers.scale(
        lambda *_: ppl.sample("z", dist.Normal(0.0, 1.0)), scale=s
    )

    @inference.objective
    def own(model, guide, one, other):
        q = ppl.draw(lambda: scaled(other)())
        return ppl.model(lambda: scaled(one)()).log_density(q.choices) - q.log_density

    dummy = ppl.model(scaled(1.0))
    same, unlike = jnp.array(2.0), jnp.array(3.0)
    assert own(dummy, dummy).value({}, KEY, same, same) == 0.0
    assert np.isnan(own(dummy, dummy).value({}, KEY, same, unlike))
