"""Laws without a total are told from heavy tails, by draws and by the density far from them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from lapilli import inference, ppl
from lapilli.inference.posteriors._proper import endless, lost_draws
from lapilli.inference.posteriors.forms import make_target

FLAT = dist.ImproperUniform(constraints.real, (), ())
HALF = dist.ImproperUniform(constraints.positive, (), ())
NUMBER = 1000


@ppl.model
def heavy():
    """Laws that have a total, most of them without a mean, and flat ones of which a factor makes such."""
    ppl.sample("cauchy", dist.Cauchy(3.0, 1e-3))
    ppl.sample("student", dist.StudentT(0.3, 0.0, 1e5))
    ppl.sample("half_cauchy", dist.HalfCauchy(1.0))
    ppl.sample("beta", dist.Beta(0.1, 0.1))
    ppl.sample("gamma", dist.Gamma(0.1, 0.1))
    ppl.sample("wide", dist.LogNormal(0.0, 6.0))
    scale = ppl.sample("scale", dist.HalfCauchy(jnp.ones(3)).to_event(1))
    ppl.sample("horseshoe", dist.Normal(jnp.zeros(3), scale).to_event(1))
    ppl.factor("line", dist.Normal(0.0, 1.0).log_prob(ppl.sample("x", FLAT)))
    ppl.factor("half line", dist.Gamma(0.5, 1.0).log_prob(ppl.sample("s", HALF)))


def draws_of_heavy():
    """Draws, those of flat sites by what their factors make of them."""
    rng = np.random.default_rng(0)
    with ppl.traces.stand_ins():
        draws = jax.jit(jax.vmap(lambda key: heavy.simulate(key).choices))(
            jax.random.split(jax.random.key(1), NUMBER)
        )
    flat = {"x": rng.normal(size=NUMBER), "s": rng.gamma(0.5, size=NUMBER)}
    return {n: np.asarray(flat.get(n, x), np.float32) for n, x in draws.items()}


def test_heavy_tails_have_a_total():
    assert endless(make_target("infer", heavy, ()), draws_of_heavy()) is None


def reciprocal():
    x = ppl.sample("x", FLAT)
    ppl.factor("r", -jnp.log1p(jnp.abs(x)))


def growing():
    x = ppl.sample("x", dist.Laplace(0.0, 1.0))
    ppl.factor("r", 1.05 * jnp.abs(x))


def at_zero():
    s = ppl.sample("x", dist.HalfNormal(1.0))
    ppl.factor("r", -jnp.log(s))


def separable():
    w = ppl.sample("x", FLAT)
    ppl.sample(
        "y",
        dist.Bernoulli(logits=w * jnp.array([-2.0, 1.0, 3.0])).to_event(1),
        obs=jnp.array([0, 1, 1]),
    )


@pytest.mark.parametrize("model", [reciprocal, growing, at_zero, separable])
@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_what_has_no_total_is_told(model, unit):
    x = unit * np.random.default_rng(0).normal(size=NUMBER)
    x = np.abs(x) if model is at_zero else x
    found = endless(make_target("infer", ppl.as_program(model), ()), {"x": x.astype(np.float32)})
    assert "does not fall off as x" in found and "proper prior" in found


@pytest.mark.slow(reason="a process in double precision")
def test_double_precision_has_the_same_verdicts():
    with jax.enable_x64(True):
        assert endless(make_target("infer", heavy, ()), draws_of_heavy()) is None
        x = {"x": np.random.default_rng(0).normal(size=NUMBER)}
        found = endless(make_target("infer", ppl.as_program(growing), ()), x)
    assert found is not None and "does not fall off as x" in found


def test_draws_at_the_limits_of_their_type_or_all_the_same_are_told():
    def two():
        ppl.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    target = lambda: make_target("infer", ppl.as_program(two), ())
    assert lost_draws({"x": np.linspace(-1, 1, 9), "k": np.zeros(9, int)}, target) is None
    assert "limits of float32" in lost_draws({"x": np.array([1e31, 0], np.float32)}, target)
    assert "all the same" in lost_draws({"x": np.ones((4, 2))}, target)
    assert "draws of y are all the same" in lost_draws({"y": np.ones(4)}, target)


@pytest.mark.slow_for("LKJ", "WishartCholesky")
@pytest.mark.parametrize(
    "law",
    [
        dist.LKJCholesky(3, 2.0),
        dist.LKJ(2, 2.0),
        dist.WishartCholesky(5.0, scale_matrix=jnp.eye(2)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_entries_that_a_support_holds_are_to_be_the_same(law):
    """Zeros of a factor and ones of a diagonal are in every draw; an entry that should move and does not is told."""

    def model():
        ppl.sample("x", law)

    target = lambda: make_target("infer", ppl.as_program(model), ())
    draws = np.asarray(law.sample(jax.random.key(0), (9,)))
    assert lost_draws({"x": draws}, target) is None
    if draws.ndim > 1:
        draws = draws.copy()
        draws[:, -1, 0] = 0.25
        assert "all the same" in lost_draws({"x": draws}, target)


@pytest.mark.slow
def test_a_law_without_a_total_is_not_certified():
    for model in (reciprocal, growing):
        with pytest.warns(UserWarning, match="NOT certified"):
            draws = inference.infer(model, progress=False)
        assert not draws.certificate.is_certified
