"""Laws of correlation matrices: densities, scores and draws from concentrations of a tenth to a million, and in their tails."""

import _laws
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.distributions import biject_to
from scipy.special import betaln

from lapilli import ppl  # noqa: F401, puts the mends in their places

CONCENTRATIONS = (0.1, 1.0, 7.0, 1e3, 1e6)
KEY = jax.random.key(0)
COLUMN = np.array([0, 0, 1, 0, 1, 2])  # of each free number, four rows
TURNS = np.array([1.0, -0.5, 0.3, 0.7, 0.2, -0.1])


def log_sech(u):
    return np.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u)))


class Independent:
    """Free numbers of a correlation matrix of four rows are independent: (1 + tanh) / 2 are symmetric beta variables.

    Those of column j = 1, 2, 3 with both parameters c + (3 - j) / 2: the vine of Lewandowski, Kurowicka and Joe 2009.
    """

    dist = None

    def __init__(self, concentration):
        self.b = concentration + 0.5 * (2 - COLUMN)

    def logpdf(self, x):
        u = x * TURNS
        return (
            2 * self.b * log_sech(u) - (2 * self.b - 1) * np.log(2) - betaln(self.b, self.b)
        ).sum()


class Free:
    """A law of matrices as one of free numbers, along a line."""

    def __init__(self, law):
        self.law, self.move = law, biject_to(law.support)

    def log_prob(self, x):
        u = x * jnp.asarray(TURNS)
        value = self.move(u)
        return self.law.log_prob(value) + self.move.log_abs_det_jacobian(u, value)


def places(*sizes):
    return lambda c: np.array([-1, *sizes]) * min(c**-0.5, 1)


@pytest.mark.fast("onion")
@pytest.mark.parametrize("method", ["onion", "cvine"])
def test_factors_have_their_log_density_and_score_far_out_too(method):
    law = _laws.grid(
        lambda c: Free(dist.LKJCholesky(4, c, method)),
        CONCENTRATIONS,
        values=places(0.1, 3, 10, 30),
        exact=Independent,
    )
    report = _laws.examine(law)
    print(report.worst)
    assert not report.faults, report.faults[:5]


@pytest.mark.slow  # three derivatives of a Cholesky factor
def test_matrices_have_their_log_density_and_score():
    law = _laws.grid(
        lambda c: Free(dist.LKJ(4, c)),
        CONCENTRATIONS,
        values=places(0.1, 0.5, 1),
        exact=Independent,
    )
    report = _laws.examine(law)
    print(report.worst)
    assert not report.faults, report.faults[:5]


def test_matrices_that_are_nearly_singular_are_right_or_not_a_number():
    """With smallest scales down to 1e-5: a density that is off by more than a fifth of a nat is none."""
    u = jax.random.normal(KEY, (400, 6)) * jnp.linspace(0.1, 4.0, 400)[:, None]
    given = 0

    @jax.jit
    def both(u, c):
        law, move = dist.LKJ(4, c), biject_to(dist.constraints.corr_matrix)
        return law.log_prob(move(u))

    for concentration in (0.3, 2.0, 30.0):
        found = both(u, np.float32(concentration))
        with jax.enable_x64(True):
            exact = both(np.asarray(u, float), concentration)
        found, exact = np.asarray(found), np.asarray(exact)
        known = np.isfinite(found)
        print(concentration, known.mean(), np.abs(found - exact)[known].max())
        assert (np.abs(found - exact)[known] < 0.2).all()
        given += known[np.asarray(u).std(-1) < 1].mean()
    assert given > 2.9


@pytest.mark.fast("0.1-onion")
@pytest.mark.parametrize("method", ["onion", "cvine"])
@pytest.mark.parametrize("concentration", [0.1, 3.0])
def test_draws_have_these_laws(method, concentration):
    """At .1 a fifth of the factors by the onion had 3e-4 on the diagonal, cut off there. Kolmogorov's statistic at 1e-5."""
    law = dist.LKJCholesky(4, concentration, method)
    move, num = biject_to(law.support), 4000

    @jax.jit
    def drawn(key):
        root = law.sample(key, (num,))
        return root, move.inv(root), law.log_prob(root)

    root, u, log_prob = drawn(KEY)
    assert np.isfinite(log_prob).all()
    assert (np.diagonal(root, axis1=-2, axis2=-1) > 0).all()
    np.testing.assert_allclose((root**2).sum(-1), 1, rtol=1e-6)
    u = np.asarray(u, float)
    for b, column in zip(Independent(concentration).b, u.T, strict=True):
        share = st.beta.cdf(1 / (1 + np.exp(2 * np.abs(column))), b, b)
        assert st.kstest(2 * share, "uniform").statistic < 2.5 / np.sqrt(num)
        assert abs(np.sign(column).mean()) < 4.5 / np.sqrt(num)


def test_free_numbers_come_back():
    move = biject_to(dist.constraints.corr_cholesky)
    u = jnp.array([[20.0, -12.0, 9.0, 0.5, -1e-6, 3.0], [1e-3, 30.0, 5.0, 30.0, 2.0, -30.0]])
    back = jax.jit(lambda u: move.inv(move(u)))(u)
    # A row that is full to the last digit has nothing left for those after it but what is left: all digits of it.
    np.testing.assert_allclose(back, u, rtol=1e-5)
