"""Resampling schemes: laws by enumeration, unbiased counts, bounds on counts, edge cases, numbers at a million particles.

A count of offspring has a standard deviation of at most 2.3 here, so that over 1e4 replicates a bias of 0.16 offspring is
7 standard errors. False alarms: 6.8e-6 per coordinate (see _stats).
"""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _slow import some_slow

from _stats import assert_unbiased
from lapilli.inference.particles.resampling import _offspring
from lapilli.inference.particles.resampling._registry import RESAMPLERS, as_scheme
from lapilli.inference.particles.resampling._scheme import Scheme
from lapilli.inference.particles.resampling._schemes import metropolis

pytestmark = pytest.mark.one_in(2)

SCHEMES = tuple(RESAMPLERS)
SOME = some_slow(SCHEMES, "birth_death")  # whose code is mostly that of killing
UNBIASED = tuple(name for name, scheme in RESAMPLERS.items() if scheme.is_unbiased)
SQUARE = ("killing", "birth_death")
RESIZABLE = tuple(name for name in SCHEMES if name not in SQUARE)
WEIGHTS = np.array([0.31, 0.02, 0.0, 0.17, 0.08, 0.22, 0.05, 0.15])
with np.errstate(divide="ignore"):
    LOG_WEIGHTS = np.log(WEIGHTS).astype(np.float32) + np.float32(3.0)  # not normalised
REPLICATES = 10_000
METROPOLIS = {num_steps: metropolis(num_steps) for num_steps in (1, 16)}


@functools.partial(jax.jit, static_argnames=("scheme", "num"))
def runs(scheme, keys, log_weights, num):
    return jax.vmap(lambda key: scheme.ancestors(key, log_weights, num))(keys)


def draws(scheme, log_weights, key, num=None, replicates=REPLICATES):
    """Ancestors of independent runs, shape [replicates, num]."""
    return np.asarray(
        runs(scheme, jax.random.split(key, replicates), jnp.asarray(log_weights), num)
    )


def counts(ancestors, size):
    """Offspring of each particle, shape [replicates, size]."""
    return (ancestors[..., None] == np.arange(size)).sum(axis=-2)


@pytest.mark.fast(
    "seed1-birth_death-numNone",
    "seed1-killing-num13",
    "seed1-multinomial-numNone",
    "seed1-stratified-numNone",
    "seed1-systematic-numNone",
    "seed2-birth_death-numNone",
    "seed2-killing-num13",
    "seed2-killing-numNone",
    "seed2-multinomial-numNone",
    "seed2-residual-num13",
    "seed2-ssp-num13",
)
@pytest.mark.parametrize("num", (None, 13), ids="num{}".format)
@pytest.mark.parametrize("name", UNBIASED)
def test_counts_of_offspring_are_unbiased(name, num, seed):
    if name in SQUARE and num is not None:
        return
    ancestors = draws(RESAMPLERS[name], LOG_WEIGHTS, seed, num)
    assert_unbiased(counts(ancestors, 8), (num or 8) * WEIGHTS)


def broken(key, log_weights, num=None):
    """Systematic resampling without its random shift: rounding to the nearest."""
    num = num or len(log_weights)
    cumulative = jnp.cumsum(jnp.exp(log_weights - jax.nn.logsumexp(log_weights)))
    return jnp.searchsorted(cumulative, (jnp.arange(num) + 0.5) / num).astype(jnp.int32)


def test_a_scheme_without_its_random_shift_is_found_biased(key):
    scheme = Scheme("broken", broken, broken, is_unbiased=True)
    with pytest.raises(AssertionError, match="disagree"):
        assert_unbiased(counts(draws(scheme, LOG_WEIGHTS, key), 8), 8 * WEIGHTS)


@pytest.mark.fast("seed2")
def test_metropolis_approaches_the_weights_within_its_bound(seed):
    for num_steps in (1, 16):
        ancestors = draws(METROPOLIS[num_steps], LOG_WEIGHTS, seed)
        bound = (1 - 1 / (8 * WEIGHTS.max())) ** num_steps
        for slot in range(8):
            share = np.bincount(ancestors[:, slot], minlength=8) / REPLICATES
            distance = abs(share - WEIGHTS).sum() / 2
            # The distance of an empirical law of 1e4 draws on 7 points is below 0.03 but for 1e-6.
            assert distance < bound + 0.03
    assert distance < 0.03 + 2e-3  # 16 steps


def test_metropolis_of_one_step_is_biased(key):
    with pytest.raises(AssertionError, match="disagree"):
        assert_unbiased(counts(draws(METROPOLIS[1], LOG_WEIGHTS, key), 8), 8 * WEIGHTS)


# Laws by enumeration: uniform whole numbers are replaced by each value at which something changes.


