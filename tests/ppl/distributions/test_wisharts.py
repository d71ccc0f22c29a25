"""Wishart and inverse Wishart laws: factors at concentrations up to a million, matrices that are nearly singular."""

import _laws
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st

from lapilli import ppl  # noqa: F401, puts the mends in their places

DIM = 3
SCALE = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 1.0, 0.7]], np.float32)
FACTORS = {"wishart": dist.WishartCholesky, "inverse": dist.InverseWishartCholesky}
MATRICES = {"wishart": dist.Wishart, "inverse": dist.InverseWishart}
SCIPY = {"wishart": st.wishart, "inverse": st.invwishart}
BELOW = np.tril_indices(DIM)


def points_of(name):
    """Concentrations, and entries of a factor: near where the law has most of its mass, and some way from there."""
    rng, found = np.random.default_rng(0), []
    for concentration in (2.5, 30.0, 1e3, 1e6):
        for distance in (0, 1, 5):
            noise = np.tril(rng.normal(size=(DIM, DIM)))
            inner = np.eye(DIM) + noise * distance * min(concentration**-0.5, 0.3)
            power = 0.5 if name == "wishart" else -0.5
            root = concentration**power * SCALE @ inner
            found.append([concentration, *(root * np.sign(np.diagonal(root)))[BELOW]])
    return np.array(found, np.float32)


@pytest.mark.parametrize("name", FACTORS)
def test_factors_have_their_log_density_and_score(name):
    def log_prob(v):
        root = jnp.zeros((DIM, DIM), v.dtype).at[BELOW].set(v[1:])
        return FACTORS[name](v[0], scale_tril=jnp.asarray(SCALE, v.dtype)).log_prob(root)

    def exact(concentration, *entries):
        """SciPy's density of the matrix, with the derivatives of its entries in those of the factor."""
        root = np.zeros((DIM, DIM))
        root[BELOW] = entries
        law = SCIPY[name](concentration, SCALE.astype(float) @ SCALE.T.astype(float))
        moved = (np.arange(DIM, 0, -1) * np.log(np.diagonal(root))).sum() + DIM * np.log(2)
        return law.logpdf(root @ root.T) + moved

    report = _laws.examine(_laws.Law(log_prob, points_of(name), exact))
    print(report)
    assert not report.faults, report.faults[:5]


def covariances(rng, num):
    """Matrices in units of their own, of condition numbers up to 1e8, and those numbers."""
    conditions = 10.0 ** rng.uniform(0, 8, num)
    found = []
    for condition in conditions:
        turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
        units = 10.0 ** rng.uniform(-3, 3, DIM)
        found.append(np.outer(units, units) * ((turn / np.geomspace(1, condition, DIM)) @ turn.T))
    return np.array(found, np.float32), conditions


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_that_are_nearly_singular_are_right_or_not_a_number(name):
    """Of the value or of the scale. Without the count of what rounding makes: off by 7 nats at 1e6."""

    @jax.jit
    def run(value, scale, concentration):
        law = lambda scale: MATRICES[name](concentration, scale_matrix=scale, validate_args=False)
        return jax.vmap(lambda v, s: law(s).log_prob(v))(value, scale)

    (near, condition), plain = covariances(np.random.default_rng(0), 400), np.diag([1.0, 4, 0.25])
    units = np.sqrt(np.diagonal(near, axis1=1, axis2=2))
    plain = (units[:, :, None] * plain * units[:, None, :]).astype(np.float32)
    given = []
    for value, scale in ((near, plain), (plain, near), (near, near)):
        for concentration in (4.0, 40.0):
            found = np.asarray(run(value, scale, np.float32(concentration)))
            with jax.enable_x64(True):
                exact = np.asarray(run(value.astype(float), scale.astype(float), concentration))
            # A draw is where the law is; far from there a density of millions of nats has no tenth of one.
            rounding = 20 * np.spacing(np.abs(exact).astype(np.float32))
            known = np.isfinite(found) & np.isfinite(exact)
            off = np.maximum(np.abs(found - exact) - rounding, 0)[known]
            print(name, concentration, known.mean(), off.max())
            assert (off < 0.2).all()
            given.append(known[condition < 1e3].mean())
    print(given)
    assert given[-2] > 0.95  # both alike: as drawn


@pytest.mark.parametrize("name", MATRICES)
def test_a_draw_with_its_factor_has_a_density_where_the_matrix_alone_has_none(name):
    root = jnp.asarray([[1.0, 0, 0], [1.0, 1e-4, 0], [1.0, 1e-4, 1e-5]])
    law = MATRICES[name](6.0, scale_tril=root, validate_args=False)
    value, parts = law.sample_with_intermediates(jax.random.key(0))
    assert np.isnan(jax.jit(law.log_prob)(value))
    found = law.log_prob(value, parts)
    with jax.enable_x64(True):
        factor = np.asarray(parts[-1][0], float)
        exact = FACTORS[name](6.0, scale_tril=np.asarray(root, float)).log_prob(factor)
        exact -= (np.arange(DIM, 0, -1) * np.log(np.diagonal(factor))).sum() + DIM * np.log(2)
    assert abs(float(found) - float(exact)) < 0.1


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_has_its_density_or_none_whatever_its_condition_number(name):
    """A triangular solve loses the condition number of what divides: 5 nats at 1e7, where it is not a number now."""
    rng, known = np.random.default_rng(0), {}
    own = jax.jit(
        lambda root, x: FACTORS[name](6.0, scale_tril=root, validate_args=False).log_prob(x)
    )
    for power in np.repeat(np.arange(8), 20):
        root = np.tril(rng.normal(size=(DIM, DIM)), -1) + np.diag(
            10.0 ** -np.linspace(0, power, DIM)
        )
        root = root.astype(np.float32)
        inner = np.eye(DIM) + 0.5 * np.tril(rng.normal(size=(DIM, DIM)), -1)
        factor = (root.astype(float) @ inner).astype(np.float32)
        found = float(own(root, factor))
        with jax.enable_x64(True):
            law = FACTORS[name](6.0, scale_tril=root.astype(float), validate_args=False)
            exact = float(law.log_prob(factor.astype(float)))
        known.setdefault(power, []).append(np.isfinite(found))
        assert not np.isfinite(found) or abs(found - exact) < 0.1 + 1e-4 * abs(exact)
    assert all(np.all(known[power]) for power in (0, 1, 2)) and not np.all(known[7])
