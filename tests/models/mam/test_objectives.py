"""Objectives of marginalization models: unbiased for what they say, and what the formulas of the literature are."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _mam import joint, odd_networks, orders, rows
from scipy.special import comb

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import gflownet, mam
from lapilli.models.ising import Ising
from lapilli.models.mam import _chain
from lapilli.models.mam._persistent import PersistentChains, TemperedConditionals

pytestmark = pytest.mark.one_in(2)

D, K = 3, 2
X = rows(D, K)
NETWORKS = odd_networks(D, K, 1, scale=0.7)
LOG_F = jnp.asarray(joint(D, K, 2)) + 0.8


def log_f(x):
    return LOG_F[tuple(x)]


def assert_tree_unbiased(estimates, exact):
    for got, want in zip(jax.tree.leaves(estimates), jax.tree.leaves(exact), strict=True):
        assert_unbiased(got, want)


def mean_square(networks, tokens):
    """D E[rho^2] per row over all orders and steps."""
    empty = jnp.zeros_like(tokens)
    each = jax.vmap(
        lambda t, e: jax.vmap(lambda o: _chain.residuals(networks, t, e, o))(orders(D))
    )(tokens, empty)
    return D * (each**2).mean((1, 2))


class TestAnyOrder:
    @pytest.mark.slow
    def test_value_and_gradient_are_those_of_the_sum_over_orders(self, key):
        """About 60 coordinates, |z| < 4.5; the bound of one row is off by nats where a step is left out."""
        bound, x = mam.any_order(NETWORKS), jnp.asarray(X[[1, 6]])
        params = bound.init(key, x)
        assert list(params) == ["conditional"]

        def exact(params):
            networks = NETWORKS.with_params(params)
            score = lambda row, order: _chain.score(networks, row + 1, jnp.zeros(D, int), order)
            return jax.vmap(lambda row: jax.vmap(lambda o: score(row, o))(orders(D)).mean())(
                x
            ).sum()

        value, grads = jax.value_and_grad(exact)(params)
        estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, x)))
        values, estimates = estimate(jax.random.split(key, 10_000))
        assert_unbiased(values, value)
        assert_tree_unbiased(estimates, grads)

    @pytest.mark.slow
    def test_of_missing_cells_the_bound_is_on_the_others(self, key):
        """Value and gradient are the mean over orders of the seen cells; what stands in the others is never read."""
        bound, x = mam.any_order(NETWORKS), np.array([[0, 1, -9], [1, 0, 1], [7, 7, 7]])
        seen = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
        params, empty = bound.init(key, x, seen), jnp.zeros(D, int)

        def exact(params):
            score = functools.partial(_chain.score, NETWORKS.with_params(params))
            total = jnp.zeros(())
            for row, cells in zip(x[:2] + 1, ([0, 1], [1, 2]), strict=True):
                for order in (cells, cells[::-1]):
                    total = total + score(jnp.asarray(row), empty, jnp.array(order)) / 2
            return total

        value, grads = jax.value_and_grad(exact)(params)
        estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, x, seen)))
        values, estimates = estimate(jax.random.split(key, 10_000))
        assert_unbiased(values, value)
        assert_tree_unbiased(estimates, grads)

    def test_another_number_of_columns_is_refused(self, key):
        with pytest.raises(ValueError, match=r"seen has shape \(3,\), and x \(8, 3\)"):
            mam.any_order(NETWORKS).init(key, X, np.ones(3, bool))
        with pytest.raises(ValueError, match=r"any_order: x has shape \(8, 3\).*\[rows, 5\]"):
            mam.any_order(odd_networks(5, 2)).init(key, X)

    @pytest.mark.fast("any_order")
    @pytest.mark.parametrize("make", [mam.any_order, mam.distil])
    def test_values_outside_of_the_support_are_refused(self, make, key):
        objective, x = make(NETWORKS), np.array([[0, 1, 1], [0, -1, 1], [2, 0, 0], [0, 0.5, 0]])
        with pytest.raises(
            ValueError, match="3 of 4 rows have values that are no integers from 0 to 1"
        ):
            objective.init(key, x)
        params = objective.init(key, x[:1])
        value = jax.jit(lambda x: objective.value(params, key, x))
        assert np.isfinite(value(x[:1])) and np.isnan(value(x))


class TestDistil:
    @pytest.mark.slow
    def test_without_samples_value_and_gradient_are_the_mean_square(self, key):
        objective, x = mam.distil(NETWORKS, share=0.0), jnp.asarray(X[[1, 6, 7]])
        params = objective.init(key, x)
        assert list(params) == ["marginal"]
        exact = lambda params: mean_square(NETWORKS.with_params(params), x + 1).sum()
        value, grads = jax.value_and_grad(exact)(params)
        estimate = jax.jit(jax.vmap(lambda key: objective.value_and_grad(params, key, x)))
        values, estimates = estimate(jax.random.split(key, 10_000))
        assert_unbiased(values, value)
        assert_tree_unbiased(estimates, grads)

    @pytest.mark.slow  # seconds of compilation
    def test_chains_follow_the_sampler_and_minibatches_are_scaled(self, key):
        """With fresh chains the second half is the mean square under the sampler's law, times the number of rows."""
        x = jnp.asarray(X[[1, 6, 7, 2]])
        objective = mam.distil(NETWORKS).with_plate_sizes({"rows": 12})
        params = objective.init(key, x)
        square = mean_square(NETWORKS, jnp.asarray(X) + 1)
        law = np.exp(mam.sampler_law(NETWORKS)[1:, 1:, 1:].ravel())
        exact = 0.5 * 12 * (square[jnp.array([1, 6, 7, 2])].mean() + law @ square)
        estimate = jax.jit(jax.vmap(lambda key: objective.value(params, key, x)))
        assert_unbiased(estimate(jax.random.split(key, 10_000)), exact)

    def test_an_impossible_share_is_refused(self):
        with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
            mam.distil(NETWORKS, share=1.5)


