"""The law as a program: its estimate against quadrature, its draws, its chains in programs, rows, contexts, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import diffusion

VP = diffusion.VP()
TIMES = np.array([1.0, 0.6, 0.42, 0.3, 0.2, 0.12])  # 5 steps, weights of moderate variance
MIXTURE = diffusion.gaussian_mixture(VP, [0.3, 0.7], [[-1.5], [1.0]], 0.2)
POINTS = np.array([-1.5, -0.3, 0.8, 1.2])


def normal(x, mean, variance):
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


@pytest.fixture(scope="module")
def density():
    """Of the chain's point at `POINTS`, by quadrature over each step."""
    grid = np.linspace(-6, 6, 1601)
    h = grid[1] - grid[0]
    alpha, variance = (
        np.asarray(jax.vmap(f)(jnp.asarray(TIMES)), float) for f in (VP.alpha, VP.variance)
    )
    p = normal(grid, 0, variance[0])
    scores = jax.jit(jax.vmap(jax.vmap(MIXTURE.score, (0, None)), (None, 0)))
    score = np.asarray(scores(jnp.asarray(grid)[:, None], jnp.asarray(TIMES)), float)[..., 0]
    for n in range(5):
        kept = (alpha[n] / alpha[n + 1]) ** 2
        narrow = variance[n + 1] * (variance[n] - kept * variance[n + 1]) / variance[n]
        # the mean of x_{n+1} given x_n and the denoised point, from DDPM's equation 7
        denoised = (grid + variance[n] * score[n]) / alpha[n]
        from_noise = np.sqrt(kept) * variance[n + 1] / variance[n]
        from_data = alpha[n + 1] * (1 - kept * variance[n + 1] / variance[n])
        mean = from_noise * grid + from_data * denoised
        rho = 0.5 * variance[n] / (0.5 * alpha[n] ** 2 + variance[n])  # at data variance 0.5
        p = (normal(grid[None], mean[:, None], narrow + from_data**2 * rho) * p[:, None]).sum(0) * h
    assert abs(p.sum() * h - 1) < 1e-6
    last = normal(POINTS[:, None], grid / alpha[-1], variance[-1] / alpha[-1] ** 2)
    return (last * p).sum(1) * h


@pytest.mark.slow
def test_the_estimate_has_the_chains_density_as_its_mean(density, key):
    """E[exp w] at four points, 20,000 estimates each: a bias of 8 % is over 7 standard errors."""
    law = diffusion.law(MIXTURE, TIMES, data_variance=0.5)
    one = lambda k: jax.vmap(lambda x: law.estimate_log_density(k, {"x": x}))(POINTS[:, None])
    log_weights = jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))
    assert_unbiased(np.exp(np.asarray(log_weights, float)), density)
    # its mean is what `bound` estimates along the same grid
    bounds = jax.vmap(
        lambda k: diffusion.bound(MIXTURE, POINTS[:, None], k, times=TIMES, data_variance=0.5)
    )
    mean = bounds(jax.random.split(jax.random.fold_in(key, 1), 20_000)).mean(0)
    np.testing.assert_allclose(mean, log_weights.mean(0), atol=0.09)  # 5 standard errors


def test_a_draw_has_the_inverse_density(key):
    """E[exp(-w) 1(x in A)] is the length of A."""
    law = diffusion.law(MIXTURE, TIMES, data_variance=0.5)

    def one(k):
        trace = law.simulate(k)
        return trace.choices["x"][0], trace.log_density

    x, log_weight = (
        np.asarray(a, float) for a in jax.jit(jax.vmap(one))(jax.random.split(key, 50_000))
    )
    sets = [(-2.0, -1.0), (0.0, 1.0), (1.0, 1.5)]
    found = np.stack([np.exp(-log_weight) * ((x > a) & (x < b)) for a, b in sets], 1)
    assert_unbiased(found, [b - a for a, b in sets])
    assert law.bounds == {"draw": "upper", "score": "lower"}


