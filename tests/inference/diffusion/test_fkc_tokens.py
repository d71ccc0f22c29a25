"""Correctors over tokens against sums over all rows, and over all paths where conditionals are those of no law."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.inference.diffusion import TokenDiffusion, fkc_tokens
from lapilli.models import diffusion, mam

D, K = 6, 3
ROWS = np.array(list(itertools.product(range(K), repeat=D)))
JOINTS = [np.random.default_rng(seed).normal(size=(K,) * D) for seed in (0, 1)]
JOINTS = [log_p - np.logaddexp.reduce(log_p.ravel()) for log_p in JOINTS]
TABLES = [mam.Tables(log_p) for log_p in JOINTS]
SCORES = jnp.asarray(np.random.default_rng(2).normal(size=(D, K)), jnp.float32)


def model(tables, has_marginal=True):
    marginal = lambda tokens, t: tables.log_marginal(tokens)
    network = lambda tokens, t: tables.log_conditionals(tokens)
    return TokenDiffusion(network, D, K, log_marginal=marginal if has_marginal else None)


MODELS = [model(tables) for tables in TABLES]


def ahead(scale):
    """A reward that a sum over what is shown looks ahead to."""
    return lambda tokens, t: scale * jnp.where(tokens > 0, SCORES[jnp.arange(D), tokens - 1], 0.0).sum()  # fmt: skip


def exact(w1, w2, scale):
    """Log of the unnormalised target of all rows."""
    reward = np.asarray(SCORES, float)[np.arange(D), ROWS].sum(1)
    return w1 * JOINTS[0].ravel() + w2 * JOINTS[1].ravel() + scale * reward


TARGETS = {
    "annealed": (2.0, 0.0, 0.0),
    "warm": (0.5, 0.0, 0.0),
    "product": (1.0, 1.0, 0.0),
    "guided": (-1.0, 2.0, 0.0),
    "rewarded": (1.0, 0.0, 0.7),
    "all": (-0.5, 1.2, 0.5),
}
WAYS = {
    "path": (None, "path"),
    "exact": (None, "exact"),
    "two a step": (3, "exact"),
    "all at once": (1, "exact"),
}


@functools.partial(jax.jit, static_argnums=(1, 2))
def run(key, way, num_particles, target):
    """Log-evidence and the particles' rows and weights."""
    num_steps, weights = WAYS[way]
    corrected = fkc_tokens(
        MODELS, num_steps, exponents=target[:2], reward=ahead(target[2]), weights=weights
    )
    result = inference.smc(corrected, key, num_particles=num_particles, history="none")
    return result.log_evidence, result.particles.x, result.log_weights


@functools.partial(jax.jit, static_argnums=1)
def evidences(key, way, target):
    return jax.lax.map(
        lambda k: run(k, way, 16, target)[0], jax.random.split(key, 2000), batch_size=500
    )


@pytest.mark.slow  # 2,000 runs
@pytest.mark.parametrize("way", WAYS)
def test_the_evidence_is_the_sum_over_all_rows(way, key):
    """Six targets; 7 standard errors are a bias of 7% (standard deviations up to 0.42), of 25% where several appear at once."""
    for number, target in enumerate(TARGETS.values()):
        log_z = np.logaddexp.reduce(exact(*target))
        found = evidences(jax.random.fold_in(key, number), way, jnp.array(target))
        assert_unbiased(np.exp(np.asarray(found, float) - log_z), 1.0)


@pytest.mark.slow
def test_the_total_variation_falls_with_particles(key):
    """Of the weighted particles to the target: by the root of their number, and a run without weights stays away."""
    target = TARGETS["guided"]
    p = np.exp(exact(*target) - np.logaddexp.reduce(exact(*target)))
    places = K ** np.arange(D)[::-1]

    def distance(size, weighed=True):
        _, x, log_weights = run(key, "path", size, jnp.array(target))
        weights = np.exp(np.asarray(log_weights, float)) if weighed else np.full(size, 1 / size)
        return 0.5 * np.abs(np.bincount(np.asarray(x) @ places, weights, K**D) - p).sum()

    sizes = [1_000, 4_000, 16_000, 64_000]
    found = [distance(size) for size in sizes]
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert -0.6 < slope < -0.4 and found[-1] < 0.05


# Conditionals of no one law, that look at the time: what the target is then.