class TestRegress:
    def rows(self):
        x, order = jnp.asarray(X[[1, 6, 7]]), jnp.asarray(orders(D)[[0, 3, 4]])
        return x, order, mam.MaM(NETWORKS).log_steps(x, order)

    @pytest.mark.slow
    def test_value_and_gradient_are_the_mean_over_prefixes(self, key):
        objective, args = mam.regress(NETWORKS), self.rows()
        params = objective.init(key, *args)
        assert list(params) == ["marginal"]

        def exact(params):
            networks, total = NETWORKS.with_params(params), 0.0
            for x, order, steps in zip(*args, strict=True):
                for t in range(1, D + 1):
                    seen = jnp.zeros(D, int).at[order[:t]].set(x[order[:t]] + 1)
                    total += (networks.log_marginal(seen) - steps[:t].sum()) ** 2 / D
            return total

        value, grads = jax.jit(jax.value_and_grad(exact))(params)
        estimate = jax.jit(jax.vmap(lambda key: objective.value_and_grad(params, key, *args)))
        values, estimates = estimate(jax.random.split(key, 10_000))
        assert_unbiased(values, value)
        assert_tree_unbiased(estimates, grads)

    def test_arrays_of_other_shapes_are_refused(self, key):
        x, order, steps = self.rows()
        with pytest.raises(ValueError, match=r"regress: order has shape \(3,\), and x \(3, 3\)"):
            mam.regress(NETWORKS).init(key, x, order[0], steps)
        with pytest.raises(ValueError, match=r"regress: log_steps has shape \(3, 2\)"):
            mam.regress(NETWORKS).init(key, x, order, steps[:, :2])
        with pytest.raises(ValueError, match="regress: order holds .* no permutation of 0 to 2"):
            mam.regress(NETWORKS).init(key, x, order + 1, steps)


