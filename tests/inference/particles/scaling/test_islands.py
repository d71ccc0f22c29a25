"""Islands of particles: the evidence and its products are unbiased, genealogies hold together, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _state_space import GOLDEN as Y, GOLDEN_EVIDENCE, golden as walk, golden_posterior

from _stats import assert_unbiased
from lapilli import inference
from lapilli.inference.particles import resampling
from lapilli.inference.particles.engine._exchange import Exchange
from lapilli.inference.particles.resampling import lineages

EVERY, ESS = resampling.every(), resampling.ess_below(0.9)


# The state remembers where its particle was before, so that paths can be checked.
WALK = inference.FeynmanKac(
    init=lambda key: (jax.random.normal(key), jnp.zeros(())),
    kernel=lambda key, z, t: (0.9 * z[0] + jax.random.normal(key), z[0]),
    log_potential=lambda _, z, t: -0.5 * (jnp.log(2 * jnp.pi) + (jnp.asarray(Y)[t] - z[0]) ** 2),
    num_steps=4,
)


def ahead(x, t, ys):
    """A look-ahead to the next observation, narrower than its predictive density."""
    return -0.3 * (jnp.append(ys, 0.0)[t + 1] - 0.9 * x) ** 2


def path(values):
    return values[0] if isinstance(values, tuple) else jnp.append(values["x0"], values["x"])


def z_and_means(target, *args, **options):
    """exp(log_evidence) / Z times (1, weighted means of the path): unbiased for (1, smoothing means), at every size."""

    def one(key):
        result = inference.particles.islands(target, key, *args, **options)
        paths = jax.vmap(jax.vmap(path))(result.particles if args else result.paths)
        means = jnp.tensordot(jnp.exp(result.log_weights), paths, 2)
        return jnp.exp(result.log_evidence - GOLDEN_EVIDENCE) * jnp.append(1.0, means)

    return jax.jit(jax.vmap(one))


CASES = {
    "feynman-kac, every": (WALK, (), {"island_policy": EVERY, "policy": EVERY}),
    "program, ess": (walk, (Y,), {"island_policy": ESS}),
    "program, one particle each": (
        walk, (Y,), {"num_islands": 32, "num_particles": 1, "island_resampling": "multinomial"},
    ),
    "feynman-kac, butterfly": (
        WALK, (), {"num_islands": 4, "num_particles": 8, "exchange": "butterfly", "island_policy": ESS},
    ),
    "program, butterfly": (
        walk, (Y,), {"num_islands": 4, "exchange": "butterfly", "island_resampling": "ssp", "island_policy": EVERY},
    ),
    "program, partly": (walk, (Y,), {"resampling": resampling.partial_resampling(0.5), "policy": EVERY}),
    "program, look-ahead": (walk, (Y,), {"island_policy": EVERY, "twist": ahead}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_evidence_and_smoothing_are_unbiased(case, key):
    """N = 4000, relative sd below 0.4: a bias of 4.5% of the evidence is 7 standard errors."""
    target, args, options = CASES[case]
    run = z_and_means(target, *args, **{"num_islands": 6, "num_particles": 6} | options)
    got = run(jax.random.split(key, 4000))
    assert np.std(got[:, 0]) < 0.4
    assert_unbiased(got, np.append(1.0, golden_posterior()[0]))


@pytest.mark.slow  # three seeds of 20 000 runs for four combinations of policies
@pytest.mark.parametrize("policy", [EVERY, resampling.never()], ids=["every", "never"])
@pytest.mark.parametrize("island_policy", [EVERY, resampling.every(2)], ids=["every", "second"])
def test_evidence_is_unbiased_under_every_pair_of_policies(policy, island_policy, seed):
    """N = 20 000, relative sd below 0.6: a bias of 3% is 7 standard errors."""
    options = {"policy": policy, "island_policy": island_policy}
    for target, args in ((WALK, ()), (walk, (Y,))):
        run = z_and_means(target, *args, num_islands=6, num_particles=6, **options)
        assert_unbiased(run(jax.random.split(seed, 20_000)), np.append(1.0, golden_posterior()[0]))


@pytest.mark.slow
def test_an_exchange_that_keeps_the_shares_is_caught(key, monkeypatch):
    """Negative control: offspring of islands must have equal shares."""

    def broken(self, step, moving, log_weights, shares):
        moving, log_weights, new, met = exchange(self, step, moving, log_weights, shares)
        return moving, log_weights, jnp.where(jnp.isnan(new), new, shares), met

    exchange = Exchange.exchange
    monkeypatch.setattr(Exchange, "exchange", broken)
    run = z_and_means(WALK, num_islands=6, num_particles=6, island_policy=EVERY)
    with pytest.raises(AssertionError, match="z ="):
        assert_unbiased(run(jax.random.split(key, 4000)), np.append(1.0, golden_posterior()[0]))


@pytest.mark.slow  # two long compilations
def test_islands_that_never_meet_are_replicates(key):
    alone = inference.particles.islands(
        walk, key, Y, num_islands=5, num_particles=20, island_policy=resampling.never()
    )
    run = lambda key: inference.smc(walk, key, Y, num_particles=20)
    runs = inference.particles.replicate(run, key, 5)
    np.testing.assert_allclose(alone.log_evidence, runs.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(alone.log_weights.reshape(-1), runs.log_weights, atol=1e-5)
    np.testing.assert_array_equal(alone.particles["x"], runs.runs.particles["x"])
    np.testing.assert_array_equal(alone.is_resampled.T, runs.runs.is_resampled)
    assert not alone.is_exchanged.any()


@pytest.mark.slow  # a long compilation
@pytest.mark.parametrize(("exchange", "num_islands"), [("islands", 6), ("butterfly", 8)])
def test_paths_follow_particles_through_exchanges(exchange, num_islands, key):
    result = inference.particles.islands(
        WALK,
        key,
        num_islands=num_islands,
        num_particles=7,
        island_policy=EVERY,
        policy=EVERY,
        exchange=exchange,
    )
    x, before = (np.asarray(v).reshape(-1, 5) for v in result.paths)
    np.testing.assert_array_equal(before[:, 1:], x[:, :-1])
    np.testing.assert_array_equal(x[:, -1], np.asarray(result.particles[0]).reshape(-1))
    # Ancestors tell the same: two paths agree at a step where, and only where, they have one forefather there.
    index = np.asarray(lineages(result.ancestors.reshape(5, -1)))
    for t in range(5):
        np.testing.assert_array_equal(
            x[:, None, t] == x[None, :, t], index[t][:, None] == index[t][None]
        )
    if exchange == "islands":
        assert len(np.unique(index[0] // 7)) < 6  # islands did die out


@pytest.mark.slow
def test_a_butterfly_evens_shares_and_spreads_descendants(key):
    """One island has nearly all the weight: after three stages every island descends from it, in equal parts."""
    own = lambda key: jax.lax.axis_index("lapilli_islands").astype(float)
    chain = inference.FeynmanKac(
        init=own, kernel=lambda key, x, t: x, log_potential=lambda _, x, t: jnp.where(t == 0, -9.0 * (x != 5), 0.0), num_steps=1
    )  # fmt: skip
    run = lambda key: inference.particles.islands(
        chain, key, num_islands=8, num_particles=5, exchange="butterfly", policy=resampling.never(), island_policy=EVERY
    )  # fmt: skip
    result = jax.jit(run)(key)
    np.testing.assert_allclose(result.island_log_weights[1], -np.log(8), rtol=1e-6)
    np.testing.assert_allclose(result.log_weights, -np.log(40), rtol=1e-6)
    assert (np.asarray(result.particles) == 5).mean() > 0.9
    np.testing.assert_array_equal(result.ancestors[1] // 5, result.particles)
    np.testing.assert_array_equal(result.paths[..., 0], result.particles)


@pytest.mark.slow
def test_weights_are_normalised_over_all_islands(key):
    result = inference.particles.islands(
        walk, key, Y, num_islands=6, num_particles=7, island_policy=ESS
    )
    np.testing.assert_allclose(jnp.exp(result.log_weights).sum(), 1, rtol=1e-5)
    totals = jnp.exp(result.step_log_weights).sum((1, 2))
    np.testing.assert_allclose(totals, 1, rtol=1e-5)
    np.testing.assert_allclose(result.increments.sum(), result.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(
        result.mean(lambda c: c["x"][-1]),
        (jnp.exp(result.log_weights) * result.particles["x"][..., -1]).sum(), rtol=1e-4,
    )  # fmt: skip
    assert result.sample(key, 9)["x"].shape == (9, 4)
    assert inference.to_arviz(result, key=key, num_samples=9).posterior["x"].shape == (1, 9, 4)
    assert result.island_ess.shape == (5,) and result.ess.shape == (5, 6)


@pytest.mark.slow
def test_history_none_keeps_no_genealogy(key):
    options = {"num_islands": 3, "num_particles": 4, "island_policy": EVERY}
    full = inference.particles.islands(WALK, key, **options)
    none = inference.particles.islands(WALK, key, **options, history="none")
    assert none.ancestors is None and none.step_log_weights is None and none.paths is None
    np.testing.assert_allclose(none.log_evidence, full.log_evidence, rtol=1e-6)


@pytest.mark.slow
def test_lost_islands_are_told(key):
    lost = inference.FeynmanKac(
        WALK.init, WALK.kernel, lambda p, x, t: jnp.where(t == 1, -jnp.inf, 0.0), 2
    )
    with pytest.warns(UserWarning, match="islands: after weighing 1 no particle"):
        result = inference.particles.islands(lost, key, num_islands=2, num_particles=3)
    found = jax.tree.leaves((result.mean(lambda x: x), result.sample(key, 3)))
    assert all(jnp.isnan(x).all() for x in found)


@pytest.mark.slow
def test_islands_that_lose_all_particles_count_as_zero(key):
    """Each of three steps keeps a particle with probability 1/2: Z = 1/8."""
    halves = inference.FeynmanKac(
        jax.random.normal,
        lambda key, x, t: jax.random.normal(key),
        lambda _, x, t: jnp.where(x > 0, 0.0, -jnp.inf),
        2,
    )
    run = lambda key: inference.particles.islands(halves, key, num_islands=8, num_particles=1)
    results = jax.jit(jax.vmap(run))(jax.random.split(key, 20_000))
    assert_unbiased(np.exp(np.asarray(results.log_evidence, float)), 1 / 8)
    is_lost = np.asarray(results.log_evidence) == -np.inf
    assert 0 < is_lost.mean() < 0.1
    np.testing.assert_array_equal(is_lost, np.asarray(results.failed_at) >= 0)
    dead = np.asarray(results.island_log_weights)[~is_lost][:, -1]
    np.testing.assert_allclose(np.exp(dead).sum(-1), 1, rtol=1e-5)


@pytest.mark.slow  # seconds of compilation
def test_islands_move_as_wholes_and_only_when_the_policy_says_so(key):
    result = inference.particles.islands(
        walk, key, Y, num_islands=6, num_particles=7, island_policy=resampling.every(2)
    )
    mothers = np.asarray(result.ancestors // 7)
    np.testing.assert_array_equal(mothers, np.broadcast_to(mothers[..., :1], mothers.shape))
    is_moved = (mothers[..., 0] != np.arange(6)).any(1)
    assert not is_moved[~np.asarray(result.is_exchanged)].any()
    assert result.is_exchanged.any() and not result.is_exchanged.all()


@pytest.mark.slow  # a run of runs compiles
def test_replicates_of_islands_have_the_shares_of_their_runs(key):
    """As many runs as islands, which no shape tells apart."""
    run = lambda key: inference.particles.islands(
        WALK, key, num_islands=3, num_particles=4, history="none", island_policy=resampling.never()
    )
    found = inference.particles.replicate(run, key, 3)
    shares = jax.nn.log_softmax(found.runs.log_evidence)
    want = jnp.stack(
        [share + one for share, one in zip(shares, found.runs.log_weights, strict=True)]
    )
    np.testing.assert_allclose(found.log_weights, want.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(found.particles[0], found.runs.particles[0].ravel())


def options_of(**change):
    return {"num_islands": 4, "num_particles": 6} | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_islands": 0}, "islands: num_islands must be an integer >= 1, got 0"),
        ({"num_particles": 1.5}, "islands: num_particles must be an integer"),
        ({"batch_size": 4}, "islands: batch_size 4 does not divide num_particles 6"),
        ({"history": "all"}, "islands: history must be"),
        ({"island_resampling": "best"}, "No resampling scheme is called 'best'"),
        ({"exchange": "all"}, "islands: exchange must be 'islands' or 'butterfly', got 'all'"),
        ({"exchange": "butterfly", "num_islands": 6}, "6 is no power of two. Use 4 or 8 islands"),
        ({"proposal": walk}, "islands: a FeynmanKac takes no program arguments"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,  # an address is no name
)
def test_refusals(change, message, key):
    with pytest.raises(ValueError, match=message):
        inference.particles.islands(WALK, key, **options_of(**change))


@pytest.mark.slow
def test_a_derivative_through_the_exchange_is_refused(key):
    shifted = lambda m: inference.FeynmanKac(
        jax.random.normal, lambda key, x, t: m + x, lambda _, x, t: -(x**2), 2
    )
    run = lambda m: (
        inference.particles.islands(
            shifted(m), key, **options_of(policy=resampling.never(), island_policy=EVERY)
        ).log_evidence
    )
    with pytest.raises(TypeError, match="islands resamples islands.*Take gradients with smc"):
        jax.grad(run)(0.5)


@pytest.mark.slow
def test_a_bad_look_ahead_is_an_error(key):
    with pytest.raises(ValueError, match="twist is NaN"):
        inference.particles.islands(
            walk, key, Y, **options_of(twist=lambda x, t, ys: x * jnp.nan, policy=EVERY)
        )
