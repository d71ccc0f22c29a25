"""Strategies that cannot serve a site soundly are refused by message, before any device work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms

from lapilli import inference, ppl
from lapilli.ppl.strategies._registry import AUTO, STRATEGIES, TRIED

KEY = jax.random.key(0)


def plan(make, strategies=None, *, cost=jnp.sum, **site):
    """The plan of E[cost(z)] with z ~ make(theta), theta = 0.5."""

    def fn(theta):
        return cost(1.0 * ppl.sample("z", make(theta), **site))

    return ppl.expectation(fn, strategies=strategies).plan(0.5)


# Supports that move with a parameter.


MOVING = {
    "uniform_high": lambda h: dist.Uniform(0.0, h),
    "uniform_low": lambda h: dist.Uniform(h, 3.0),
    "expanded": lambda h: dist.Uniform(0.0, h).expand([3]).to_event(1),
    "masked": lambda h: dist.Uniform(0.0, h).mask(True),
    "truncated_normal": lambda h: dist.TruncatedNormal(0.0, 1.0, low=h),
    "two_sided": lambda h: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=h),
    "pareto": lambda h: dist.Pareto(h, 2.0),
    "scaled_beta": lambda h: dist.TransformedDistribution(
        dist.Beta(2.0, 2.0), transforms.AffineTransform(0.0, h, domain=constraints.unit_interval)
    ),
    "shifted_exponential": lambda h: dist.TransformedDistribution(
        dist.Exponential(1.0), transforms.AffineTransform(h, 1.0, domain=constraints.positive)
    ),
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
@pytest.mark.parametrize("strategy", ["reinforce", "reinforce_loo"])
def test_a_score_site_whose_support_depends_on_a_parameter_is_refused(make, strategy):
    with pytest.raises(ValueError, match="Site 'z': the support of .* depends on a parameter"):
        plan(make, strategy)


@pytest.mark.parametrize("strategy", ["mvd", "enum"])
def test_other_strategies_refuse_a_moving_support_too(strategy):
    with pytest.raises(ValueError, match="Site 'z'"):
        plan(MOVING["uniform_high"], strategy)


def test_a_moving_support_is_fine_where_the_sampler_is_differentiable():
    assert plan(MOVING["uniform_high"])["z"].strategy == "reparam"
    assert plan(MOVING["uniform_high"], "auto")["z"].strategy == "reparam"


@pytest.mark.parametrize("upstream", ["reparam", "reinforce"])
def test_a_support_that_depends_on_another_site(upstream):
    """On a reparameterised site it is refused; a score site passes no derivative through its value."""

    def cost(m):
        h = ppl.sample("h", dist.LogNormal(m, 1.0))
        return ppl.sample("z", dist.Uniform(0.0, h)) ** 2

    expectation = ppl.expectation(cost, strategies={"h": upstream, "z": "reinforce"})
    if upstream == "reparam":
        with pytest.raises(
            ValueError, match="the support of Uniform depends on the reparameterised site 'h'"
        ):
            expectation.plan(0.3)
    else:
        expectation.plan(0.3)


def test_a_support_that_depends_on_a_parameter_through_a_score_site_or_data_is_fine():
    def cost(p, high):
        k = ppl.sample("k", dist.Bernoulli(p), strategy="reinforce")
        u = ppl.sample("u", dist.Uniform(0.0, 1.0 + k), strategy="reinforce")
        return u * ppl.sample("z", dist.Uniform(0.0, high), strategy="reinforce")

    ppl.expectation(cost).plan(0.3, jnp.asarray(2.0))


def test_a_moving_support_inside_regions_is_refused():
    def scanned(h):
        body = lambda c, _: (c + ppl.sample("z", dist.Uniform(0.0, h)), None)
        return ppl.scan(body, 0.0, None, length=2)[0]

    def lanes(h):
        return ppl.particles(2)(lambda: ppl.sample("z", dist.Uniform(0.0, h)))().sum()

    def branch(h):
        return ppl.cond(h > 0, lambda: ppl.sample("z", dist.Uniform(0.0, h)), lambda: 0.0)

    for fn in (scanned, lanes, branch):
        with pytest.raises(ValueError, match="Site 'z': the support of Uniform depends on a param"):
            ppl.expectation(fn, strategies="reinforce").plan(0.5)


# Strategies that a distribution cannot have.

CANNOT = {
    "reparam_categorical": ("reparam", lambda t: dist.Categorical(logits=t * jnp.ones(3)), "differentiable"),
    "reparam_bernoulli": ("reparam", lambda t: dist.Bernoulli(t), "differentiable"),
    "reparam_poisson": ("reparam", lambda t: dist.Poisson(t), "differentiable"),
    "reparam_mixture": ("reparam", lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.ones(2)), dist.Normal(t * jnp.ones(2), 1.0)), "differentiable"),
    "enum_poisson": ("enum", lambda t: dist.Poisson(t), "finite support"),
    "enum_normal": ("enum", lambda t: dist.Normal(t, 1.0), "finite support"),
    "enum_geometric": ("enum", lambda t: dist.Geometric(t), "finite support"),
    "enum_uneven_counts": ("enum", lambda t: dist.Binomial(jnp.array([2, 3]), t), "the same in all rows"),
    "mvd_beta": ("mvd", lambda t: dist.Beta(t, 1.0), "no weak-derivative triple for Beta"),
    "mvd_student": ("mvd", lambda t: dist.StudentT(3.0, t), "no weak-derivative triple"),
    "implicit_normal": ("implicit", lambda t: dist.Normal(t, 1.0), "not for Normal"),
    "implicit_bernoulli": ("implicit", lambda t: dist.Bernoulli(t), "not for Bernoulli"),
    "gumbel_categorical": ("gumbel_softmax", lambda t: dist.Categorical(logits=t * jnp.ones(3)),
                           "relaxes .*not Categorical"),
    "gumbel_normal": ("gumbel_softmax", lambda t: dist.Normal(t, 1.0), "not Normal"),
    "straight_through_poisson": ("straight_through", lambda t: dist.Poisson(t), "not Poisson"),
    "reinforce_delta": ("reinforce", lambda t: dist.Delta(t), "Delta has none"),
}  # fmt: skip


@pytest.mark.parametrize(("strategy", "make", "reason"), CANNOT.values(), ids=CANNOT)
def test_a_strategy_that_the_distribution_cannot_have_is_refused(strategy, make, reason):
    for where in ({"strategies": {"z": strategy}}, {"strategy": strategy}):
        with pytest.raises(ValueError, match=reason) as caught:
            plan(make, **where)
        assert f"Site 'z': strategy '{strategy}'" in str(caught.value)
        assert "Sound here: " in str(caught.value)


@pytest.mark.parametrize(("strategy", "make", "reason"), CANNOT.values(), ids=CANNOT)
def test_the_remedy_that_is_named_works(strategy, make, reason):
    try:
        plan(make, strategy)
    except ValueError as error:
        remedy = str(error).split("strategies={'z': '")[1].split("'")[0]
    assert plan(make, remedy)["z"].strategy == remedy.removesuffix("_loo")


def test_values_whose_number_is_drawn_cannot_be_enumerated():
    def fn(p):
        n = ppl.sample("n", dist.Categorical(probs=jnp.ones(3) / 3), strategy="enum")
        return 1.0 * ppl.sample("k", dist.Binomial(n, p), strategy="enum")

    with pytest.raises(ValueError, match="Site 'k'.*'enum'.*BinomialProbs hang on its parameters"):
        ppl.expectation(fn).plan(0.5)


def test_the_remedy_does_not_name_a_strategy_that_would_be_refused_for_its_support():
    """A discrete moving support has no sound strategy; nothing may be promised."""
    with pytest.raises(ValueError, match="Use 'reparam', or a fixed support"):
        plan(MOVING["uniform_high"], "reinforce")


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(
        ValueError,
        match="no strategy named 'reprm'. Did you mean 'reparam'. Choose from .*'reparam'.*'auto'",
    ):
        plan(lambda t: dist.Normal(t, 1.0), {"z": "reprm"})


@pytest.mark.parametrize("strategy", [3, ppl.Reparam, None.__class__], ids=str)
def test_something_that_is_no_strategy_is_refused(strategy):
    with pytest.raises(
        TypeError, match="Site 'z': a strategy is a ppl.strategies.Strategy or a name"
    ):
        plan(lambda t: dist.Normal(t, 1.0), {"z": strategy})


@pytest.mark.parametrize("strategies", [3, ["reparam"]], ids=str)
def test_strategies_that_are_no_mapping_are_refused(strategies):
    with pytest.raises(TypeError, match="strategies"):
        plan(lambda t: dist.Normal(t, 1.0), strategies)


def test_wrong_options_of_strategies_are_refused():
    for make, message in (
        (lambda: ppl.Reinforce(baseline="mean"), "no baseline named 'mean'"),
        (
            lambda: ppl.Reinforce(baseline=max),
            "no baseline named '<built-in function max>'; .*pass a Baseline",
        ),
        (lambda: ppl.strategies.LeaveOneOut(1), "num_samples must be at least 2, got 1"),
        (lambda: ppl.strategies.MovingAverage(1.0), r"decay must lie in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# Patterns.


def two_sites(t):
    z1 = ppl.sample("z1", dist.Normal(t, 1.0))
    z2 = ppl.sample("z2", dist.Normal(z1, 1.0))
    ppl.sample("x", dist.Normal(z2, 1.0), obs=0.0)
    return z1 * z2


@pytest.mark.parametrize("pattern", ["w", "w*", "z", "Z1", "x", "z[3-9]"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_sites(pattern):
    with pytest.raises(
        ValueError, match=r"match no latent site. The sites are \['z1', 'z2'\]"
    ) as caught:
        ppl.expectation(two_sites, strategies={pattern: "reinforce"}).plan(0.3)
    assert repr(pattern) in str(caught.value)
    guide = ppl.block(ppl.model(lambda: two_sites(ppl.param("t", 0.0))), ["x"])
    model = ppl.model(lambda: two_sites(0.0))
    with pytest.raises(ValueError, match="match no latent site"):
        inference.elbo(model, guide, strategies={pattern: "reinforce"}).value({"t": 0.3}, KEY)


def test_all_idle_patterns_are_told_at_once():
    with pytest.raises(ValueError, match=r"\['u', 'w'\] match no latent site"):
        ppl.expectation(two_sites, strategies={"w": "mvd", "u": "mvd", "z1": "mvd"}).plan(0.3)


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        ({"z*": "mvd"}, ("mvd", "mvd")),
        ({"z*": "mvd", "z2": "reinforce"}, ("mvd", "reinforce")),
        ({"z1": "mvd", "*": "reinforce"}, ("mvd", "reinforce")),
        ({"?1": "mvd", "z*": "reinforce"}, ("mvd", "reinforce")),
        ("mvd", ("mvd", "mvd")),
        ({}, ("reparam", "reparam")),
        (None, ("reparam", "reparam")),
        ({"z2": ppl.Reinforce()}, ("reparam", "reinforce")),
    ],
    ids=str,
)
def test_exact_names_win_over_patterns_and_the_first_pattern_wins(strategies, expected):
    got = ppl.expectation(two_sites, strategies=strategies).plan(0.3)
    assert (got["z1"].strategy, got["z2"].strategy) == expected


def test_an_exact_name_with_wildcard_characters_is_itself():
    cost = lambda t: ppl.sample("z[0]", dist.Normal(t, 1.0)) + ppl.sample("z*", dist.Normal(t, 1.0))
    plan = ppl.expectation(cost, strategies={"z[0]": "mvd", "z*": "reinforce"}).plan(0.3)
    assert plan["z[0]"].strategy == "mvd" and plan["z*"].strategy == "reinforce"
    with pytest.raises(KeyError, match=r"no latent site 'z'. Name one of \['z\[0\]', 'z\*'\]"):
        plan["z"]


def test_the_outside_wins_over_the_site_and_the_site_over_the_default():
    make = lambda t: dist.Normal(t, 1.0)
    assert plan(make, {"z": "mvd"}, strategy="reinforce")["z"].strategy == "mvd"
    assert plan(make, strategy="reinforce")["z"].why == "at the site"
    assert plan(make)["z"].why == "default: differentiable sampler"


# Discrete sites without a strategy.


@pytest.mark.parametrize(
    "make",
    [
        lambda t: dist.Bernoulli(jax.nn.sigmoid(t)),
        lambda t: dist.Categorical(logits=t * jnp.ones(3)),
        lambda t: dist.Poisson(jnp.exp(t)),
        lambda t: dist.Binomial(3, jax.nn.sigmoid(t)),
        lambda t: dist.Geometric(jax.nn.sigmoid(t)),
        lambda t: dist.Multinomial(2, jax.nn.softmax(t * jnp.arange(3.0))),
    ],
    ids=lambda make: type(make(0.1)).__name__,
)
def test_a_discrete_latent_without_a_strategy_is_refused_with_sound_choices(make):
    with pytest.raises(
        ValueError, match="has no differentiable sampler, and no strategy was chosen"
    ) as caught:
        plan(make)
    message = str(caught.value)
    assert (
        message.startswith("Site 'z'")
        and "'reinforce'" in message
        and "strategies={'z':" in message
    )
    assert "gumbel" not in message and "straight" not in message  # biased ones are opt-in


def test_a_discrete_latent_in_a_guide_is_refused_by_the_objective():
    """NumPyro 0.22 only warns here, and returns the bare score (peers 4.3)."""

    def model():
        b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=0.5)

    guide = ppl.model(lambda: ppl.sample("b", dist.Bernoulli(logits=ppl.param("l", 0.0))))
    objective = inference.elbo(model, guide)
    for run in (lambda: objective.init(KEY), lambda: objective.value({"l": 0.0}, KEY)):
        with pytest.raises(ValueError, match="Site 'b'.*no strategy was chosen"):
            run()
    inference.elbo(model, guide, strategies="enum").plan({"l": 0.0})


def test_a_continuous_site_without_a_differentiable_sampler_is_refused():
    """NumPyro's RenyiELBO with has_rsample False returns a wrong-signed gradient without a warning (peers 4.1)."""

    class NoSampler(dist.Normal):
        reparametrized_params = []

    with pytest.raises(ValueError, match="Site 'z': NoSampler has no differentiable sampler"):
        plan(lambda t: NoSampler(t, 1.0))
    assert plan(lambda t: NoSampler(t, 1.0), "reinforce")["z"].strategy == "reinforce"