def enumerated(monkeypatch, name, log_weights, num):
    """{ancestors: probability} over all places of the points, in units of 1 / Q of a stratum, for a grid scheme."""
    mass = _offspring.masses(log_weights, num)
    cumulative = np.cumsum(np.asarray(mass, np.int64))
    total = int(cumulative[-1])
    edges = sorted({0, total, *(int(c) * num % total for c in cumulative)})
    pieces = list(itertools.pairwise(edges))
    law = {}
    for choice in itertools.product(pieces, repeat=1 if name == "systematic" else num):
        at = jnp.array([start for start, _ in choice], jnp.int32)
        at = at[0] if name == "systematic" else at
        monkeypatch.setattr(_offspring, "uniform_below", lambda key, total, shape, at=at: at)
        ancestors = RESAMPLERS[name].ancestors(jax.random.key(0), log_weights, num)
        chance = np.prod([(end - start) / total for start, end in choice])
        law[tuple(map(int, ancestors))] = law.get(tuple(map(int, ancestors)), 0.0) + chance
    return law


def exact_law(name, weights, num):
    """The same from the definition, in exact fractions."""
    weights = [Fraction(w).limit_denominator(1000) for w in weights]
    until = list(itertools.accumulate(weights))
    grid = [Fraction(i, num) for i in range(num + 1)]
    owner = lambda point: next(k for k, c in enumerate(until) if c > point)
    law = {}
    if name == "systematic":
        shifts = sorted({Fraction(0), grid[1], *(c % grid[1] for c in until)})
        for start, end in itertools.pairwise(shifts):
            ancestors = tuple(owner(start + g) for g in grid[:-1])
            law[ancestors] = law.get(ancestors, 0) + (end - start) * num
        return law
    overlap = lambda k, j: max(0, min(until[k], grid[j + 1]) - max(until[k] - weights[k], grid[j]))
    for ancestors in itertools.product(range(len(weights)), repeat=num):
        chance = Fraction(1)
        for j, k in enumerate(ancestors):
            chance *= overlap(k, j) * num if name == "stratified" else weights[k]
        if chance:
            law[ancestors] = chance
    return law


@pytest.mark.slow_for("full-stratified-3", "gap-stratified-4")
@pytest.mark.parametrize("num", (3, 4))
@pytest.mark.parametrize("name", ("systematic", "stratified"))
@pytest.mark.parametrize("weights", ([0.5, 0.2, 0.3], [0.1, 0.0, 0.9]), ids=("full", "gap"))
def test_law_of_a_grid_scheme_is_exact_by_enumeration(monkeypatch, name, num, weights):
    with np.errstate(divide="ignore"):
        law = enumerated(monkeypatch, name, jnp.log(jnp.array(weights)), num)
    exact = exact_law(name, weights, num)
    for ancestors in law.keys() | exact.keys():
        assert abs(law.get(ancestors, 0) - float(exact.get(ancestors, 0))) < 1e-6


@pytest.mark.fast("seed1-multinomial")
@pytest.mark.parametrize("name", ("multinomial", "rejection"))
def test_slots_of_multinomial_resampling_are_independent(name, seed):
    weights = [0.5, 0.2, 0.3]
    # The rarest of the 27 outcomes has probability 0.008: enough replicates for a normal tail.
    log_weights = np.log(weights).astype(np.float32)
    ancestors = draws(RESAMPLERS[name], log_weights, seed, replicates=10 * REPLICATES)
    exact = exact_law("multinomial", weights, 3)
    cells = (ancestors[:, None, :] == np.array(list(exact))).all(axis=-1)
    assert_unbiased(cells, [float(p) for p in exact.values()])


@pytest.mark.parametrize("num", (None, 13))
@pytest.mark.parametrize("name", ("systematic", "ssp"))
def test_counts_are_rounded_down_or_up(name, num, key):
    number = counts(draws(RESAMPLERS[name], LOG_WEIGHTS, key, num), 8)
    num = num or 8
    assert (number >= np.floor(num * WEIGHTS - 1e-6)).all()
    assert (number <= np.ceil(num * WEIGHTS + 1e-6)).all()
    assert (number.sum(axis=-1) == num).all()


def test_residual_keeps_the_whole_part_and_stratified_stays_within_two(key):
    number = counts(draws(RESAMPLERS["residual"], LOG_WEIGHTS, key, 13), 8)
    assert (number >= np.floor(13 * WEIGHTS - 1e-6)).all()
    number = counts(draws(RESAMPLERS["stratified"], LOG_WEIGHTS, key, 13), 8)
    assert (abs(number - 13 * WEIGHTS) < 2).all()