SIZE, STEPS = 2, 3
LEVELS = jnp.asarray(np.random.default_rng(3).normal(size=(2, SIZE, K + 1, SIZE, K)), jnp.float32)
STATES = np.array(list(itertools.product(range(K + 1), repeat=SIZE)))
WHOLE = (STATES > 0).all(1)


def rough(number):
    def network(tokens, t):
        level = LEVELS[number][jnp.arange(SIZE), tokens].sum(0)
        return jax.nn.log_softmax(0.5 * level * (1 + t), -1)

    return network


def noising(kind, kept):
    """The law of a token given another, [before, after], over tokens 0 to K."""
    eye = np.eye(K + 1)
    if kind == "masked":
        return np.vstack([eye[:1], kept * eye[1:] + (1 - kept) * eye[:1]])
    return np.pad(kept * np.eye(K) + (1 - kept) / K, ((1, 0), (1, 0)))


def of_paths(kind, powers):
    """Sum over paths of F(path | x)^(1 - W) prod_i P_i(path)^w_i for all states x at the end, by the kernels of each step."""
    first = np.eye(K + 1)[0] if kind == "masked" else np.r_[0, np.full(K, 1 / K)]
    total = np.prod(first[STATES], 1) ** sum(powers)
    for n in range(STEPS):
        t, s = 1 - n / STEPS, 1 - (n + 1) / STEPS
        start, step = noising(kind, 1 - s), noising(kind, (1 - t) / (1 - s))
        back = np.prod(step[STATES[None, :, :], STATES[:, None, :]], 2)  # F(x | y), [x, y]
        kernel = np.where(back > 0, back, 1.0) ** (1 - sum(powers)) * (back > 0)
        for number, w in enumerate(powers):
            shares = np.exp(np.asarray(jax.vmap(rough(number), (0, None))(jnp.asarray(STATES), t), float))  # fmt: skip
            move = np.ones((len(STATES), len(STATES)))
            for row, i in itertools.product(range(len(STATES)), range(SIZE)):
                token = STATES[row, i]
                of_value = start[1:, :] * step[:, token]
                mass = of_value.sum(1, keepdims=True)
                posterior = np.divide(of_value, mass, out=np.zeros_like(of_value), where=mass > 0)
                share = np.eye(K)[token - 1] if kind == "masked" and token else shares[row, i]
                move[row] *= (share @ posterior)[STATES[:, i]]
            kernel = kernel * np.where(move > 0, move, 1.0) ** w * (move > 0)
        total = total @ kernel
    return total[WHOLE]


def indicator(place):
    """A reward that keeps one row, told at the end."""
    row = jnp.asarray(STATES[WHOLE])[place]
    return lambda tokens, t: jnp.where((t > 0) | (tokens == row).all(), 0.0, -jnp.inf)


