"""Environments: counts of states, closed forms, rewards against independent formulas, and what `check` refuses."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _gflownet import slow
from scipy.special import logsumexp, multigammaln

from _stats import assert_unbiased
from lapilli.models import gflownet

SCORES = gflownet.bge_scores(np.random.default_rng(0).normal(size=(20, 3)))
BITS = np.array([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
RNG = np.random.default_rng(2)
STRINGS = RNG.normal(size=(3, 3, 3))
SEQUENCES = RNG.integers(0, 4, (5, 12))
ENVIRONMENTS = {
    "sets": gflownet.Sets(np.linspace(-1, 1, 6), 4),
    "grid": gflownet.Hypergrid(2, 4),
    "append": gflownet.Bits(BITS, word_length=2),
    "any": gflownet.Bits(BITS, word_length=3, order="any"),
    "structures": gflownet.Structures(SCORES),
    "strings": gflownet.Strings(STRINGS, order="any"),
    "phylogenies": gflownet.Phylogenies(SEQUENCES),
    "fragments": gflownet.Fragments(RNG.normal(size=2), RNG.normal(size=(2, 2, 2)), depth=2),
}
NUM_OBJECTS = {
    "sets": math.comb(6, 4), "grid": 16, "append": 2**6, "any": 2**6, "structures": 25,
    "strings": 27, "phylogenies": 3 * 5 * 7, "fragments": 1 + 2 * 3 * 3,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["structures", *(slow(n, id=n) for n in ENVIRONMENTS if n != "structures")]
)
def test_forward_and_backward_steps_are_inverse_and_objects_are_counted(name, key):
    env = ENVIRONMENTS[name]
    gflownet.check(env, key)
    table = gflownet.tabulate(env)
    assert len(table.objects) == NUM_OBJECTS[name]
    # Every edge is one of the child's backward steps, and every backward step an edge.
    children = jax.tree.map(lambda x: jnp.asarray(x[table.children]), table.states)
    assert bool(
        jax.vmap(lambda s, a: env.removable(s)[a])(children, jnp.asarray(table.actions)).all()
    )
    removable = np.asarray(jax.vmap(env.removable)(jax.tree.map(jnp.asarray, table.states)))
    assert removable.sum() == len(table.parents)
    back = jax.vmap(env.undo)(children, jnp.asarray(table.actions))
    parents = jax.tree.map(lambda x: x[table.parents], table.states)
    assert all(np.array_equal(*x) for x in zip(*map(jax.tree.leaves, (back, parents)), strict=True))


def test_a_table_has_a_limit():
    with pytest.raises(ValueError, match="max_states=10"):
        gflownet.tabulate(ENVIRONMENTS["grid"], max_states=10)


@pytest.mark.slow  # all 29,281 graphs over five variables, expanded one by one
def test_graphs_over_five_variables_are_counted():
    scores = gflownet.bge_scores(np.random.default_rng(0).normal(size=(20, 5)))
    assert len(gflownet.tabulate(gflownet.Structures(scores)).objects) == 29_281


@pytest.mark.parametrize(
    ("size", "log_z"), [("small", 11.8924), ("medium", 45.3789), ("large", 48.3919)]
)
def test_published_sets_have_known_constants(size, log_z):
    env = gflownet.Sets.published(size)
    np.testing.assert_allclose(env.log_z(), log_z, atol=6e-5)
    np.testing.assert_allclose(env.inclusion().sum(), env.num_steps, rtol=1e-10)


def test_sets_have_exact_draws():
    """20,000 draws, |z| < 4.5 for each of the 15 sets."""
    env, table = ENVIRONMENTS["sets"], gflownet.tabulate(ENVIRONMENTS["sets"])
    drawn = env.exact_draws(20_000)
    assert (drawn.sum(1) == env.num_steps).all()
    is_object = (drawn[:, None] == np.asarray(table.states)[table.objects]).all(-1)
    assert_unbiased(is_object, table.target)


def test_published_grid_has_its_known_constant():
    env = gflownet.Hypergrid(4, 8)
    states = jnp.array(list(itertools.product(range(8), repeat=4)))
    log_z = logsumexp(np.asarray(jax.vmap(env.log_reward)(states), float))
    np.testing.assert_allclose(log_z, 5.1005, atol=5e-5)
    # 21 points: |x - 1/2| is 0.3 and 0.4 exactly at some, which do not belong to the peak.
    env = gflownet.Hypergrid(1, 21)
    rewards = np.exp([float(env.log_reward(jnp.array([i]))) for i in range(21)])
    assert np.flatnonzero(rewards > 2).tolist() == [3, 17]


@pytest.mark.parametrize("order", ["append", "any"])
def test_bit_strings_are_worth_their_distance_to_the_nearest_mode(order):
    env = gflownet.Bits(BITS, word_length=2, beta=0.7, order=order)
    for bits in itertools.product((0, 1), repeat=6):
        words = [2 * bits[i] + bits[i + 1] for i in (0, 2, 4)]
        distance = np.abs(BITS - np.array(bits)).sum(1).min()
        np.testing.assert_allclose(env.log_reward(jnp.array(words)), -0.7 * distance, rtol=1e-6)
    # Missing bits match: the first mode ends in 01.
    np.testing.assert_allclose(env.log_reward(jnp.array([-1, -1, 1])), 0.0)


def test_bit_strings_have_exact_draws_and_a_partition_function():
    """20,000 draws against all 64 strings, and log Z from bounded weights: 0.0023 is 4.5 standard errors at 100,000 draws."""
    env = gflownet.Bits(BITS, word_length=2, beta=0.7)
    table = gflownet.tabulate(env)
    np.testing.assert_allclose(env.log_z(), table.log_z, atol=2.3e-3)
    drawn = env.exact_draws(20_000)
    is_object = (drawn[:, None] == np.asarray(table.states)[table.objects]).all(-1)
    assert_unbiased(is_object, table.target)
    # One mode alone: every bit is right with odds exp(beta), whatever is drawn.
    one = gflownet.Bits(BITS[:1], word_length=3, beta=0.7)
    np.testing.assert_allclose(one.log_z(num_draws=5), 6 * np.log1p(np.exp(-0.7)), rtol=1e-12)


def test_mutants_have_a_given_number_of_bits_turned():
    env = gflownet.Bits.published(num_bits=24, num_modes=3, word_length=4)
    mutants = env.mutants()
    assert mutants.shape == (3 * 24, 6)
    distances = np.asarray(jax.vmap(env.distances)(jnp.asarray(mutants))).reshape(3, 24, 3)
    own = distances[np.arange(3), :, np.arange(3)]
    np.testing.assert_array_equal(own, np.broadcast_to(np.arange(24), (3, 24)))


def by_wishart(x, graph):
    """Log p(x | G): product over variables of ratios of matrix-variate t densities, from the complete-data formulas."""
    num_rows, d = x.shape
    dof, t = d + 2, 0.5
    mean = x.mean(0)
    posterior = t * np.eye(d) + (x - mean).T @ (x - mean)
    posterior += num_rows / (num_rows + 1) * np.outer(mean, mean)

    def log_p(which):
        k = len(which)
        if k == 0:
            return 0.0
        a = dof - d + k  # of the marginal Wishart
        prior = multigammaln((a + num_rows) / 2, k) - multigammaln(a / 2, k)
        prior += a / 2 * np.linalg.slogdet(t * np.eye(k))[1]
        prior -= (a + num_rows) / 2 * np.linalg.slogdet(posterior[np.ix_(which, which)])[1]
        return prior - num_rows * k / 2 * np.log(np.pi) + k / 2 * np.log(1 / (num_rows + 1))

    total = 0.0
    for j in range(d):
        parents = list(np.flatnonzero(graph[:, j]))
        total += log_p(sorted([*parents, j])) - log_p(parents)
    return total


def test_graphs_are_scored_by_their_marginal_likelihood():
    x = np.random.default_rng(1).normal(size=(12, 4)) @ np.triu(np.ones((4, 4)))
    env = gflownet.Structures(gflownet.bge_scores(x))
    for graph in (np.zeros((4, 4)), np.triu(np.ones((4, 4)), 1), np.eye(4, k=1), np.eye(4, k=-2)):
        got = env.log_reward(jnp.asarray(graph, bool))
        np.testing.assert_allclose(got, by_wishart(x, graph), rtol=1e-5)
    # Markov-equivalent graphs are alike.
    chain = [env.log_reward(jnp.asarray(np.eye(4, k=k), bool)) for k in (1, -1)]
    np.testing.assert_allclose(*chain, rtol=1e-5)
    # One variable, one row: the marginal is a Student t with 2 degrees of freedom (d = 1: alpha_w = 3, alpha_mu = 1).
    one = gflownet.bge_scores(np.array([[0.7]]))[0, 0]
    from scipy.stats import t as student

    # Precision ~ Gamma(3/2, t/2) with t = 1/2, mean ~ Normal(0, 1 / precision): x has scale^2 2 t / 3.
    np.testing.assert_allclose(one, student.logpdf(0.7, 3, scale=np.sqrt(2 * 0.5 / 3)), rtol=1e-10)


def fewest_changes(tree, site):
    """Sankoff's algorithm with unit costs: cost of each character at the root of a tree of nested pairs."""
    if isinstance(tree, int):
        return np.where(np.arange(4) == site[tree], 0, 99)
    below = [fewest_changes(branch, site) for branch in tree]
    return sum((cost[:, None] + (1 - np.eye(4))).min(0) for cost in below)


