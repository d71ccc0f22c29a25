"""Starts are Normals near the modes, in any units, and say where they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl
from lapilli.inference.fitting.starts import Landscape, Space, find_starts

KEY = jax.random.key(0)


@ppl.model
def regression(x, y, prior):
    beta = ppl.sample("beta", dist.Normal(0.0, prior).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def random_regression(seed, condition):
    """Columns in units from 1e-4 to 1e4, and a design whose squared singular values spread by `condition` after that."""
    rng = np.random.default_rng(seed)
    d, rows = 4, 60
    left, _ = np.linalg.qr(rng.normal(size=(rows, d)))
    right, _ = np.linalg.qr(rng.normal(size=(d, d)))
    x = left * np.geomspace(1.0, condition**-0.5, d) * np.sqrt(rows) @ right.T
    x = x * 10.0 ** rng.uniform(-4, 4, d)
    truth = rng.normal(size=d) / np.abs(x).max(0)
    y = x @ truth + rng.normal(size=rows)
    # Priors as wide as the units, so that single precision can hold what lies within them.
    return x.astype(np.float32), y.astype(np.float32), (1e3 / np.abs(x).max(0)).astype(np.float32)


@pytest.fixture(scope="module")
def space():
    return Space(regression, random_regression(0, 1.0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_the_mode_of_a_regression_is_found_in_any_units_with_its_covariance(seed, condition):
    args = random_regression(seed, condition)
    x, y, prior = (np.asarray(a, float) for a in args)
    precision = np.diag(1 / prior**2) + x.T @ x
    scale = 1 / np.sqrt(np.diag(precision))
    covariance = np.linalg.inv(precision * scale * scale[:, None]) * scale * scale[:, None]
    mean = covariance @ (x.T @ y)
    best = find_starts(Space(regression, args), args, KEY, num_paths=2).best
    assert best.is_mode
    root = np.linalg.cholesky(covariance / scale / scale[:, None]) * scale[:, None]
    assert np.linalg.norm(np.linalg.solve(root, best.center - mean)) < 0.2
    # Widths in all directions, the narrow ones too: singular values of one factor in units of the other.
    ratio = np.linalg.svd(np.linalg.solve(root, best.factor), compute_uv=False)
    np.testing.assert_allclose(ratio, 1.0, atol=0.05)
    assert abs(best.elbo - best.log_evidence) < 0.05


def square(y):
    z = ppl.sample("z", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
    ppl.sample("y", dist.Normal(z[0] ** 2 + z[1], 0.3), obs=y)
    ppl.sample("w", dist.Normal(z[1], 0.3), obs=0.0)


def test_modes_that_lie_apart_are_all_seen():
    args = (jnp.asarray(4.0),)
    starts = find_starts(Space(ppl.as_program(square), args), args, KEY)
    assert sorted(round(float(m.center[0])) for m in starts.modes) == [-2, 2]
    ours, theirs = starts.modes
    assert abs(ours.log_evidence - theirs.log_evidence) < 0.1
    assert "2 modes seen" in str(starts)


def vague(n, counts):
    """BUGS's Gamma: most of its draws are 0 in single precision."""
    mu = ppl.sample("mu", dist.Normal(0.0, 1000.0))
    tau = ppl.sample("tau", dist.Gamma(0.001, 0.001))
    with ppl.plate("groups", n.shape[0]):
        b = ppl.sample("b", dist.Normal(mu, tau**-0.5))
        ppl.sample("counts", dist.Binomial(n, logits=b), obs=counts)


def test_a_start_that_is_impossible_is_left_out_and_all_of_them_are_an_error():
    n, counts = jnp.array([40, 60, 80]), jnp.array([10, 23, 26])
    space = Space(ppl.as_program(vague), (n, counts))
    starts = find_starts(space, (n, counts), KEY)
    assert np.isfinite(starts.best.elbo) and set(starts.best.center.shape) == {5}
    # The density has no maximum, and the Normal with the best bound is near the data all the same.
    assert abs(starts.best.center[list(space.shapes).index("mu")] + 0.6) < 0.5
    with pytest.raises(ValueError, match="no place to start from.*site 'counts'.*another law"):
        find_starts(space, (n, counts + 100), KEY)


def test_coordinates_lead_to_sites_and_back():
    args = jnp.array([40, 60]), jnp.array([10, 23])
    space = Space(ppl.as_program(vague), args)
    u = jnp.array([0.3, -0.2, 0.1, 0.7])
    choices = space.choices(u)
    assert choices["tau"] > 0 and set(choices) == {"mu", "tau", "b"}
    np.testing.assert_allclose(space.point(choices), u, rtol=1e-5)


def test_discrete_sites_have_no_coordinates():
    def coin(y):
        z = ppl.sample("z", dist.Bernoulli(0.5))
        ppl.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"\['z'\] are discrete.*Sum them out"):
        Space(ppl.as_program(coin), (0.5,))


@jax.custom_vjp
def doubled(x):
    """A function with a derivative of its own, and no second one, as a solver of differential equations."""
    return 2.0 * x


doubled.defvjp(lambda x: (2.0 * x, None), lambda _, g: (2.0 * g,))


def test_a_derivative_that_has_no_derivative_itself_is_differenced():
    def solved(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(doubled(z), 1.0), obs=y)

    args = (jnp.asarray(1.5),)
    best = find_starts(Space(ppl.as_program(solved), args), args, jax.random.key(0)).best
    np.testing.assert_allclose(best.center, 2 * 1.5 / 5, atol=1e-3)
    np.testing.assert_allclose(best.factor, 0.2**0.5, atol=1e-3)


def states(num_steps, y):
    """A chain of matrices, as dear as its steps are many, of two numbers of data."""
    w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([8, 8]).to_event(2))
    z = jax.lax.scan(lambda z, _: (jnp.tanh(z @ w), None), jnp.eye(8), None, num_steps)[0]
    ppl.sample("y", dist.Normal(z[0, :2], 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("num_steps, num_paths, num_hessians", [(2, 16, 10_000), (2000, 2, 500)])
def test_the_search_is_bounded_by_what_the_program_computes(
    num_steps, num_paths, num_hessians, monkeypatch
):
    """Of a density of 400,000 numbers in 64 coordinates each Hessian takes a tenth of a second, and there were 8,700 of them."""
    seen = []

    def derivatives(landscape, center, factor):
        seen.append(landscape.num_paths)
        turned = np.swapaxes(factor, 1, 2)
        slope = -(turned @ center[..., None])[..., 0]
        return -0.5 * (center**2).sum(1), slope, -turned @ factor

    # Not the same function: a Normal that is improved as long as the search allows.
    values = lambda _, u, **kw: -np.abs(u).sum(1)
    monkeypatch.setattr(Landscape, "derivatives", derivatives)
    monkeypatch.setattr(Landscape, "values", values)
    args = num_steps, jnp.zeros(2)
    starts = find_starts(Space(ppl.as_program(states), args), args, KEY)
    assert set(seen) == {num_paths} and sum(seen) < num_hessians
    assert starts.landscape.num_paths == num_paths