# Size guards.


def test_a_joint_enumeration_that_is_too_large_is_refused():
    def cost(t):
        with ppl.plate("rows", 20):
            b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)), strategy="enum")
        return jnp.tanh(b.sum() - 3.0)

    with pytest.raises(
        ValueError, match=r"Site 'b'.*2\^20 states.*shape \(20,\).*'mvd' or 'reinforce'"
    ):
        ppl.expectation(cost).plan(0.3)


def test_the_joint_lanes_of_several_sites_are_guarded_together():
    """Each site alone is small enough; together they would need 2^18 lanes."""

    def cost(t):
        values = []
        for name in ("a", "b"):
            with ppl.plate("rows", 9):
                values.append(ppl.sample(name, dist.Bernoulli(jax.nn.sigmoid(t)), strategy="enum"))
        return jnp.tanh(values[0].sum() - values[1].sum())

    with pytest.raises(ValueError, match=r"262144 states.*\['a', 'b'\] meet"):
        ppl.expectation(cost).value(0.3, KEY)


def test_costs_that_separate_by_row_need_no_joint_enumeration():
    def cost(t):
        with ppl.plate("rows", 20):
            b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)), strategy="enum")
        return jnp.tanh(b - 0.3).sum()

    assert ppl.expectation(cost).plan(0.3)["b"].evaluations == "2"


