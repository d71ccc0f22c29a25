"""Koopman autoencoders: spectra, the evidence with an affine decoder, and the guide's messages."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from lapilli import inference, ppl
from lapilli.models import koopman
from lapilli.models.koopman import Spectrum

KEY = jax.random.key(0)
STATES, CHANNELS, STEPS, SERIES = 3, 2, 5, 4
DECODER = koopman.Decoder(STATES, CHANNELS, 0, key=jax.random.key(1))
ENCODER = koopman.Encoder(CHANNELS, STATES, 8, key=jax.random.key(2))
MODEL, GUIDE = koopman.programs(Spectrum(STATES), DECODER, ENCODER, num_steps=STEPS)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SERIES, STEPS, CHANNELS)).astype(np.float32)
SEEN = (RNG.random(X.shape) < 0.6) & (np.arange(STEPS) != 2)[:, None]  # nothing of one step
PARAMS = inference.elbo(MODEL, GUIDE).init(KEY, X, SEEN)


@ppl.model
def nothing(x, seen):
    """The guide of a program without latent sites."""


def matrix(spectrum, params=None):
    program = ppl.Program(lambda: koopman.transition("a", spectrum))
    params = program.init(KEY) if params is None else params
    return np.asarray(program.bind(params).simulate(KEY).retval)


@pytest.mark.parametrize(
    "spectrum, on_circle",
    [
        (Spectrum(5), 0),
        (Spectrum(4, num_on_circle=1), 2),
        (Spectrum(6, max_modulus=0.7, num_real=2), 0),
        (Spectrum(3, max_modulus=None, num_real=3), 0),
    ],
)
def test_eigenvalues_stay_in_their_set_whatever_the_parameters(spectrum, on_circle):
    start = ppl.Program(lambda: koopman.transition("a", spectrum)).init(KEY)
    for seed in range(5):
        leaves, tree = jax.tree.flatten(start)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        params = tree.unflatten(
            [3.0 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        )
        a = matrix(spectrum, params)
        found = np.linalg.eigvals(a)
        assert a.shape == (spectrum.num_states, spectrum.num_states)
        assert np.sum(np.abs(np.abs(found) - 1.0) < 1e-5) >= on_circle
        if spectrum.max_modulus is not None:
            assert np.abs(found).max() <= spectrum.max_modulus + 1e-5
        own = koopman.eigenvalues(params, spectrum, "a")
        np.testing.assert_allclose(np.sort(np.abs(own)), np.sort(np.abs(found)), atol=1e-5)


@pytest.mark.parametrize(
    "spectrum, message",
    [
        (Spectrum(3, num_real=2), "complex ones come in pairs. Choose num_real"),
        (Spectrum(3, num_on_circle=2), "num_on_circle=2 of 1 complex pairs: choose at most"),
        (Spectrum(2, max_modulus=0.0), "give a positive number"),
    ],
)
def test_what_fits_no_real_matrix_is_refused(spectrum, message):
    with pytest.raises(ValueError, match=message):
        koopman.programs(spectrum, DECODER, ENCODER, num_steps=STEPS)


def test_series_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 4, 2\), but \[series, 5 steps"):
        MODEL.bind(PARAMS).log_density({}, X[:, :4])
    for seen in (X[..., :1] > 0, X[0] > 0):
        with pytest.raises(ValueError, match=r"koopman: seen has shape .*, and x \(4, 5, 2\)"):
            MODEL.bind(PARAMS).log_density({}, X, seen)
    with pytest.raises(ValueError, match="num_series says how many"):
        MODEL.bind(PARAMS).simulate(KEY, None)


def dense():
    """Log-density of the seen cells by one normal law of all of them."""
    # The blocks of `Spectrum(3)` at their start: r R(theta) and one real eigenvalue.
    a = np.zeros((STATES, STATES))
    a[:2, :2] = 0.9 * np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    a[2, 2] = 0.5
    marginal, cov = np.eye(STATES), np.zeros((STEPS, STATES, STEPS, STATES))
    for t in range(STEPS):
        block = marginal
        for s in range(t, STEPS):
            cov[t, :, s], cov[s, :, t] = block, block.T
            block = block @ a.T
        marginal = a @ marginal @ a.T + 0.09 * np.eye(STATES)
    layer = PARAMS["decoder"].mlp.layers[0]
    w = np.kron(np.eye(STEPS), np.asarray(layer.weight, float))
    size = STEPS * STATES
    cov = w @ cov.reshape(size, size) @ w.T + 0.09 * np.eye(STEPS * CHANNELS)
    mean = np.tile(np.asarray(layer.bias, float), STEPS)
    cells = [row.ravel() for row in SEEN]
    return sum(
        stats.multivariate_normal.logpdf(x.ravel()[k], mean[k], cov[np.ix_(k, k)])
        for x, k in zip(X, cells, strict=True)
    )


def test_an_affine_decoder_has_the_evidence_of_kalmans_filter():
    exact = ppl.eliminate(MODEL, "z")
    found = jax.jit(lambda: exact.bind(PARAMS).log_density({}, X, SEEN))()
    assert abs(float(found) - dense()) < 1e-3
    objective = inference.elbo(exact, nothing)
    params = objective.init(KEY, X, SEEN)  # of the networks too
    assert sorted(params) == sorted(set(PARAMS) - {"encoder"})
    assert abs(float(objective.value(params, KEY, X, SEEN)) - dense()) < 1e-3


def test_the_guide_is_the_posterior_under_its_made_up_observations():
    """Prior times made-up likelihood over guide is one number, whatever is drawn: also where nothing is seen."""
    encoder = eqx.combine(PARAMS["encoder"], eqx.partition(ENCODER, eqx.is_inexact_array)[1])
    y, precision = encoder(jnp.asarray(X), jnp.asarray(SEEN))
    assert (np.asarray(precision)[:, 2] == 0).all()
    y, precision = np.swapaxes(y, 0, 1), np.swapaxes(precision, 0, 1)

    @jax.jit
    def weight(key):
        q = GUIDE.bind(PARAMS).simulate(key, X, SEEN)
        z = q.choices["z"]
        prior = MODEL.bind(PARAMS).trace({"z": z}, X, SEEN).log_probs["z"]
        seen = precision > 0
        law = dist.Normal(y, 1 / jnp.sqrt(jnp.where(seen, precision, 1.0)))
        likelihood = jnp.where(seen, law.log_prob(z), 0.0)
        return (prior - q.log_probs["z"]).sum(0) + likelihood.sum((0, 2))

    weights = np.array([weight(jax.random.key(i)) for i in range(3)])
    assert weights.shape == (3, SERIES)
    np.testing.assert_allclose(weights, weights[:1].repeat(3, 0), atol=2e-4)


@pytest.mark.slow
def test_a_linear_system_is_recovered():
    """Eigenvalues within 0.02 from series with a third of the cells missing."""
    rng = np.random.default_rng(0)
    wanted = Spectrum(4)
    a = np.zeros((4, 4))
    for i, (radius, angle) in enumerate([(0.98, 0.3), (0.9, 1.2)]):
        c, s = np.cos(angle), np.sin(angle)
        a[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = radius * np.array([[c, -s], [s, c]])
    basis, w = rng.normal(size=(4, 4)), rng.normal(size=(3, 4))
    a = basis @ a @ np.linalg.inv(basis)
    z, x = rng.normal(size=(100, 4)), []
    for _ in range(40):
        x.append(z @ w.T + 0.1 * rng.normal(size=(100, 3)))
        z = z @ a.T + 0.3 * rng.normal(size=(100, 4))
    x = np.stack(x, 1).astype(np.float32)
    seen = rng.random(x.shape) < 0.67
    decoder = koopman.Decoder(4, 3, 0, key=jax.random.key(1))
    encoder = koopman.Encoder(3, 4, 8, key=jax.random.key(2))
    model, _ = koopman.programs(wanted, decoder, encoder, num_steps=40)
    exact = inference.elbo(ppl.eliminate(model, "z"), nothing)
    fit = inference.fitting.fit_fixed_draws(exact, (x, seen), key=KEY, num_draws=2)
    found = koopman.eigenvalues(fit.params, wanted)
    true = np.linalg.eigvals(a)
    assert max(np.abs(found - e).min() for e in true) < 0.02