def test_ssp_counts_are_negatively_correlated(seed):
    number = counts(draws(RESAMPLERS["ssp"], LOG_WEIGHTS, seed), 8)
    centred = number - 8 * WEIGHTS
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / REPLICATES**0.5 + 1e-9
    z = products.mean(axis=0) / error
    assert (z[~np.eye(8, dtype=bool)] < 4.5).all()


@pytest.mark.parametrize("name", ("systematic", "stratified", "residual", "ssp"))
def test_variance_is_below_that_of_multinomial_resampling(name, seed):
    # The logarithm of a variance from 1e4 replicates has a standard error of 0.014 to 0.03: 20% are over 6 of them.
    values = np.cos(np.arange(8.0))
    number = counts(draws(RESAMPLERS[name], LOG_WEIGHTS, seed), 8)
    exact = 8 * (WEIGHTS @ values**2 - (WEIGHTS @ values) ** 2)
    assert (number @ values).var() < 0.8 * exact


def test_killing_keeps_survivors_in_their_slots(seed):
    ancestors = draws(RESAMPLERS["killing"], LOG_WEIGHTS, seed)
    stay = WEIGHTS / WEIGHTS.max()
    assert_unbiased(ancestors == np.arange(8), stay + (1 - stay) * WEIGHTS)


def test_birth_and_death_keep_all_above_the_mean_and_some_below(seed):
    ancestors = draws(RESAMPLERS["birth_death"], LOG_WEIGHTS, seed)
    assert_unbiased(ancestors == np.arange(8), np.minimum(1, 8 * WEIGHTS))
    assert np.isin(ancestors[ancestors != np.arange(8)], np.flatnonzero(8 * WEIGHTS > 1)).all()


@pytest.mark.fast("stratified")
@pytest.mark.parametrize("name", SOME)
def test_a_particle_without_weight_is_never_chosen(name, key):
    for log_weights in ([-np.inf, 0.0, -2.0, -np.inf], [0.0, -np.inf, -np.inf, -np.inf]):
        ancestors = draws(RESAMPLERS[name], np.float32(log_weights), key)
        assert np.isfinite(np.float32(log_weights)[ancestors]).all()


@pytest.mark.fast("seed0--inf-systematic", "seed0-inf-metropolis")
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("bad", (-np.inf, np.nan, np.inf), ids=str)
def test_without_usable_weights_all_particles_count_as_equal(name, bad, seed):
    log_weights = np.float32([bad] * 4 if bad == -np.inf else [0.0, bad, -1.0, -np.inf])
    ancestors = draws(RESAMPLERS[name], log_weights, seed)
    assert_unbiased(counts(ancestors, 4), np.ones(4))


@pytest.mark.fast("residual")
@pytest.mark.parametrize("name", ("systematic", "stratified", "residual", "ssp", *SQUARE))
def test_equal_weights_leave_every_particle_in_place(name, key):
    ancestors = draws(RESAMPLERS[name], np.full(33, -7.3, np.float32), key, replicates=100)
    assert (ancestors == np.arange(33)).all()


@pytest.mark.slow_for("residual", "systematic")
@pytest.mark.parametrize("name", SOME)
def test_one_particle_is_the_ancestor_of_all(name, key):
    num = 4 if name in RESIZABLE else 1
    assert (draws(RESAMPLERS[name], np.float32([-3.0]), key, num, 10) == np.zeros(num)).all()


@pytest.mark.fast("stratified")
@pytest.mark.parametrize("name", SOME)
def test_shapes_types_vmap_and_scale(name, key):
    resample, lw = RESAMPLERS[name].ancestors, jnp.asarray(LOG_WEIGHTS)
    alone = jax.jit(resample)(key, lw)
    assert alone.dtype == jnp.int32 and alone.shape == (8,)
    together = jax.jit(jax.vmap(resample))(jnp.stack([key, key]), jnp.stack([lw, lw + 64.0]))
    np.testing.assert_array_equal(together[0], alone)
    if name != "metropolis":  # whose ratios of weights round
        np.testing.assert_array_equal(together[1], alone)


@pytest.mark.slow
def test_jit_changes_nothing(key):
    lw = jnp.asarray(LOG_WEIGHTS)
    for name in ("systematic", "residual"):
        resample = RESAMPLERS[name].ancestors
        np.testing.assert_array_equal(jax.jit(resample)(key, lw), resample(key, lw))


def test_half_precision_weights_are_taken(key):
    assert RESAMPLERS["systematic"].ancestors(key, jnp.zeros(8, jnp.bfloat16)).tolist() == [
        *range(8)
    ]