@pytest.mark.parametrize(
    "joins", [[(0, 1), (2, 3), (0, 2), (0, 4)], [(3, 4), (1, 3), (0, 1), (0, 2)], [(1, 4), (0, 2)]]
)
def test_trees_are_scored_by_their_parsimony(joins):
    env = ENVIRONMENTS["phylogenies"]
    state, trees = env.start(), list(range(5))
    pairs = list(itertools.combinations(range(5), 2))
    for left, right in joins:
        state = env.step(state, jnp.asarray(pairs.index((left, right))))
        trees[left], trees[right] = (trees[left], trees[right]), None
    want = sum(
        fewest_changes(tree, site).min() for site in SEQUENCES.T for tree in trees if tree is not None
    )  # fmt: skip
    np.testing.assert_allclose(env.changes(state), want)
    warm = gflownet.Phylogenies(SEQUENCES, temperature=4.0, offset=20.0)
    np.testing.assert_allclose(warm.log_reward(state), (20 - want) / 4)


def test_simulated_sequences_are_alike_where_nothing_changes():
    env = gflownet.Phylogenies.simulated(6, 50, rate=0.0)
    assert env.num_leaves == 6 and (env.patterns == env.patterns[0]).all()
    far = gflownet.Phylogenies.simulated(6, 4_000, rate=50.0)
    shares = (far.patterns[0] == far.patterns[1]) @ far.counts / 4_000
    np.testing.assert_allclose(shares, 0.25, atol=4.5 * np.sqrt(0.25 * 0.75 / 4_000))