@pytest.mark.slow  # compiles for each
@pytest.mark.parametrize("kind", ["masked", "uniform"])
@pytest.mark.parametrize("powers", [(1.0, 0.0), (2.0, 0.0), (-0.5, 1.2)], ids=str)
def test_on_a_coarse_grid_the_target_is_the_mean_over_noised_paths(kind, powers, key):
    """Row by row, by its probability as the evidence of a reward that keeps it: nine comparisons, 40,000 particles each."""
    models = [TokenDiffusion(rough(i), SIZE, K, kind) for i in range(2)]

    @jax.jit
    def log_evidence(key, place, powers):
        corrected = fkc_tokens(models, STEPS, exponents=powers, reward=indicator(place))
        run = lambda k: inference.smc(corrected, k, num_particles=20, history="none").log_evidence
        return jax.vmap(run)(jax.random.split(key, 2000))

    want = of_paths(kind, powers)
    for place, value in enumerate(want):
        found = log_evidence(jax.random.fold_in(key, place), place, jnp.array(powers))
        assert_unbiased(np.exp(np.asarray(found, float)), value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_exponents_that_move_end_where_those_that_do_not_do(kind, key):
    """From 2 to 1.5, and from 0 to 1: only the last ones are in the target."""
    models = [TokenDiffusion(rough(i), SIZE, K, kind) for i in range(2)]
    moving = [lambda t: 1.5 + 0.5 * t, lambda t: 1 - t]
    corrected = fkc_tokens(models, STEPS, exponents=moving)
    assert corrected.log_transition is None
    run = lambda k: inference.smc(corrected, k, num_particles=20, history="none").log_evidence
    found = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    want = of_paths(kind, (1.5, 1.0)).sum()
    assert_unbiased(np.exp(np.asarray(found, float)) / want, 1.0)


@pytest.mark.slow
def test_one_variable_a_step_is_the_mean_over_orders(key):
    """Without a law behind them: (p_order)^w, averaged over both orders."""
    w, models = 2.0, TokenDiffusion(rough(0), SIZE, K)
    want = 0.0
    for order in ((0, 1), (1, 0)):
        for row in STATES[WHOLE]:
            tokens, log_p = np.zeros(SIZE, int), 0.0
            for d, i in enumerate(order):
                log_p += float(rough(0)(jnp.asarray(tokens), 1 - d / SIZE)[i, row[i] - 1])
                tokens[i] = row[i]
            want += 0.5 * np.exp(w * log_p)
    corrected = fkc_tokens(models, exponents=w)
    run = lambda k: inference.smc(corrected, k, num_particles=20, history="none").log_evidence
    found = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    assert_unbiased(np.exp(np.asarray(found, float)) / want, 1.0)


@pytest.mark.slow
def test_uniform_noise_with_marginals_is_exact_on_every_grid(key):
    """Marginals of the noised row by two matrices; the network may be wrong."""
    p = np.exp(np.random.default_rng(4).normal(size=(K, K)))
    p = jnp.asarray(p / p.sum(), jnp.float32)

    def log_marginal(tokens, t):
        even = (1 - t) * jnp.eye(K) + t / K
        return jnp.log((even @ p @ even)[tokens[0] - 1, tokens[1] - 1])

    wrong = TokenDiffusion(rough(0), SIZE, K, "uniform", log_marginal)
    corrected = fkc_tokens(wrong, 2, exponents=2.0)
    run = lambda k: inference.smc(corrected, k, num_particles=20, history="none").log_evidence
    found = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    assert_unbiased(np.exp(np.asarray(found, float)), float((p**2).sum()))


# Identities.


def test_a_model_alone_needs_no_weights(key):
    """Whatever its network and grid; and its draws are those of its chain: `token_law` gives a path the same weight."""
    alone = TokenDiffusion(rough(0), SIZE, K, "uniform")
    result = jax.jit(
        lambda k: inference.smc(fkc_tokens(alone, STEPS), k, num_particles=10, history="none")
    )(key)
    np.testing.assert_allclose(result.increments, 0.0, atol=1e-6)
    assert ((result.particles.x >= 0) & (result.particles.x < K)).all()


def test_any_order_particles_of_a_marginalization_model_have_the_same_weights(key):
    """On one path, with a marginal and a conditional network that disagree: `mam.feynman_kac` and exact weights, step by step."""
    networks = mam.residual_mlps(4, K, width=8, key=key)
    log_f = lambda x: 0.3 * x.sum() - 0.1 * (x**2).sum()
    particles = mam.feynman_kac(mam.MaM(networks), log_f)
    q = TokenDiffusion(
        lambda tokens, t: networks.log_conditionals(tokens), 4, K,
        log_marginal=lambda tokens, t: networks.log_marginal(tokens),
    )  # fmt: skip
    end = lambda tokens, t: jnp.where(t > 0, 0.0, log_f(tokens - 1) - networks.log_marginal(tokens))
    ours = fkc_tokens(q, reward=end)

    @jax.jit
    def weights(key):
        theirs, old = [], particles.init(key)
        before = at = ours.init(key)
        steps = [ours.log_potential(at, at, 0)]
        theirs.append(particles.log_potential(old, old, 0))
        for n in range(1, 5):
            new = particles.kernel(jax.random.fold_in(key, n), old, n)
            theirs.append(particles.log_potential(old, new, n))
            at = ours.kernel(
                key, before, n
            )  # another value: only what it stores of its place matters
            log_probs = jnp.zeros((1, 4, K)) if n == 4 else networks.log_conditionals(new.value + 1)[None]  # fmt: skip
            level = networks.log_marginal(new.value + 1)[None]
            reward = end(new.value + 1, 1.0 - n / 4)
            at = at._replace(tokens=new.value + 1, log_probs=log_probs, log_densities=level, reward=reward)  # fmt: skip
            steps.append(ours.log_potential(before, at, n))
            old, before = new, at
        return jnp.stack(theirs), jnp.stack(steps)

    theirs, steps = weights(key)
    np.testing.assert_allclose(theirs, steps, atol=2e-5)


def test_the_weight_of_a_path_is_that_of_the_chains_law(key):
    """Masked diffusion and any-order conditionals: every noised path of a row has the table's probability, by both."""
    tables, row = TABLES[0], jnp.array([0, 2, 1, 1, 0, 2])
    law = diffusion.token_law(lambda: MODELS[0].network, D, K, 50)
    log_weight = law.estimate_log_density(key, {"x": row})
    assert abs(log_weight - tables.log_marginal(row + 1)) < 0.5  # some of the 50 steps show two
    path = jnp.where(jnp.arange(D) < jnp.arange(D + 1)[:, None], row + 1, 0)
    steps = [MODELS[0].log_probs(tokens, 0.5)[n, row[n]] for n, tokens in enumerate(path[:-1])]
    np.testing.assert_allclose(sum(steps), tables.log_marginal(row + 1), rtol=1e-4)


@pytest.mark.parametrize("num_steps", [None, 3])
def test_the_density_of_a_step_is_that_of_its_draws(num_steps, key):
    """Its sum over all rows that a step can lead to is 1, and ancestors of a path can be drawn by it."""
    corrected = fkc_tokens(TokenDiffusion(rough(0), SIZE, K), num_steps, exponents=2.0)

    @jax.jit
    def total(key):
        before = corrected.kernel(key, corrected.init(key), 1)
        after = jax.vmap(lambda tokens: before._replace(tokens=tokens))(jnp.asarray(STATES))
        return jax.vmap(lambda y: corrected.log_transition(before, y, 2))(after)

    np.testing.assert_allclose(jnp.exp(total(key)).sum(), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_a_row_can_be_kept_and_given_other_ancestors(key):
    """Conditional SMC with ancestor sampling leaves the annealed law: shares of all rows over 4,000 exact rows, moved once."""
    small = mam.Tables(JOINTS[0][0, 0, 0, 0])
    network = lambda tokens, t: small.log_conditionals(tokens)
    corrected = fkc_tokens(TokenDiffusion(network, SIZE, K), exponents=2.0)
    p = np.exp(2 * JOINTS[0][0, 0, 0, 0].ravel())
    p = p / p.sum()
    whole = jnp.asarray(STATES[WHOLE])

    def path_of(key):
        """An exact path: a row of the target, unmasked in a random order."""
        row_key, order_key = jax.random.split(key)
        row = whole[jax.random.categorical(row_key, jnp.log(jnp.asarray(p)))]
        order = jax.random.permutation(order_key, SIZE)
        rank = jnp.argsort(order)
        at = lambda n: corrected.init(key)._replace(tokens=jnp.where(rank < n, row, 0))
        states = [at(n) for n in range(SIZE + 1)]
        probs = [small.log_conditionals(s.tokens)[None] for s in states[:-1]]
        probs.append(jnp.zeros((1, SIZE, K)))
        states = [s._replace(log_probs=q) for s, q in zip(states, probs, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def one(key):
        path_key, move_key = jax.random.split(key)
        moved = inference.particles.conditional_smc(
            corrected, move_key, path_of(path_key), num_particles=4, path="ancestor"
        )
        return moved.tokens[-1]

    rows = jax.jit(jax.vmap(one))(jax.random.split(key, 4000))
    assert_unbiased((np.asarray(rows)[:, None] == STATES[WHOLE]).all(-1).astype(float), p)


def test_what_a_network_says_adds_up_to_one_or_the_evidence_is_nan(key):
    """Known numbers are refused (`test_checks.py`); traced ones make NaN, but where a value is shown and nobody looks."""

    def run(logits, of_shown):
        network = lambda tokens, t: jnp.where((tokens == 0)[:, None], logits, of_shown)
        alone = fkc_tokens(TokenDiffusion(network, SIZE, K))
        return inference.smc(alone, key, num_particles=4, history="none").log_evidence

    run = jax.jit(run)
    for seed in range(3):
        logits = jax.random.normal(jax.random.key(seed), (SIZE, K))
        assert jnp.isnan(run(logits, 0.0))
        np.testing.assert_allclose(run(jax.nn.log_softmax(logits), 7.0), 0.0, atol=1e-5)
