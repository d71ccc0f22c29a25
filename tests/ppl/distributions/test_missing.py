"""Partially observed values: cells within an event, exact conditionals, proposals of missing cells, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers
import pytest
from scipy import stats

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.ppl.distributions._missing import NormalCells, law_of_cells

LOC = np.array([0.3, -1.0, 2.0])
ROOT = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.5, 0.7]])
COV = ROOT @ ROOT.T
X = np.array([0.9, -0.2, 1.1])
MASKS = [np.array([bool(i & 1), bool(i & 2), bool(i & 4)]) for i in range(8)]


def close(a, b, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def conditional(mask, x):
    """Mean and covariance of the missing coordinates, by the textbook formula."""
    o, m = np.flatnonzero(mask), np.flatnonzero(~mask)
    gain = COV[np.ix_(m, o)] @ np.linalg.inv(COV[np.ix_(o, o)]) if len(o) else np.zeros((len(m), 0))
    return LOC[m] + gain @ (x[o] - LOC[o]), COV[np.ix_(m, m)] - gain @ COV[np.ix_(o, m)]


NORMALS = {
    "scale_tril": lambda: dist.MultivariateNormal(LOC, scale_tril=ROOT),
    "covariance": lambda: dist.MultivariateNormal(LOC, COV),
    "precision": lambda: dist.MultivariateNormal(LOC, precision_matrix=np.linalg.inv(COV)),
    "low_rank": lambda: dist.LowRankMultivariateNormal(LOC, np.array([[0.6], [0.8], [-0.3]]), np.array([0.5, 0.4, 0.7])),
}  # fmt: skip


@pytest.mark.slow_for("covariance", "scale_tril")
@pytest.mark.parametrize("name", NORMALS)
def test_seen_and_missing_factors_make_the_joint_density(name):
    fn = NORMALS[name]()
    masks = np.stack(MASKS)
    x = np.broadcast_to(X, masks.shape)
    seen = law_of_cells(fn, jnp.asarray(masks))
    missing = law_of_cells(fn, ~jnp.asarray(masks), jnp.where(masks, x, 0.0))
    close(seen.log_prob(x) + missing.log_prob(x), np.full(8, fn.log_prob(X)), rtol=1e-4)


@pytest.mark.slow_for("mmm", "omm")
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("om"[not x] for x in m))
def test_normal_cells_equal_the_textbook(mask):
    fn = dist.MultivariateNormal(LOC, COV)
    o, m = np.flatnonzero(mask), np.flatnonzero(~mask)
    holed = np.where(mask, X, np.nan)
    seen = law_of_cells(fn, jnp.asarray(mask))
    if len(o):
        close(
            seen.log_prob(holed), stats.multivariate_normal(LOC[o], COV[np.ix_(o, o)]).logpdf(X[o])
        )
    missing = law_of_cells(fn, ~jnp.asarray(mask), jnp.where(mask, X, 0.0))
    assert isinstance(missing, NormalCells)
    if len(m):
        loc, cov = conditional(mask, X)
        close(missing.loc[m], loc)
        close((missing.scale_tril @ missing.scale_tril.T)[np.ix_(m, m)], cov)
        close(
            missing.log_prob(np.where(mask, np.nan, X)),
            stats.multivariate_normal(loc, cov).logpdf(X[m]),
        )


def test_draws_of_missing_coordinates_have_their_conditional_moments(seed):
    """20,000 draws: a bias of 0.05 in a mean or covariance is 7 standard errors or more."""

    @ppl.model
    def model(x, mask):
        return ppl.sample("x", dist.MultivariateNormal(LOC, COV), obs=x, obs_mask=mask)

    mask = MASKS[2]
    draw = lambda k: model.simulate(k, np.where(mask, X, np.nan), mask).retval
    x = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(seed, 20_000)))
    close(x[:, 1], X[1])
    loc, cov = conditional(mask, X)
    centred = x[:, [0, 2]] - loc
    assert_unbiased(x[:, [0, 2]], loc)
    assert_unbiased(centred[:, :, None] * centred[:, None], cov)


LAWS = {
    "normal": (dist.Normal(0.3, 1.2), np.array([[0.4, -1.0, 0.7], [2.0, 0.1, -0.5]])),
    "exponential": (dist.Exponential(2.0), np.array([[0.4, 1.0, 0.7], [2.0, 0.1, 0.5]])),
    "student_t": (dist.StudentT(5.0, 0.1, 0.9), np.array([[0.4, -1.0, 0.7], [2.0, 0.1, -0.5]])),
    "bernoulli": (dist.Bernoulli(0.3), np.array([[0, 1, 1], [1, 0, 0]])),
    "poisson": (dist.Poisson(2.5), np.array([[0, 3, 1], [2, 4, 0]])),
}
CELLS = np.array([[True, False, True], [False, False, True]])


@pytest.mark.fast("exponential")
@pytest.mark.parametrize("name", LAWS)
def test_cells_of_an_event_are_scored_where_they_are_seen(name):
    base, x = LAWS[name]

    @ppl.model
    def model(x):
        with ppl.plate("rows", 2):
            return ppl.sample("x", base.expand([2, 3]).to_event(1), obs=x, obs_mask=CELLS)

    holed = np.where(CELLS, x, -7 if x.dtype.kind == "i" else np.nan)
    trace = model.simulate(jax.random.key(0), holed)
    close(trace.retval[CELLS], x[CELLS], rtol=1e-6)
    np.testing.assert_array_equal(trace.retval[~CELLS], trace.choices["x_unobserved"][~CELLS])
    each = np.asarray(base.log_prob(np.asarray(trace.retval)), float)
    close(trace.log_probs["x_observed"], (each * CELLS).sum(1))
    close(trace.log_probs["x_unobserved"], (each * ~CELLS).sum(1))
    assert trace.sites["x_unobserved"].is_imputed and trace.sites["x_observed"].is_masked


def test_missing_cells_never_reach_a_value_or_a_gradient():
    @ppl.model
    def model(x, loc, root):
        with ppl.plate("rows", 1):
            law = dist.MultivariateNormal(loc, scale_tril=root).expand([1])
            ppl.sample("x", law, obs=x, obs_mask=MASKS[5][None])

    def seen(loc, root, filler):
        x = jnp.where(MASKS[5], X, filler)[None]
        _, log_weight = model.generate(jax.random.key(0), {}, x, loc, root)
        return log_weight

    def by_hand(loc, root):
        cov = (root @ root.T)[np.ix_([0, 2], [0, 2])]
        return dist.MultivariateNormal(loc[jnp.array([0, 2])], cov).log_prob(X[[0, 2]])

    args = jnp.asarray(LOC), jnp.asarray(ROOT)
    exact = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(*args)
    fillers = jnp.array([0.0, 1e6, np.nan])
    found = jax.jit(jax.vmap(lambda f: jax.value_and_grad(seen, (0, 1))(*args, f)))(fillers)
    expected = jax.tree.map(lambda a: np.stack([a] * 3), exact)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4), found, expected)


@pytest.mark.slow
def test_a_mask_may_stop_within_the_event():
    """Whole vectors of an event of vectors: one entry each."""
    x = np.stack([[X, X + 1.0], [X - 1.0, 2 * X]])
    mask = np.array([[True, False], [True, True]])
    law = dist.MultivariateNormal(LOC, COV)

    @ppl.model
    def model(x):
        with ppl.plate("rows", 2):
            ppl.sample("x", law.expand([2, 2]).to_event(1), obs=x, obs_mask=mask)

    trace = model.simulate(jax.random.key(0), np.where(mask[..., None], x, np.nan))
    close(trace.log_probs["x_observed"], (np.asarray(law.log_prob(x)) * mask).sum(1), rtol=1e-4)


# Refusals.


def fails(error, match, distribution, obs, mask):
    @ppl.model
    def model():
        with ppl.plate("rows", 2):
            ppl.sample("x", distribution, obs=obs, obs_mask=mask)

    with pytest.raises(error, match=match):
        model.simulate(jax.random.key(0))


def test_a_mask_through_an_event_of_dependent_cells_is_refused_by_name():
    law, x = dist.Dirichlet(jnp.ones(3)), np.full((2, 3), 1 / 3)
    fails(
        TypeError,
        "Site 'x': obs_mask has one entry per cell of an event of Dirichlet.*MultivariateNormal",
        law,
        x,
        CELLS,
    )


@pytest.mark.parametrize(
    "obs, mask", [((2, 3), (2, 2)), ((2, 3), (3,)), ((2, 1), (2, 1)), ((5, 3), (5, 3)), ((2, 3), ())], ids=str
)  # fmt: skip
def test_shapes_that_would_broadcast_are_refused_by_name(obs, mask):
    law = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    fails(
        ValueError,
        r"Site 'x': obs_mask has shape.*plates \{'rows': 2\}.*broadcast",
        law,
        np.zeros(obs),
        np.ones(mask, bool),
    )


def test_a_distribution_that_does_not_fit_its_plates_is_refused_by_name():
    law = dist.Normal(np.zeros(5), 1.0)
    fails(
        ValueError,
        "Site 'x': Normal.*does not fit into its plates",
        law,
        np.zeros(5),
        np.ones(5, bool),
    )


# Proposals.


@ppl.model
def pairs(x):
    """Two correlated numbers per row, the sum of which is seen through noise."""
    with ppl.plate("rows", 2):
        law = dist.MultivariateNormal(LOC, COV).expand([2])
        x = ppl.sample("x", law, obs=x, obs_mask=CELLS)
        ppl.sample("y", dist.Normal(x.sum(-1), 0.5), obs=np.array([1.0, 2.0]))


def evidence():
    """Log p(x_seen, y) by conjugacy."""
    total = 0.0
    for x, mask, y in zip(HOLED, CELLS, (1.0, 2.0), strict=True):
        o = np.flatnonzero(mask)
        total += stats.multivariate_normal(LOC[o], COV[np.ix_(o, o)]).logpdf(x[o])
        loc, cov = conditional(mask, x)
        total += stats.norm(x[o].sum() + loc.sum(), np.sqrt(0.25 + cov.sum())).logpdf(y)
    return total


HOLED = np.where(CELLS, np.stack([X, X - 0.5]), np.nan)


def proposal(masked):
    @ppl.model
    def guide(x):
        loc, root = jnp.array([0.2, -0.4, 1.0]), 1.2 * jnp.asarray(ROOT)
        with ppl.plate("rows", 2):
            law = dist.MultivariateNormal(loc, scale_tril=root).expand([2])
            ppl.sample("x_unobserved", law, obs_mask=CELLS if masked else None)

    return guide


@pytest.mark.fast("seed1-prior", "seed1-proposal", "seed2-prior")
@pytest.mark.parametrize("proposes", [False, True], ids=["prior", "proposal"])
def test_weights_of_missing_cells_are_unbiased(seed, proposes):
    """E[w] = p(x_seen, y) for draws from the exact conditional and from a guide; a bias of 7% is 7 standard errors."""
    guide = proposal(masked=True) if proposes else ppl.model(lambda x: None)

    def log_weight(key):
        q = guide.simulate(jax.random.fold_in(key, 0), HOLED)
        return pairs.generate(key, q.choices, HOLED)[1] - q.log_density

    log_weights = jax.jit(jax.vmap(log_weight))(jax.random.split(seed, 40_000))
    assert_unbiased(np.exp(np.asarray(log_weights, float) - evidence()), 1.0)


def masked_by(mask):
    """A model of rows of two cells, and a guide with a mask of its own."""

    @ppl.model
    def model(x, seen, other):
        with ppl.plate("rows", 2):
            ppl.sample("x", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(1), obs=x, obs_mask=seen)

    @ppl.model
    def guide(x, seen, other):
        with ppl.plate("rows", 2):
            law = dist.Normal(0.1, 1.2).expand([2, 2]).to_event(1)
            ppl.sample("x_unobserved", law, obs_mask=other if mask is None else mask)

    return inference.elbo(model, guide, check_jumps=False)


SQUARE = np.array([[True, False], [False, False]])


@pytest.mark.parametrize("other", [~SQUARE, SQUARE[:, 0]], ids=["opposite", "by event"])
def test_a_proposal_with_another_mask_is_refused(other, key):
    """At trace time where both masks are known; else the bound is NaN, at equal masks the number that it should be."""
    x = HOLED[:, :2]
    model = masked_by(other)
    with pytest.raises(
        ValueError, match=r"Site 'x_unobserved': the guide's obs_mask is not the model's"
    ):
        q = model.guide.simulate(key, x, SQUARE, other)
        ppl.score(model.model, q, x, SQUARE, other)
    bound = jax.jit(masked_by(None).value)
    assert np.isnan(bound({}, key, x, SQUARE, other))
    assert np.isfinite(bound({}, key, x, SQUARE, SQUARE))


def test_a_proposal_that_counts_seen_cells_is_refused_with_the_remedy(key):
    bound = inference.elbo(pairs, proposal(masked=False), check_jumps=False)
    with pytest.raises(ValueError, match=r"Site 'x_unobserved'.*no log-weight.*obs_mask=mask"):
        bound.value({}, key, HOLED)


def test_a_proposal_masked_by_numpyro_is_accepted():
    """The same density as by obs_mask."""

    def guide(x):
        with ppl.plate("rows", 2), numpyro.handlers.mask(mask=jnp.array([False, True])):
            ppl.sample("x_unobserved", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1))

    @ppl.model
    def model(x):
        with ppl.plate("rows", 2):
            law = dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1)
            ppl.sample("x", law, obs=x, obs_mask=np.array([True, False]))

    bound = inference.elbo(model, guide, check_jumps=False)
    x = np.stack([X, np.full(3, np.nan)])
    close(bound.value({}, jax.random.key(0), x), stats.norm.logpdf(X).sum())


# Missing cells as auxiliary sites of `marginal` and `normalize`.


@ppl.model
def offset(x):
    ppl.sample("u", dist.Normal(0.0, 1.0))
    pairs(x)


def auxiliary(masked):
    """The proposal of the missing cells, given u."""
    return ppl.model(lambda kept, x: proposal(masked)(x))


@pytest.mark.fast("seed1-prior", "seed1-proposal")
@pytest.mark.parametrize("proposes", [False, True], ids=["prior", "proposal"])
def test_missing_cells_are_integrated_out_by_marginal(seed, proposes):
    """E[Z] = p(u) p(x_seen, y) from three draws of the cells; a bias of 7% is 7 standard errors."""
    kept = ppl.marginal(
        offset, keep=["u"], proposal=auxiliary(True) if proposes else None, num_particles=3
    )
    run = jax.vmap(lambda key: kept.estimate_log_density(key, {"u": 0.3}, HOLED))
    log_z = np.asarray(jax.jit(run)(jax.random.split(seed, 20_000)), float)
    assert_unbiased(np.exp(log_z - evidence() - stats.norm.logpdf(0.3)), 1.0)


@pytest.mark.slow
def test_marginal_and_normalize_refuse_missing_cells_without_their_mask(key):
    kept = ppl.marginal(offset, keep=["u"], proposal=auxiliary(False), num_particles=2)
    resampled = ppl.normalize(pairs, proposal=proposal(False), num_particles=2)
    for run in (
        lambda: kept.estimate_log_density(key, {"u": 0.3}, HOLED),
        lambda: kept.simulate(key, HOLED),
        lambda: resampled.simulate(key, HOLED),
    ):
        with pytest.raises(ValueError, match=r"Site 'x_unobserved'.*no log-weight.*obs_mask=mask"):
            run()