def joint(y):
    z = diffusion.reverse_chain("z", MIXTURE, TIMES, data_variance=0.5)
    ppl.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def test_the_two_chains_are_the_law(density, key):
    """The statements' log-ratio has the same mean of its exponential; `ppl.marginal` makes the estimate of them."""

    def chain():
        diffusion.reverse_chain("z", MIXTURE, TIMES, data_variance=0.5)

    def noised(kept):
        diffusion.noising_chain("z", kept["z"], VP, TIMES)

    law = ppl.marginal(chain, keep=["z"], proposal=noised)
    one = lambda k: jax.vmap(lambda x: law.estimate_log_density(k, {"z": x}))(POINTS[:, None])
    assert_unbiased(
        np.exp(np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 20_000)), float)), density
    )


@pytest.mark.slow  # many runs
def test_particles_have_the_evidence_of_a_program_with_a_chain(key):
    """Of the joint program by smc, against the density of the chain by draws: the mean of the evidence within 4.5 errors."""
    y = jnp.array([0.4])
    program = ppl.model(joint)
    one = lambda k: inference.smc(program, k, y, num_particles=100).log_evidence
    found = np.exp(np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 500)), float))
    draws = jax.vmap(lambda k: program.simulate(k, y).choices["z"][0])(
        jax.random.split(jax.random.fold_in(key, 1), 100_000)
    )
    exact = normal(0.4, np.asarray(draws, float), 0.25)
    error = np.hypot(found.std() / len(found) ** 0.5, exact.std() / len(exact) ** 0.5)
    assert abs(found.mean() - exact.mean()) < 4.5 * error and error < 0.02 * exact.mean()


@pytest.mark.slow  # a network within an objective is compiled
def test_a_chain_in_a_plate_trains_with_its_network_by_elbo(key):
    """Rows, a module, minibatches, and row-wise weights; sums over rows are those of single rows."""
    net = diffusion.MLP((2,), width=8, depth=1, key=key)
    times = VP.log_snr_times(4)

    def model(y):
        prior = diffusion.from_network(ppl.module("net", net), VP, (2,))
        with ppl.plate("rows", len(y)):
            z = diffusion.reverse_chain("z", prior, times)
            ppl.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def guide(y):
        rate = ppl.param("rate", jnp.array(0.5))
        with ppl.plate("rows", len(y)):
            z = ppl.sample("z", dist.Normal(rate * y, 0.5).to_event(1))
            diffusion.noising_chain("z", z, VP, times)

    y = jax.random.normal(key, (4, 2))
    fit = inference.fit(
        inference.elbo(model, guide), optax.adam(1e-2), (y,), num_steps=3, subsample={"rows": 2}, progress=False
    )  # fmt: skip
    moved = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(),
        fit.params["net"],
        inference.elbo(model, guide).init(key, y)["net"],
    )
    assert all(m > 0 for m in jax.tree.leaves(moved))
    program = ppl.as_program(model)
    choices = program.simulate(key, y).choices
    of_rows = sum(
        program.log_density({n: c[i : i + 1] for n, c in choices.items()}, y[i : i + 1])
        for i in range(4)
    )
    np.testing.assert_allclose(program.log_density(choices, y), of_rows, rtol=1e-5)


@pytest.mark.slow
def test_rows_have_their_own_context(key):
    """Each row's chain is that of its own model: log-probs equal those of the rows' models one by one."""
    model_of = lambda mean: diffusion.gaussian_mixture(VP, [1.0], mean[None], 0.2)
    means = jnp.array([[-1.0], [0.5], [2.0]])

    def program():
        with ppl.plate("rows", 3):
            diffusion.reverse_chain("z", model_of, TIMES, context=means)

    trace = ppl.as_program(program).simulate(key)
    path = trace.choices["z_path"]
    alone = [
        ppl.as_program(lambda m=m: diffusion.reverse_chain("z", model_of(m), TIMES)).trace(
            {"z_path": path[i], "z": trace.choices["z"][i]}
        ).log_probs["z_path"]
        for i, m in enumerate(means)
    ]  # fmt: skip
    np.testing.assert_allclose(trace.log_probs["z_path"], jnp.stack(alone), rtol=1e-5)