def test_replays_one_by_one_beyond_the_limit_are_refused():
    def cost(t):
        with ppl.plate("rows", 70_000):
            z = ppl.sample("z", dist.Normal(t, 1.0), strategy="mvd")
        return jnp.tanh(z.sum())

    with pytest.raises(
        ValueError, match="Site 'z': strategy 'mvd' would replay 70000 elements.*'reinforce'"
    ):
        ppl.expectation(cost).plan(0.3)


def test_auto_avoids_an_enumeration_that_is_too_large():
    def cost(t):
        with ppl.plate("rows", 20):
            b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)))
        return jnp.tanh(b.sum() - 3.0)

    chosen = ppl.expectation(cost, strategies="auto").plan(0.3)["b"]
    assert chosen.strategy in ("mvd", "reinforce")
    assert "enum" in chosen.why and "refused" in chosen.why


# Parameters without a derivative.


def test_gamma_under_mvd_refuses_a_concentration_that_depends_on_parameters():
    message = "Site 'z': strategy 'mvd' gives no derivative in 'concentration' of Gamma"
    with pytest.raises(ValueError, match=message):
        plan(lambda t: dist.Gamma(t, 1.0), "mvd")
    with pytest.raises(ValueError, match=message):
        plan(lambda t: dist.Gamma(jnp.exp(t) * jnp.ones(3), 1.0).to_event(1), "mvd")
    plan(lambda t: dist.Gamma(2.0, t), "mvd")