@pytest.mark.slow
def test_double_precision_uses_whole_numbers_of_64_bits(key):
    with jax.enable_x64(True):
        lw = jnp.asarray(LOG_WEIGHTS, jnp.float64)
        assert _offspring.masses(lw, 8).dtype == jnp.int64
        for name in ("systematic", "residual"):
            ancestors = draws(RESAMPLERS[name], lw, key)
            assert ancestors.dtype == np.int32
            assert_unbiased(counts(ancestors, 8), 8 * WEIGHTS)


# Numbers of particles at which float32 cumulative sums no longer hold.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ("systematic", "stratified", "residual", pytest.param("ssp", marks=pytest.mark.slow))
)
def test_a_million_particles_get_their_shares(name, key):
    # SSP is slow to compile: twenty levels of matches.
    size = 1_000_000
    lw = np.array(-0.5 * jax.random.normal(key, (size,)) ** 2 * 9)
    lw[1::2] = -np.inf  # the last one too
    ancestors = np.asarray(jax.jit(RESAMPLERS[name].ancestors)(key, lw))
    weights = np.exp(lw.astype(float))
    expected = size * weights / weights.sum()
    assert ancestors.min() >= 0 and ancestors.max() < size
    number = np.bincount(ancestors, minlength=size)
    assert not number[1::2].any()
    # Rounding of masses moves one count by 2e-3 at most.
    assert (number >= np.floor(expected - 4e-3)).all() or name == "stratified"
    limit = {"systematic": 1, "ssp": 1, "stratified": 2, "residual": np.inf}[name]
    assert (abs(number - expected) < limit + 4e-3).all()
    if (
        name == "systematic"
    ):  # sums over stretches of particles, too: off by less than one, and their rounding
        assert abs(np.cumsum(number) - np.cumsum(expected)).max() < 1 + 1.0


def test_masses_of_two_levels_have_the_right_proportion():
    # Rounding each to the nearest would be off by 2e-4 here, all in one direction.
    mass = np.asarray(_offspring.masses(jnp.log(jnp.tile(jnp.array([1.0, 0.7]), 500_000)), 10**6))
    assert abs(mass[1::2].sum() / mass[::2].sum() - 0.7) < 1e-7 + 0.7 * 2**-23


def test_parts_of_whole_numbers_are_exact_where_products_overflow():
    rng = np.random.default_rng(0)
    for num in (1, 7, 1 << 20, (1 << 24) + 3):
        lw = jnp.asarray(rng.normal(size=1000) * 5, jnp.float32)
        mass = np.asarray(_offspring.masses(lw, num), np.int64)
        until = np.cumsum(mass)
        total = until[-1]
        whole, rest = _offspring.shares(jnp.int32(until), jnp.int32(total), num)
        np.testing.assert_array_equal(whole, num * until // total)
        np.testing.assert_array_equal(rest, num * until % total)


def test_uniform_whole_numbers_lie_below_their_total_and_are_uniform(seed):
    for total in (1, 3, 1000, (1 << 29) + 12345):
        values = np.asarray(_offspring.uniform_below(seed, jnp.int32(total), (REPLICATES,)), float)
        assert values.min() >= 0 and values.max() < total
        assert_unbiased(values / total, (total - 1) / (2 * total))


@pytest.mark.slow
def test_running_sum_is_the_cumulative_sum(key):
    values = jax.random.randint(key, (1003,), 0, 1000)
    np.testing.assert_array_equal(_offspring.running_sum(values), np.cumsum(values))
    np.testing.assert_array_equal(
        jax.vmap(_offspring.running_sum)(values.reshape(17, 59)),
        np.cumsum(values.reshape(17, 59), axis=1),
    )


# Errors.


def test_names_are_looked_up_and_unknown_ones_listed():
    assert (
        as_scheme("ssp") is RESAMPLERS["ssp"] and as_scheme(RESAMPLERS["ssp"]) is RESAMPLERS["ssp"]
    )
    assert all(scheme.name == name for name, scheme in RESAMPLERS.items())
    with pytest.raises(ValueError, match="'systemic'.*'systematic', 'stratified'"):
        as_scheme("systemic")
    with pytest.raises(TypeError, match="not function.*'systematic'"):
        as_scheme(broken)


def test_arguments_that_do_not_fit_are_refused(key):
    for scheme in RESAMPLERS.values():
        with pytest.raises(ValueError, match=r"shape \(2, 3\).*jax.vmap"):
            scheme.ancestors(key, jnp.zeros((2, 3)))
        with pytest.raises(ValueError, match="'num' is 0"):
            scheme.ancestors(key, jnp.zeros(3), 0)
    with pytest.raises(ValueError, match="killing.*number 3, not 4.*'systematic'"):
        RESAMPLERS["killing"].ancestors(key, jnp.zeros(3), 4)
    with pytest.raises(ValueError, match="'num_steps' is 0"):
        metropolis(0)
