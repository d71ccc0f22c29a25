"""Linear constraints: bounds against linear programming, densities by quadrature, priors under NUTS, laws and projections."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to
from numpyro.infer import MCMC, NUTS
from scipy.optimize import linprog

from lapilli import inference, ppl
from lapilli.ppl.distributions import LinearConstraints, TruncatedInTurn

KEY = jax.random.key(0)
TRIANGLE = LinearConstraints(["a >= 0", "b >= 0", "a + 2 * b < 2"], names=["a", "b"])


def _random_system(rng, dim, num_rows):
    """W, c of a random system that keeps a point with room around it."""
    weights = rng.integers(-3, 4, (num_rows, dim)) * rng.integers(0, 2, (num_rows, dim))
    inside = rng.normal(size=dim)
    return weights.astype(float), np.round(
        weights @ inside - rng.exponential(1.0, num_rows) - 0.1, 3
    )


def _check_bounds(seed, num_systems):
    rng = np.random.default_rng(seed)
    for _ in range(num_systems):
        dim = int(rng.integers(1, 7))
        weights, bounds = _random_system(rng, dim, int(rng.integers(1, 2 * dim + 2)))
        constraint = LinearConstraints.from_matrix(weights, bounds)
        transform = biject_to(constraint)
        ends = jax.jit(lambda u, t=transform, c=constraint: (t(u), *c.bounds(t(u))))
        with jax.enable_x64(True):
            x, low, high = (np.asarray(a) for a in ends(jnp.asarray(rng.normal(size=dim))))
        for i in range(dim):
            fixed = [(value, value) for value in x[:i]] + [(None, None)] * (dim - i)
            for end, sign in ((low[i], 1), (high[i], -1)):
                cost = sign * np.eye(dim)[i]
                exact = linprog(cost, A_ub=-weights, b_ub=-bounds, bounds=fixed, method="highs")
                if np.isinf(end):
                    assert exact.status == 3, (weights, bounds, i)  # unbounded
                else:
                    assert exact.status == 0 and abs(sign * exact.fun - end) < 1e-6 * (
                        1 + abs(end)
                    ), (weights, bounds, i)


def test_bounds_are_those_of_linear_programs():
    _check_bounds(0, 6)


@pytest.mark.slow
def test_bounds_are_those_of_linear_programs_on_200_systems():
    _check_bounds(1, 200)


def test_free_numbers_make_vectors_that_keep_the_statements_and_back():
    constraint = LinearConstraints(
        [
            "0.1 * a - 0.3 * b >= 0.7 - c",
            "c <= 5",
            "d > a / 3 - 2",
            "e == a + b / 2",
            "f <= 1",
            "b <= 2",
        ],
        names=list("abcdef"),
    )
    transform = biject_to(constraint)
    free = 3 * jax.random.normal(KEY, (1000, *transform.inverse_shape((6,))))
    assert free.shape == (1000, 5)
    x = jax.jit(transform)(free)
    assert constraint(x).all() and (constraint.shortfall(x) == 0).all()
    assert not constraint(x.at[:, 4].add(0.01)).any()
    with jax.enable_x64(True):
        free = jnp.asarray(np.asarray(free[:20]), float)

        @jax.jit
        def run(free):
            x = transform(free)
            left = lambda u: transform(u)[
                np.array([0, 1, 2, 3, 5])
            ]  # an equality takes a coordinate away
            return (
                transform.inv(x),
                transform.log_abs_det_jacobian(free, x),
                jax.vmap(jax.jacobian(left))(free),
            )

        back, log_det, jacobian = run(free)
        np.testing.assert_allclose(back, free, atol=1e-7)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-9)


def test_strictness_cancelled_terms_and_weights_of_eliminations():
    """2 b >= 3 a + 1 and 3 b <= 2: a <= 1/9, with the constant weighted too; b - b cancels."""
    constraint = LinearConstraints(["2 * b >= 3 * a + 1", "3 * b <= 2 + b - b"], names=["a", "b"])
    low, high = constraint.bounds(jnp.zeros(2))
    assert np.isinf(low[0]) and np.isclose(high[0], 1 / 9)
    for strict in (["a > b", "b >= a"], ["a >= b", "b > a"]):
        with pytest.raises(
            ValueError, match=r"no vector keeps all statements: the sum .* says 0 > 0"
        ):
            LinearConstraints(strict, names=["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_densities_integrate_to_one_in_the_plane(order):
    constraint = LinearConstraints(["a >= 0", "b >= 0", "a + 2 * b < 2"], ["a", "b"], order=order)
    law = TruncatedInTurn(dist.Normal(jnp.array([0.3, 1.5]), jnp.array([0.5, 1.0])), constraint)
    # The first coordinate and the second one's place between its ends, by midpoints.
    place = (np.arange(400) + 0.5) / 400
    first, share = np.meshgrid(place, place, indexing="ij")
    if order == ("a", "b"):
        a, b, area = 2 * first, (1 - first) * share, 2 * (1 - first)
    else:
        a, b, area = 2 * (1 - first) * share, first, 2 * (1 - first)
    grid = jnp.stack([jnp.asarray(a), jnp.asarray(b)], -1)
    density = np.exp(np.asarray(jax.jit(law.log_prob)(grid))) * area / 400**2
    assert abs(density.sum() - 1) < 1e-4
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(KEY))
    assert constraint(draws).all()
    for i, axis in enumerate((a, b)):
        error = draws[:, i].std() / np.sqrt(len(draws))
        assert abs(draws[:, i].mean() - (density * axis).sum()) < 4.5 * error
    # What the bijection makes of standard normal numbers has a density as well.
    transform = biject_to(constraint)
    free = transform.inv(grid)
    log_density = dist.Normal(0, 1).log_prob(free).sum(-1) - transform.log_abs_det_jacobian(
        free, grid
    )
    assert abs((np.exp(np.asarray(log_density)) * area / 400**2).sum() - 1) < 1e-3


@pytest.mark.slow
def test_a_truncated_normal_in_a_triangle_under_nuts_against_rejection():
    loc = jnp.array([0.5, 0.8])

    def model():
        x = numpyro.sample("x", dist.ImproperUniform(TRIANGLE, (), (2,)))
        numpyro.factor("normal", dist.Normal(loc, 0.5).log_prob(x).sum())

    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=3000, progress_bar=False)
    mcmc.run(KEY)
    draws = np.asarray(mcmc.get_samples()["x"])
    tried = np.asarray(loc + 0.5 * jax.random.normal(jax.random.key(1), (200_000, 2)))
    exact = tried[np.asarray(TRIANGLE(tried))]
    sizes = np.array(
        [numpyro.diagnostics.effective_sample_size(draws[None, :, i]) for i in range(2)]
    )
    for moment in (lambda x: x, np.square):
        gap = moment(draws).mean(0) - moment(exact).mean(0)
        error = np.sqrt(moment(draws).var(0) / sizes + moment(exact).var(0) / len(exact))
        assert (np.abs(gap) < 4.5 * error).all()


def test_a_projection_is_idempotent_and_leaves_what_is_inside():
    x = 2 * jax.random.normal(KEY, (5000, 2))
    projected = TRIANGLE.project(x)
    assert TRIANGLE(projected).all()
    assert (TRIANGLE.project(projected) == projected).all()
    inside = TRIANGLE(x)
    assert inside.any() and (projected[inside] == x[inside]).all()


@pytest.mark.slow
def test_a_site_with_constraints_in_a_program_and_its_guide():
    """The evidence of a law in a triangle, by importance weights of a guide on the triangle, against quadrature."""
    law = TruncatedInTurn(dist.Normal(jnp.array([0.3, 0.5]), 0.7), TRIANGLE)

    @ppl.model
    def program():
        x = ppl.sample("x", law)
        ppl.sample("y", dist.Normal(x.sum(), 0.3), obs=0.9)

    @ppl.model
    def guide():
        ppl.sample("x", TruncatedInTurn(dist.Normal(jnp.array([0.4, 0.4]), 0.5), TRIANGLE))

    a, b = np.meshgrid((np.arange(300) + 0.5) / 150, (np.arange(300) + 0.5) / 300, indexing="ij")
    grid = jnp.stack([jnp.asarray(a), jnp.asarray(b)], -1)
    score = jax.jit(lambda x: law.log_prob(x) + dist.Normal(x.sum(-1), 0.3).log_prob(0.9))
    joint = np.asarray(score(grid))
    exact = np.log(np.exp(joint).sum() / 150 / 300)
    log_weight = inference.elbo(program, guide).value  # of one draw
    weights = jax.jit(jax.vmap(lambda key: log_weight({}, key)))(jax.random.split(KEY, 20_000))
    ratio = np.exp(np.asarray(weights) - exact)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))


@pytest.mark.parametrize(
    ("statements", "match"),
    [
        (["a * b >= 1"], r"'a \* b' in 'a \* b >= 1' is not linear"),
        (["a >= zed"], r"'zed' in 'a >= zed' is none of the coordinates \['a', 'b'\]"),
        (["a"], "'a' is no comparison"),
        (["a >="], "'a >=' cannot be read"),
        ([({"a": 1.0}, "!=", 0.0)], "'!=' is no relation"),
        ([({"zed": 1.0}, ">=", 0.0)], "'zed' in .* is none of the coordinates"),
        (["a >= 1", "b >= a", "2 * b <= 1"], r"the sum .*\(a >= 1\).* says 0 >= 1"),
        (["a == 1", "a == 2"], "says 0 == "),
        (
            ["a >= b", "b >= a"],
            r"'b >= a' and 'a >= b' leave no room .* State the equality with ==",
        ),
    ],
)
def test_statements_that_cannot_be_kept_are_refused(statements, match):
    with pytest.raises(ValueError, match=f"LinearConstraints: .*{match}"):
        LinearConstraints(statements, names=["a", "b"])


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="two coordinates are called 'a'"):
        LinearConstraints([], names=["a", "a"])
    with pytest.raises(ValueError, match=r"order=\['a'\] is no arrangement"):
        LinearConstraints([], names=["a", "b"], order=["a"])
    with pytest.raises(ValueError, match=r"weights of shape \(2, 2\) and bounds of shape \(3,\)"):
        LinearConstraints.from_matrix(np.eye(2), np.zeros(3))
    with pytest.raises(ValueError, match="must be finite"):
        LinearConstraints.from_matrix(np.eye(2), [0.0, -np.inf])
    with pytest.raises(ValueError, match=r"an array of shape \(3,\) for the 2 coordinates"):
        TRIANGLE.project(jnp.zeros(3))
    with pytest.raises(ValueError, match="the base is Gamma"):
        TruncatedInTurn(dist.Gamma(jnp.ones(2)), TRIANGLE)
    with pytest.raises(ValueError, match=r"the base has batch shape \(3,\)"):
        TruncatedInTurn(dist.Normal(jnp.zeros(3)), TRIANGLE)


@pytest.mark.parametrize("num_rows", [900, 120], ids=["pairs", "what is left of them"])
def test_eliminations_that_grow_are_refused(num_rows):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"solving for 'x\d+' makes \d+ rows, more than 2000"):
        LinearConstraints.from_matrix(rng.normal(size=(num_rows, 8)).round(2), -np.ones(num_rows))