def test_gamma_under_mvd_refuses_a_concentration_that_depends_on_a_reparameterised_site():
    def cost(m):
        a = ppl.sample("a", dist.LogNormal(m, 1.0))
        return ppl.sample("z", dist.Gamma(a, 1.0), strategy="mvd")

    with pytest.raises(ValueError, match="gives no derivative in 'concentration'"):
        ppl.expectation(cost).plan(0.3)
    ppl.expectation(cost, strategies={"a": "reinforce", "z": "mvd"}).plan(0.3)


def test_auto_takes_the_differentiable_sampler_of_gamma():
    assert plan(lambda t: dist.Gamma(t, 1.0), "auto")["z"].strategy == "reparam"


# Users' own strategies.


@dataclasses.dataclass(frozen=True)
class OnlyNormal(ppl.strategies.Strategy):
    name = "only_normal"
    kind = "pathwise"

    def refuse(self, distribution):
        return None if isinstance(distribution, dist.Normal) else "serves Normal sites only"

    def draw(self, fn, key):
        return fn.sample(key)


def test_a_users_strategy_is_asked_and_refuses_in_its_own_words():
    assert plan(lambda t: dist.Normal(t, 1.0), OnlyNormal())["z"].strategy == "only_normal"
    with pytest.raises(
        ValueError, match="Site 'z': strategy 'only_normal' serves Normal sites only"
    ):
        plan(lambda t: dist.Gamma(t, 1.0), OnlyNormal())