class TestEnergy:
    tokens = jnp.asarray(X[[0, 3, 3, 5, 6, 7]] + 1)

    def value_and_grad(self, key, **options):
        objective = mam.energy(NETWORKS, log_f, num_chains=6, **options)
        params = objective.init(key)
        assert sorted(params) == ["conditional", "marginal"]
        return params, objective.inner.value_and_grad(params, key, self.tokens)

    def gaps(self, params):
        level = jax.vmap(NETWORKS.with_params(params).log_marginal)(self.tokens)
        return level, level - jax.vmap(log_f)(self.tokens - 1)

    def weighted(self, params, weights):
        """mean_b weights_b grad l(x_b): the score-function estimators of the literature."""
        return jax.grad(lambda p: (weights * self.gaps(p)[0]).mean())(params)

    def assert_close(self, got, want):
        for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_variance_is_the_covariance_with_a_leave_one_out_mean(self, key):
        params, (value, grads) = self.value_and_grad(key, spread="variance", penalty=0.0)
        gap = np.asarray(self.gaps(params)[1], float)
        np.testing.assert_allclose(value, gap.var(ddof=1) / 2, rtol=1e-5)
        others = (gap.sum() - gap) / 5
        self.assert_close(grads, self.weighted(params, gap - others))

    @pytest.mark.slow
    def test_std_is_the_normalised_step_of_the_released_code(self, key):
        params, (value, grads) = self.value_and_grad(key, spread="std", penalty=0.0, floor=0.0)
        gap = np.asarray(self.gaps(params)[1], float)
        np.testing.assert_allclose(value, gap.std(ddof=1), rtol=1e-5)
        released = self.weighted(params, (gap - gap.mean()) / gap.std(ddof=1))
        self.assert_close(jax.tree.map(lambda g: 5 / 6 * g, grads), released)

    @pytest.mark.slow
    @pytest.mark.parametrize("log_z", [None, 0.5], ids=["released", "given"])
    def test_plain_is_the_formula_of_the_paper(self, log_z, key):
        options = {"spread": "plain", "penalty": 0.0, "log_z": log_z}
        anchor = D * np.log(K) if log_z is None else log_z
        params, (value, grads) = self.value_and_grad(key, **options)
        gap = np.asarray(self.gaps(params)[1], float)
        np.testing.assert_allclose(value, gap.mean() + anchor, rtol=1e-5)
        self.assert_close(grads, self.weighted(params, gap + anchor))

    @pytest.mark.slow  # a long compilation
    def test_the_penalty_is_unbiased_for_both_networks(self, key):
        options = {"spread": "variance", "penalty": 2.0, "num_chains": 6}
        objective = mam.energy(NETWORKS, log_f, **options)
        params = objective.init(key)

        def exact(params):
            gap = self.gaps(params)[1]
            square = mean_square(NETWORKS.with_params(params), self.tokens).mean()
            return jnp.var(gap, ddof=1) / 2 + 2.0 * square

        value, grads = jax.value_and_grad(exact)(params)
        one = lambda key: objective.inner.value_and_grad(params, key, self.tokens)
        values, estimates = jax.jit(jax.vmap(one))(jax.random.split(key, 10_000))
        assert_unbiased(values, value)
        assert_tree_unbiased(estimates, grads)

    @pytest.mark.slow
    def test_exact_tables_are_the_optimum(self, key):
        """At the truth every term vanishes; the marginal network alone is off by no constant."""
        tables = mam.Tables(LOG_F)
        pair = mam.Pair(
            marginal=Lookup(tables, "log_marginal"),
            conditional=Lookup(tables, "log_conditionals"),
            num_variables=D,
            num_values=K,
        )
        objective = mam.energy(pair, log_f, num_chains=16, spread="variance")
        value, grads = objective.value_and_grad(objective.init(key), key)
        np.testing.assert_allclose(value, 0, atol=1e-9)
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4

    @pytest.mark.slow
    def test_terms_are_reported_by_name_and_nothing_is_drawn(self, key):
        objective = mam.energy(NETWORKS, log_f, num_chains=6)
        params = objective.init(key)
        report = objective.site_report(params, key)
        assert list(report) == ["model.spread", "model.residuals"]
        assert all(np.isfinite(term["log_prob"]) for term in report.values())
        assert "spread" not in str(objective.plan(params))  # no latent site, no strategy

    @pytest.mark.slow  # a long compilation
    def test_explored_rows_replace_chains(self, key):
        """With Dirichlet frequencies a row of 3 bits with s ones has probability 1 / (4 binomial(3, s))."""
        objective = mam.energy(
            NETWORKS,
            log_f,
            num_chains=400,
            spread="variance",
            penalty=0.0,
            sources=mam.RowSources(explore=1.0),
        )
        params = objective.init(key)
        gap = np.array([NETWORKS.log_marginal(x + 1) - log_f(x) for x in X], float)
        p = 1 / (4 * comb(3, X.sum(1)))
        exact = p @ gap**2 - (p @ gap) ** 2
        one = jax.jit(jax.vmap(lambda key: objective.value(params, key)))
        assert_unbiased(one(jax.random.split(key, 300)), exact / 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("spread", ["variance", "plain"])
    def test_what_a_spread_is_unbiased_for(self, spread, key):
        """Two chains in all 64 states under a law that is not the model's: the mean gradient is that of a fixed law's spread."""
        q = np.random.default_rng(4).dirichlet(np.ones(8))
        objective = mam.energy(NETWORKS, log_f, num_chains=2, spread=spread, penalty=0.0)
        params, every = objective.init(key), jnp.asarray(X + 1)
        pairs = every[np.stack(np.indices((8, 8)), -1).reshape(-1, 2)]
        step = lambda tokens: objective.inner.value_and_grad(params, key, tokens)[1]["marginal"]
        grads = jax.jit(jax.vmap(step))(pairs)
        mean = jax.tree.map(lambda g: jnp.tensordot(np.outer(q, q).ravel(), g, 1), grads)

        def exact(marginal):
            level = jax.vmap(NETWORKS.with_params({"marginal": marginal}).log_marginal)(every)
            gap = level - jax.vmap(log_f)(jnp.asarray(X))
            if spread == "plain":
                return 0.5 * q @ (gap + D * np.log(K)) ** 2
            return 0.5 * q @ (gap - q @ gap) ** 2

        self.assert_close(mean, jax.jit(jax.grad(exact))(params["marginal"]))

    def test_replayed_rows_stand_behind_the_chains(self, key):
        """Each of the particles equally often, |z| < 4.5; the shares of rows add up."""
        objective = mam.energy(NETWORKS, log_f, num_chains=400, sources=mam.RowSources(explore=0.2))
        assert objective.replay.count == 160 and objective.chains.count() == 240
        particles = jnp.arange(5)[:, None] * jnp.ones(D, int) + 10
        rows = objective._rows(jnp.zeros((240, D), int), particles, key)
        assert rows.shape == (400, D) and (rows[:240] == 0).all()
        assert_unbiased(rows[240:, :1] == particles[:, 0], np.full(5, 0.2))
        assert mam.energy(NETWORKS, log_f, sources=mam.RowSources(explore=1.0)).replay is None

    @pytest.mark.slow  # a tempering run
    def test_particles_are_kept_over_steps_and_follow_the_law(self, key):
        """Of 8 states, after two Gibbs sweeps all but independent: |z| < 4.5. Every step has the same particles."""
        objective = mam.energy(
            NETWORKS, log_f, num_chains=8, sources=mam.RowSources(num_particles=4_000)
        )
        params = objective.init(key)
        state = objective.init_state(params, key)
        after = jax.jit(objective.step)(params, state, key)[2]
        np.testing.assert_array_equal(after.particles, state.particles)
        law = np.exp(LOG_F - np.logaddexp.reduce(LOG_F.ravel())).ravel()
        assert_unbiased((state.particles[:, None] - 1 == X).all(-1), law)

    @pytest.mark.slow
    def test_chains_start_anew_when_their_time_has_come(self, key):
        """Every third move is a draw along a whole order; the others change two variables at most."""
        chains = PersistentChains(lambda _: NETWORKS, lambda: 40_000, 2, 3)
        stuck = jnp.ones((40_000, D), int)
        move = jax.jit(lambda number: chains.advance({}, key, stuck, number))
        for number in (0, 1, 3):
            assert ((move(number) != stuck).sum(1) <= 2).all()
        law = np.exp(mam.sampler_law(NETWORKS)[1:, 1:, 1:]).ravel()
        assert_unbiased((move(2)[:, None] - 1 == X).all(-1), law)

    @pytest.mark.slow
    def test_tempered_chains_are_those_of_conditionals_to_a_power(self, key):
        """Fresh chains of three powers against the law of sampling with c^power; 8 states each, |z| < 4.5."""
        powers = (-2.0, 0.5, 3.0)
        chains = PersistentChains(lambda _: NETWORKS, lambda: 5, 2, None, powers)
        start = jax.jit(jax.vmap(lambda key: chains.start({}, key)))
        tokens = start(jax.random.split(key, 10_000))
        for row, power in zip(range(5), (1.0, 1.0, *powers), strict=True):
            law = mam.sampler_law(TemperedConditionals(NETWORKS, jnp.asarray(power)))[1:, 1:, 1:]
            assert_unbiased((tokens[:, row, None] - 1 == X).all(-1), np.exp(law).ravel())

    @pytest.mark.slow
    def test_tempered_moves_keep_their_law_on_exact_tables(self, key):
        """One variable a move: c^power with all others given is the conditional of p^power, which stays invariant."""
        tables, power = mam.Tables(LOG_F), 2.0
        log_p = np.asarray(power * LOG_F).ravel()
        p = np.exp(log_p - np.logaddexp.reduce(log_p))
        start = np.random.default_rng(0).choice(8, 40_000, p=p)
        chains = PersistentChains(lambda _: tables, lambda: 40_000, 1, None, (power,) * 40_000)
        tokens = jax.jit(chains.advance)({}, key, jnp.asarray(X[start] + 1), 0)
        assert (tokens - 1 != X[start]).any()
        assert_unbiased((tokens[:, None] - 1 == X).all(-1), p)

    def test_shares_that_round_up_together_fit_the_rows(self, key):
        """4 and 2 of 5 rows by themselves."""
        sources = mam.RowSources(explore=0.7, replay=0.3)
        networks = mam.residual_mlps(2, 2, width=4, depth=1, key=key)
        found = mam.energy(networks, jnp.sum, num_chains=5, sources=sources)
        assert found.chains.count() == 3 and found.chains.powers == ()

    def test_impossible_options_are_refused(self):
        for options, text in [
            ({"spread": "kl"}, "spread must be one of.*'kl'"),
            ({"num_chains": 1}, "num_chains must be an integer >= 2, got 1"),
            ({"log_z": 1.0}, "log_z=1.0 is for spread='plain'"),
            ({"block_size": 0}, "block_size must be an integer >= 1"),
            ({"refresh_every": 0}, "refresh_every must be an integer >= 1"),
        ]:
            with pytest.raises(ValueError, match=text):
                mam.energy(NETWORKS, log_f, **options)

    def test_impossible_sources_are_refused(self):
        for options, text in [
            ({"explore": 2.0}, "explore=2.0, replay=0.0 are shares of the rows"),
            ({"tempered": 0.6, "explore": 0.5}, "tempered=0.6, explore=0.5, replay=0.0 are"),
            ({"explore": 0.6, "replay": 0.5}, "explore=0.6, replay=0.5 are shares of the rows"),
            ({"num_particles": 0}, "RowSources: num_particles .* 0"),
            ({"tempered": -0.1}, "tempered=-0.1"),
        ]:
            with pytest.raises(ValueError, match=text):
                mam.RowSources(**options)


class Lookup(eqx.Module):
    """One half of exact tables as a network of a `Pair`."""

    tables: mam.Tables
    method: str = eqx.field(static=True)

    def __call__(self, tokens):
        out = getattr(self.tables, self.method)(tokens)
        # `Pair` adds the uniform law's part.
        return out + (tokens > 0).sum() * jnp.log(K) if self.method == "log_marginal" else out


@pytest.mark.slow
def test_residuals_are_the_detailed_balance_of_a_flow_network():
    """Flow Z exp(l) / binomial(D, |S|), policies exp(c) / (D - |S|) and 1 / |S|: 48 trajectories of networks that fit nothing."""
    empty, log_z = jnp.zeros(D, int), 0.7
    target = jnp.repeat(jnp.asarray(X) + 1, 6, 0)
    order = jnp.tile(jnp.asarray(orders(D)), (8, 1))
    at = lambda row, order: jax.vmap(lambda t: _chain.prefix(row, empty, order, t))(
        jnp.arange(D + 1)
    )
    states = jax.vmap(at)(target, order)
    levels = jax.vmap(jax.vmap(NETWORKS.log_marginal))(states)
    log_c = jax.vmap(jax.vmap(NETWORKS.log_conditionals))(states[:, :-1])
    chosen = jnp.take_along_axis(target, order, 1) - 1
    log_c = log_c[jnp.arange(48)[:, None], jnp.arange(D), order, chosen]
    t = np.arange(D + 1)
    log_flow = levels + log_z - np.log(comb(D, t))
    length = jnp.full(48, D)
    process = gflownet.Process(
        log_pf=jnp.pad(log_c - np.log(D - t[:-1]), ((0, 0), (0, 1))),
        log_pb=jnp.tile(jnp.append(0.0, -np.log(t[1:])), (48, 1)),
        log_flow=jnp.where(t < D, log_flow, 0.0),
        log_reward=jnp.where(t < D, 0.0, log_flow),
        length=length, first=0 * length, last=length,
    )  # fmt: skip
    rho = mam.MaM(NETWORKS).consistency_residuals(target - 1, order)
    np.testing.assert_allclose(process.increments, rho, atol=1e-5)
    balance = gflownet.detailed_balance()(process)
    np.testing.assert_allclose(
        D * balance, mean_square(NETWORKS, jnp.asarray(X) + 1).mean(), rtol=1e-5
    )


# Learned.

LATTICE = Ising(3, 3, coupling=0.2, field=0.2)


def quality(networks, lattice):
    """KL(law of sampling || p), rms error of log-marginals over states as sampling meets them (nats); log sum exp(l)."""
    n = lattice.num_sites
    log_p = np.asarray(lattice.log_density(rows(n, 2)), float).reshape((2,) * n)
    exact = np.asarray(mam.Tables(log_p).table, float)
    law = mam.sampler_law(networks)
    whole = (slice(1, None),) * n
    kl = (np.exp(law[whole]) * (law[whole] - exact[whole])).sum()
    tokens = np.stack(np.indices(law.shape), -1).reshape(-1, n)
    level = np.asarray(jax.jit(jax.vmap(networks.log_marginal))(tokens), float).reshape(law.shape)
    rms = np.sqrt((np.exp(law) * (level - exact) ** 2).sum() / (n + 1))
    return kl, rms, np.log(np.exp(level[whole]).sum())


def train(objective, key, num_steps, *args, **options):
    optimizer = optax.adam(options.pop("rate", 1e-3))
    options = {"key": key, "num_steps": num_steps, "progress": False, **options}
    return inference.fit(objective, optimizer, args, **options)


@pytest.mark.slow  # compiles two fits
def test_fit_runs_both_stages_on_three_bits(key):
    """A law of 3 bits from 4,000 draws; thresholds are a third of what an independent law misses."""
    log_p = joint(D, K, 3)
    x = X[np.random.default_rng(0).choice(8, 4000, p=np.exp(log_p.ravel()))]
    table = np.asarray(mam.Tables(log_p).table)[1:, 1:, 1:]
    start = mam.residual_mlps(D, K, width=16, depth=2, key=key)
    options = {"rate": 0.01, "subsample": {"rows": 200}}
    one = train(mam.any_order(start), key, 300, x, **options)
    networks = start.with_params(one.params)
    two = train(mam.distil(networks), key, 300, x, **options)
    assert two.state.tokens.shape == (200, D) and two.state.num_moves == 300
    networks = networks.with_params(two.params)
    law = mam.sampler_law(networks)[1:, 1:, 1:]
    assert (np.exp(law) * (law - table)).sum() < 0.02
    level = mam.MaM(networks).log_marginal(X, np.ones(D, bool))
    assert np.sqrt((np.exp(log_p.ravel()) * (level - log_p.ravel()) ** 2).sum()) < 0.2


@pytest.mark.slow  # 2,000 to 7,000 training steps each
class TestThresholds:
    def test_maximum_likelihood(self, key):
        x = LATTICE.sample(np.random.default_rng(0), 20_000)
        start = mam.residual_mlps(9, 2, width=128, key=key)
        options = {"subsample": {"rows": 512}}
        rate = lambda n: optax.cosine_decay_schedule(1e-3, n)
        one = train(mam.any_order(start), key, 3000, x, rate=rate(3000), **options)
        networks = start.with_params(one.params)
        two = train(mam.distil(networks), key, 4000, x, rate=rate(4000), **options)
        kl, rms, _ = quality(networks.with_params(two.params), LATTICE)
        assert kl < 0.006 and rms < 0.15, (kl, rms)

    def test_energy(self, key):
        networks = mam.residual_mlps(9, 2, width=64, key=key)
        fit = train(mam.energy(networks, LATTICE.log_density), key, 2000)
        kl, rms, log_mass = quality(networks.with_params(fit.params), LATTICE)
        assert kl < 0.03 and rms < 0.2 and abs(log_mass) < 0.15, (kl, rms, log_mass)

    @pytest.mark.parametrize("replay, keeps", [(0.0, False), (None, True)], ids=["own", "replayed"])
    def test_replayed_rows_keep_the_heaviest_state(self, replay, keeps, key):
        """Independent energies of 12 bits, none of which tells of another; the heaviest state has probability 0.475."""
        log_f = 3.5 * np.random.default_rng(3).normal(size=(2,) * 12)
        table = jnp.asarray(log_f)
        networks = mam.residual_mlps(12, 2, width=128, key=key)
        objective = mam.energy(
            networks, lambda x: table[tuple(x)], sources=mam.RowSources(replay=replay)
        )
        options = {"rate": optax.cosine_decay_schedule(3e-3, 2000), "k_hat": "skip"}
        fit = train(objective, key, 2000, **options)
        law = np.exp(mam.sampler_law(networks.with_params(fit.params))[(slice(1, None),) * 12])
        top = np.unravel_index(log_f.argmax(), log_f.shape)
        p = np.exp(log_f[top] - np.logaddexp.reduce(log_f.ravel()))
        assert (law[top] > p / 2) == keeps

    def test_energy_on_four_by_four(self, key):
        """65,536 states: the law of the marginal network by enumeration, that of the sampler by its draws."""
        lattice = Ising(4, 4, coupling=0.2, field=0.2)
        start = mam.residual_mlps(16, 2, width=128, key=key)
        fit = train(mam.energy(start, lattice.log_density), key, 4000)
        networks = start.with_params(fit.params)
        model, every = mam.MaM(networks), rows(16, 2)
        log_p = np.asarray(lattice.log_density(every), float) - lattice.log_partition()
        level = np.asarray(model.log_marginal(every, np.ones(16, bool)), float)
        mass = np.log(np.exp(level).sum())
        rms = np.sqrt((np.exp(log_p) * (level - log_p) ** 2).sum())
        value, _, log_prob = model.draw(key, (20_000,))
        gap = np.asarray(log_prob - lattice.log_density(value), float) + lattice.log_partition()
        kl, error = gap.mean(), gap.std() / np.sqrt(len(gap))
        assert kl - 4.5 * error < 0.1 and rms < 0.4 and abs(mass) < 0.2, (kl, error, rms, mass)