@pytest.mark.slow
def test_memory_of_a_derivative_grows_by_the_path_alone(key):
    """From 8 to 512 steps of a network of width 64 a derivative of the law keeps a point a step, 64 bytes, not activations."""
    net = diffusion.MLP((16,), width=64, depth=2, key=key)

    def temporary(num_steps):
        times = VP.log_snr_times(num_steps)

        def loss(x, net):
            law = diffusion.law(diffusion.from_network(net, VP, (16,)), times)
            return law.estimate_log_density(key, {"x": x})

        import equinox as eqx

        arrays, static = eqx.partition(net, eqx.is_inexact_array)
        grad = jax.grad(lambda arrays, x: loss(x, eqx.combine(arrays, static)))
        compiled = jax.jit(grad).lower(arrays, jnp.zeros(16)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(8), temporary(512)
    assert many - few < 504 * 3 * 64, (few, many)


@pytest.mark.slow  # a filter over steps that have chains of their own
def test_a_filter_through_chains_has_kalmans_evidence(key):
    """A state whose next value is a chain's point given it: the mean of the evidence over 300 runs, within 4.5 errors."""
    y = np.array([0.5, -0.2, 0.9])
    times = VP.log_snr_times(6)
    of = lambda z: diffusion.gaussian_mixture(VP, [1.0], 0.8 * z[None], 0.36)

    def model(y):
        def step(z, y):
            z = diffusion.reverse_chain("z", of(z), times, data_variance=0.36)
            ppl.sample("y", dist.Normal(z[0], 0.5), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(1), y)

    exact, mean, variance = 0.0, 0.0, 0.0
    for value in y:
        mean, variance = 0.8 * mean, 0.64 * variance + 0.36
        exact += np.log(normal(value, mean, variance + 0.25))
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    one = lambda k: (
        inference.smc(ppl.model(model), k, jnp.asarray(y), num_particles=100).log_evidence
    )
    found = np.exp(np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 300)), float) - exact)
    # the chain begins without the rest of the mean at the end of the process, 0.005, and ends with noise of 0.01
    assert abs(found.mean() - 1) < 4.5 * found.std() / 300**0.5 + 0.01, found.mean()


@pytest.mark.slow  # objectives of estimated densities are compiled
def test_the_law_is_a_model_and_a_proposal(key):
    """As the model of a bound of its mass, 1, and of a tighter one; as the proposal of a posterior; with its own network."""
    law = diffusion.law(MIXTURE, TIMES, data_variance=0.5)
    given = lambda: ppl.sample("x", dist.Normal(jnp.array([0.25]), 1.3).to_event(1))
    keys = jax.random.split(key, 2000)
    value = lambda objective: jax.jit(jax.vmap(lambda k: objective.value({}, k)))(keys)
    low, high = (
        value(f)
        for f in (inference.elbo(law, given), inference.iwelbo(law, given, num_particles=50))
    )
    assert low.mean() + 0.1 < high.mean() < 4.5 * high.std() / 2000**0.5 and high.mean() > -0.1

    def target():
        ppl.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    weighted = ppl.normalize(target, proposal=law, num_particles=50)
    draws = jax.jit(jax.vmap(lambda k: weighted.simulate(k).choices["x"][0]))(keys)
    assert (
        abs(draws.mean()) < 0.25 and abs(draws.std() - 1) < 0.25
    )  # from the mixture to Normal(0, 1)

    net = diffusion.MLP((1,), width=8, depth=1, key=key)
    learned = diffusion.law(lambda: diffusion.from_network(ppl.module("net", net), VP, (1,)), TIMES)
    objective = inference.elbo(learned, given)
    slope = objective.value_and_grad(objective.init(key), key)[1]["net"]
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slope)) > 1e-3


@pytest.mark.parametrize("shape", [(5, 2), (5, 1), (3,)])
def test_a_variance_for_other_coordinates_is_refused(shape, key):
    """Broadcast, five rows of variances gave five times the path's log-density, and no error."""
    model = diffusion.gaussian_mixture(diffusion.VP(), [1.0], [[0.0, 0.0]], 1.0)
    law = diffusion.law(model, diffusion.VP().log_snr_times(5), data_variance=jnp.ones(shape))
    with pytest.raises(ValueError, match="data_variance has shape .* and a point"):
        law.estimate_log_density(key, {"x": jnp.zeros(2)})


def test_whole_numbers_are_points(key):
    model = diffusion.gaussian_mixture(diffusion.VP(), [1.0], [[0.0, 0.0]], 1.0)
    law = diffusion.law(model, diffusion.VP().log_snr_times(5))
    found = [law.estimate_log_density(key, {"x": jnp.ones(2, t)}) for t in (int, float)]
    np.testing.assert_array_equal(*found)