def own(**attributes):
    """A strategy class of a user's own."""
    refuse = lambda self, distribution: None
    return type("Own", (ppl.strategies.Strategy,), {"name": "own", "refuse": refuse} | attributes)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"kind": "path_wise"}, "Own: kind must be one of .*'pathwise'.*got 'path_wise'"),
        ({"calls": "replay"}, "Own: calls must be a tuple of functions of Downstream, .*got 'replay'"),
        ({"calls": ("replayed",)}, r"Own: calls must be .*got \('replayed',\)"),
        ({"is_pathwise": True}, r"Own: \['is_pathwise'\] follow from kind. Set kind to"),
    ],
    ids=["kind", "calls no tuple", "calls unknown", "flag"],
)  # fmt: skip
def test_a_misspelt_attribute_of_a_strategy_is_refused(attributes, words):
    with pytest.raises(TypeError, match=words):
        own(**attributes)


@pytest.mark.parametrize("kind", ["held", "partly_pathwise"])
def test_a_strategy_without_the_surrogate_that_it_needs_is_refused(kind):
    with pytest.raises(TypeError, match=f"'z': strategy 'own' is of kind '{kind}' and defines no"):
        plan(lambda t: dist.Normal(t, 1.0), own(kind=kind)())


@pytest.mark.parametrize("name", ["replay", "replay_together", "slope", "jumps"])
def test_what_a_surrogate_calls_must_be_announced(name):
    def surrogate(self, local, downstream):
        return 0.0 * getattr(downstream, name)(jnp.zeros(()))

    def grad(strategy):
        cost = lambda t: ppl.sample("z", dist.Normal(t, 1.0), strategy=strategy) ** 2
        return ppl.expectation(cost).grad(0.3, jax.random.key(0))

    words = f"Site 'z': strategy 'own' calls downstream.{name} without announcing it.*Own.calls"
    with pytest.raises(ppl.StrategyError, match=words):
        grad(own(surrogate=surrogate)())
    if name.startswith("replay"):
        assert grad(own(surrogate=surrogate, calls=(name,))()) == 0.0


def test_strategies_have_their_names_in_one_place():
    assert set(TRIED) | set(AUTO) < set(STRATEGIES)
    assert [n for n, make in STRATEGIES.items() if not n.startswith(make().name)] == []
    assert all(f'"{name}"' in ppl.expectation.__doc__ for name in STRATEGIES)


def test_biased_strategies_are_marked_and_never_automatic():
    make = lambda t: dist.Bernoulli(jax.nn.sigmoid(t))
    for name in ("gumbel_softmax", "straight_through"):
        chosen = plan(make, name)
        assert chosen["z"].is_biased and "(biased)" in str(chosen)
    assert not plan(make, "auto")["z"].is_biased


@pytest.mark.slow
def test_auto_says_when_nothing_is_sound():
    """The result jumps in the value and the support moves: neither pathwise nor score."""
    with pytest.raises(ValueError, match="Site 'z'"):
        plan(lambda h: dist.Uniform(0.0, h), "auto", cost=lambda z: jnp.where(z > 0.2, 1.0, 0.0))


@pytest.mark.parametrize("strategy", ["gumbel_softmax", "straight_through", "rebar"])
def test_a_relaxed_value_as_an_index_is_refused_by_name(strategy):
    def cost(p):
        return p * jnp.arange(2.0)[ppl.sample("b", dist.Bernoulli(p))]

    message = f"Sites and strategies .'b': '{strategy}'. hand the program real numbers"
    with pytest.raises(TypeError, match=message):
        ppl.expectation(cost, strategies=strategy).grad(0.3, jax.random.key(0))