@pytest.mark.slow
def test_a_tree_of_fragments_is_worth_its_fragments_and_bonds():
    env = ENVIRONMENTS["fragments"]
    state = jnp.array([1, -1, 0])
    want = env.energies[1] + env.energies[0] + env.bonds[1, 1, 0]
    np.testing.assert_allclose(env.log_reward(state), -want, rtol=1e-6)
    np.testing.assert_allclose(env.log_reward(env.start()), 0.0)
    deep = gflownet.Fragments(RNG.normal(size=1), RNG.normal(size=(1, 2, 1)), depth=3)
    for one in (env, deep):
        np.testing.assert_allclose(gflownet.tabulate(one).log_z, one.log_z(), rtol=1e-6)


def test_strings_are_looked_up_and_binding_sites_are_read_on_both_strands():
    env = ENVIRONMENTS["strings"]
    np.testing.assert_allclose(env.log_reward(jnp.array([2, 0, 1])), STRINGS[2, 0, 1], rtol=1e-6)
    table = gflownet.Strings.binding(5, seed=3).log_rewards
    for site in itertools.product(range(4), repeat=5):
        assert table[site] == table[tuple(3 - k for k in reversed(site))]
    assert len(np.unique(table)) == (4**5) // 2  # of odd length, none is its own reverse complement


class Broken(gflownet.Hypergrid):
    """A grid with one method replaced."""

    def __init__(self, **methods):
        super().__init__(2, 3)
        for name, method in methods.items():
            setattr(self, name, method)


WRONG = {
    "no inverse": ({"undo": lambda s, a: s}, "undo.*is not s"),
    "mask not paired": ({"removable": lambda s: s > 1}, "not removable"),
    "start has parents": ({"removable": lambda s: s >= 0}, "at the start"),
    "mask of wrong length": ({"legal": lambda s: s[:1] < 2}, r"legal returns bool\[1\], expected bool\[2\]"),
    "mask of numbers": ({"legal": lambda s: s}, r"legal returns int32\[2\], expected bool"),
    "other shape of states": ({"step": lambda s, a: s.astype(float)}, "step returns.*float32.*int32"),
    "too few steps": ({"num_steps": 3}, "legal after num_steps=3"),
    "one length is not": ({"stops": False, "num_steps": 6}, "no legal action after"),
    "zero reward": ({"log_reward": lambda s: jnp.log(s[0] * 1.0)}, "not finite"),
    "reward of wrong shape": ({"log_reward": lambda s: s * 1.0}, "expected one number"),
}  # fmt: skip


@pytest.mark.fast(
    "mask of numbers",
    "mask of wrong length",
    "other shape of states",
    "start has parents",
    "zero reward",
)
@pytest.mark.parametrize(("methods", "message"), WRONG.values(), ids=WRONG)
def test_environments_that_are_not_sound_are_refused(methods, message, key):
    with pytest.raises(ValueError, match=message):
        gflownet.check(Broken(**methods), key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gflownet.Sets([1.0, 2.0], 3), "size 3"),
        (lambda: gflownet.Sets.published("tiny"), "small"),
        (lambda: gflownet.Hypergrid(2, 4, (0.0, 1.0, 1.0)), "R0 > 0"),
        (lambda: gflownet.Bits(BITS, word_length=4), "does not divide"),
        (lambda: gflownet.Bits(BITS + 1, word_length=2), "zeros and ones"),
        (lambda: gflownet.Bits(BITS, word_length=2, order="left"), "order"),
        (lambda: gflownet.Strings(np.zeros((2, 3))), "one axis of K"),
        (lambda: gflownet.Strings(np.zeros((2, 2)), order="left"), "Strings: order"),
        (lambda: gflownet.Phylogenies(SEQUENCES * 1.0), r"integers from 0 to 30.*float64\[5, 12\]"),
        (lambda: gflownet.Phylogenies(SEQUENCES[:1]), "at least 2"),
        (lambda: gflownet.Phylogenies(SEQUENCES, temperature=0.0), "positive"),
        (
            lambda: gflownet.Fragments(np.zeros(2), np.zeros((2, 2)), depth=2),
            r"shapes \(2,\) and \(2, 2\)",
        ),
        (lambda: gflownet.Fragments(np.zeros(2), np.zeros((2, 2, 2)), depth=0), "depth 0"),
        (lambda: gflownet.Structures(np.zeros((3, 4))), r"\[d, 2\^d\]"),
        (lambda: gflownet.bge_scores(np.full((3, 2), np.nan)), "finite"),
        (lambda: gflownet.bge_scores(np.zeros((3, 2)), degrees=2.0), "exceed"),
        (
            lambda: gflownet.bge_scores(np.zeros((3, 2)), mean_weight=-0.5),
            "mean_weight must be pos",
        ),
        (lambda: gflownet.Bits.published(num_bits=100, word_length=4), "multiple of 8"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
