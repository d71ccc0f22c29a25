"""`MaM`: every density against enumeration, every refusal of a number that would be biased."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _mam import joint, odd_networks, orders, rows
from scipy.special import comb, logsumexp

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import mam

pytestmark = pytest.mark.one_in(2)

D, K = 3, 3
X, ORDERS = rows(D, K), orders(D)
MASKS = np.array(list(itertools.product((False, True), repeat=D)))


def exact_marginal(log_p, x, mask):
    index = tuple(v if seen else slice(None) for v, seen in zip(x, mask, strict=True))
    return logsumexp(log_p[index])


@pytest.fixture(scope="module")
def odd():
    return mam.MaM(odd_networks(D, K))


@pytest.fixture(scope="module")
def mixture(odd):
    """Log p(x | order), [orders, values], of the model that fits no law."""
    score = jax.vmap(lambda order: odd.with_order(order).log_prob(X))
    return np.asarray(score(ORDERS), float)


class TestTables:
    @pytest.mark.parametrize("shape", [(4, 2), (3, 3), (1, 4)], ids=str)
    def test_all_marginals_equal_sums(self, shape):
        log_p = joint(*shape)
        with jax.enable_x64(True):
            model = mam.MaM(mam.Tables(log_p))
            masks = np.array(list(itertools.product((False, True), repeat=shape[0])))
            got = model.log_marginal(rows(*shape)[:, None], masks)
            want = [[exact_marginal(log_p, x, m) for m in masks] for x in rows(*shape)]
            np.testing.assert_allclose(got, want, atol=1e-12)

    def test_networks_agree_in_every_order(self):
        with jax.enable_x64(True):
            model = mam.MaM(mam.Tables(joint(D, K)))
            residuals = model.consistency_residuals(X[:, None], ORDERS)
            np.testing.assert_allclose(residuals, 0, atol=1e-12)

    @pytest.mark.parametrize("shape", [(5, 2), (3, 3)], ids=str)
    def test_sampling_meets_a_state_with_its_marginal_over_binomial(self, shape):
        with jax.enable_x64(True):
            tables = mam.Tables(joint(*shape))
            size = np.sum(np.indices(tables.table.shape) > 0, 0)
            want = tables.table - np.log(comb(shape[0], size))
            np.testing.assert_allclose(mam.sampler_law(tables), want, atol=1e-12)

    def test_what_is_no_joint_or_too_large_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \(2, 3\).*same number of values"):
            mam.Tables(np.zeros((2, 3)))
        with pytest.raises(ValueError, match="Tables: 14 variables of 2 values have 4782969"):
            mam.Tables(np.zeros((2,) * 14))
        with pytest.raises(ValueError, match="sampler_law: 40 variables"):
            mam.sampler_law(odd_networks(40, 2))


class TestExactLaws:
    def test_every_order_is_a_normalised_law(self, mixture):
        np.testing.assert_allclose(logsumexp(mixture, 1), 0, atol=1e-5)

    def test_the_mixture_over_orders_is_the_dynamic_programme(self, odd, mixture):
        law = mam.sampler_law(odd.networks)[1:, 1:, 1:].ravel()
        np.testing.assert_allclose(logsumexp(mixture, 0) - np.log(6), law, atol=1e-5)
        # The orders really differ: this model is not consistent.
        assert np.abs(mixture - law).max() > 0.5

    @pytest.mark.slow
    def test_an_ensemble_is_the_mixture_of_its_orders(self, odd, mixture):
        chosen = [0, 3, 4]
        model = mam.MaM(odd.networks, density="ensemble", orders=ORDERS[chosen])
        want = logsumexp(mixture[chosen], 0) - np.log(3)
        np.testing.assert_allclose(model.log_prob(X), want, atol=1e-5)

    @pytest.mark.fast("seed2")
    def test_draws_follow_the_mixture(self, odd, seed):
        """27 states, |z| < 4.5: 2e-4 false alarms; a state's bias of 0.01 is at least 7 standard errors."""
        draws = odd.sample(seed, (40_000,))
        frequency = (draws[:, None] == X).all(-1)
        assert_unbiased(frequency, np.exp(mam.sampler_law(odd.networks)[1:, 1:, 1:]).ravel())

    @pytest.mark.fast("seed2")
    def test_ensemble_draws_follow_the_ensemble(self, odd, seed):
        model = mam.MaM(odd.networks, density="ensemble", orders=ORDERS[[1, 5]])
        frequency = (model.sample(seed, (40_000,))[:, None] == X).all(-1)
        assert_unbiased(frequency, np.exp(np.asarray(model.log_prob(X), float)))

    @pytest.mark.slow  # seconds of compilation
    def test_a_draw_knows_its_law(self, odd, key):
        value, order, log_prob = odd.draw(key, (5, 2))
        assert value.shape == order.shape == (5, 2, D) and log_prob.shape == (5, 2)
        np.testing.assert_allclose(odd.with_order(order).log_prob(value), log_prob, rtol=1e-5)
        value, intermediates = odd.sample_with_intermediates(key, (7,))
        want = odd.with_order(intermediates[0]).log_prob(value)
        np.testing.assert_allclose(odd.log_prob(value, intermediates), want, rtol=1e-5)

    def test_steps_add_up_to_the_chain_and_evidence_costs_nothing(self, odd):
        order, observed = ORDERS[4], np.array([False, True, False])
        steps = odd.log_steps(X, order)
        np.testing.assert_allclose(steps.sum(-1), odd.with_order(order).log_prob(X), rtol=1e-5)
        given = odd.condition(X[5], observed).log_steps(np.tile(X[5], (27, 1)), order)
        assert ((given == 0) == (order == 1)).all()

    def test_residuals_add_up_to_the_gap_between_the_networks(self, odd):
        order = ORDERS[4]
        gap = odd.log_marginal(X, np.ones(D, bool)) - odd.with_order(order).log_prob(X)
        got = odd.consistency_residuals(X, order)
        np.testing.assert_allclose(got.sum(-1), gap, atol=1e-5)

    @pytest.mark.slow
    def test_one_residual_is_a_uniform_one(self, odd, seed):
        """Mean and second moment over orders and steps for 3 rows; a bias of 0.05 nats is 7 standard errors and more."""
        x = X[[0, 13, 20]]
        every = np.asarray(odd.consistency_residuals(x[:, None], ORDERS), float)
        got = odd.consistency_residual(seed, np.broadcast_to(x, (40_000, *x.shape)))
        assert_unbiased(
            np.stack([got, got**2], 1), np.stack([every.mean((1, 2)), (every**2).mean((1, 2))])
        )


class TestQueries:
    def test_conditionals_of_tables_are_differences_and_logits(self):
        log_p = joint(D, K, 1)
        with jax.enable_x64(True):
            model = mam.MaM(mam.Tables(log_p))
            for target, given in itertools.product(MASKS, MASKS):
                got = model.log_conditional(X, target, given)
                want = [
                    exact_marginal(log_p, x, target | given) - exact_marginal(log_p, x, given)
                    for x in X
                ]
                np.testing.assert_allclose(got, want, atol=1e-12)
            for mask in MASKS:
                logits = np.asarray(model.conditional_logits(X, mask))
                np.testing.assert_allclose(logsumexp(logits, -1), 0, atol=1e-12)
                for i in range(D):
                    want = model.log_conditional(X, np.arange(D) == i, mask)
                    got = logits[np.arange(len(X)), i, X[:, i]]
                    np.testing.assert_allclose(got, want, atol=1e-12)

    @pytest.mark.slow
    def test_one_pass_takes_any_masks(self, odd):
        both = odd.log_marginal(X[:, None], MASKS)
        assert both.shape == (len(X), len(MASKS))
        alone = [[odd.log_marginal(x, m) for m in MASKS] for x in X[::9]]
        np.testing.assert_allclose(both[::9], alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(both[:, 0], 0, atol=1e-6)  # nothing observed

    def test_missing_values_are_not_read(self, odd):
        x = np.array([1.0, np.nan, 2.0])
        got = odd.log_marginal(x, ~np.isnan(x))
        np.testing.assert_allclose(got, odd.log_marginal([1, 0, 2], [True, False, True]))

    def test_outside_of_the_support_the_density_is_zero(self, odd):
        for x in ([0, 1, K], [0, -1, 0]):
            assert odd.with_order(ORDERS[0]).log_prob(x) == -jnp.inf
            assert odd.log_marginal(x, np.ones(D, bool)) == -jnp.inf
            assert odd.log_marginal(x, [True, False, False]) > -jnp.inf


class TestEvidence:
    x, observed = np.array([0, 2, 1]), np.array([False, True, False])

    def test_each_order_given_evidence_is_a_law_on_what_agrees(self, odd):
        agrees = X[:, 1] == 2
        for order in ORDERS:
            model = odd.with_order(order).condition(self.x, self.observed)
            log_prob = np.asarray(model.log_prob(X), float)
            assert (log_prob[~agrees] == -np.inf).all()
            np.testing.assert_allclose(logsumexp(log_prob), 0, atol=1e-5)

    @pytest.mark.slow
    def test_tables_give_bayes_rule(self):
        log_p = joint(D, K, 2)
        with jax.enable_x64(True):
            model = mam.MaM(mam.Tables(log_p), density="marginal", orders=ORDERS[3])
            model = model.condition(self.x, self.observed)
            agrees = X[:, 1] == 2
            want = log_p.ravel() - exact_marginal(log_p, self.x, self.observed)
            chain = model.with_order(ORDERS[3])
            for got in (model.log_prob(X), chain.log_prob(X)):
                np.testing.assert_allclose(got[agrees], want[agrees], atol=1e-12)
                assert (got[~agrees] == -np.inf).all()
            some = model.log_marginal(self.x, [True, False, False])
            want = exact_marginal(log_p, self.x, [True, True, False])
            want -= exact_marginal(log_p, self.x, self.observed)
            np.testing.assert_allclose(some, want, atol=1e-12)

    @pytest.mark.slow
    def test_draws_keep_the_evidence_and_know_their_law(self, odd, key):
        observed = np.array([[False, True, False], [True, True, True]])
        model = odd.condition(self.x, observed)
        assert model.batch_shape == (2,)
        value, order, log_prob = model.draw(key, (50,))
        assert value.shape == (50, 2, D)
        assert (np.where(observed, value, self.x) == self.x).all()
        assert (log_prob[:, 1] == 0).all()  # nothing was left to draw
        again = odd.condition(self.x, observed).with_order(order).log_prob(value)
        np.testing.assert_allclose(again, log_prob, rtol=1e-5)
        assert len(np.unique(value[:, 0], axis=0)) > 3

    def test_evidence_adds_up(self, odd):
        one = odd.condition(self.x, [True, False, False]).condition(self.x, self.observed)
        both = odd.condition(self.x, [True, True, False])
        assert (one.evidence == both.evidence).all()

    def test_impossible_evidence_is_refused(self, odd):
        given = odd.condition(self.x, self.observed)
        with pytest.raises(ValueError, match="outside of 0 to 2, or contradicts"):
            given.condition([0, 1, 0], [False, True, False])
        with pytest.raises(ValueError, match="outside of 0 to 2"):
            odd.condition([0, 7, 0], [False, True, False])
        with pytest.raises(RuntimeError, match="outside of 0 to 2"):
            jax.jit(lambda x: odd.condition(x, self.observed).evidence)(jnp.array([0, 7, 0]))

    def test_impossible_values_have_no_residual(self, odd, key):
        with pytest.raises(
            ValueError, match="consistency_residual: a value lies outside of 0 to 2"
        ):
            odd.consistency_residual(key, [0, 3, 0])
        with pytest.raises(ValueError, match="consistency_residuals: .* contradicts the evidence"):
            odd.condition(self.x, self.observed).consistency_residuals([0, 1, 1], ORDERS[0])

    @pytest.mark.slow
    def test_residuals_are_those_of_the_free_variables(self, odd, key):
        model = odd.condition(self.x, [True, True, False])
        x = np.broadcast_to(self.x, (20, D))
        every = model.consistency_residuals(self.x, ORDERS[0])
        assert (every[:2] == 0).all() and every[2] != 0
        # A difference of numbers of order 1.
        np.testing.assert_allclose(model.consistency_residual(key, x), every[2], atol=1e-6)


class TestTheTrap:
    """Draws of one network are not weighted by the other one unless the user says so."""

    def test_a_random_order_has_no_density_without_its_order(self, odd):
        with pytest.raises(ValueError, match="Make the order a site.*with_order.*ensemble"):
            odd.log_prob(X[0])

    def test_the_marginal_density_has_no_sampler(self, odd, key):
        model = mam.MaM(odd.networks, density="marginal")
        for draw in (model.sample, model.sample_with_intermediates):
            with pytest.raises(ValueError, match="not.*be the law of what was drawn.*amortised"):
                draw(key)
        with pytest.raises(ValueError, match="no draw has its law"):
            odd.marginal(np.ones(D, bool)).sample(key)

    def test_programs_refuse_it_by_site(self, odd, key):
        def guide(density):
            return lambda: ppl.sample("x", mam.MaM(odd.networks, density=density))

        for density in ("marginal", "chain"):
            with pytest.raises(
                ValueError, match="Site 'x'.*(law of what was drawn|Make the order a site)"
            ):
                bound = inference.elbo(
                    guide(density), guide(density), strategies={"x": "reinforce"}
                )
                bound.value(bound.init(key), key)

    @pytest.mark.fast("seed1")
    def test_chain_weights_estimate_sums_and_amortised_ones_do_not(self, odd, seed):
        """E[f / p(x | order)] = sum f = 1; 40,000 draws, a bias of 0.05 is more than 7 standard errors."""
        log_f = joint(D, K, 3)
        value, _, log_prob = odd.draw(seed, (40_000,))
        f = np.exp(log_f[tuple(value.T)])
        assert_unbiased(f / np.exp(log_prob), 1.0)
        amortised = mam.MaM(odd.networks, density="amortised")
        with pytest.raises(AssertionError, match="z ="):
            assert_unbiased(f / np.exp(amortised.log_prob(value)), 1.0)

    def test_wrong_shapes_and_names_are_refused(self, odd):
        networks = odd.networks
        with pytest.raises(ValueError, match="density must be one of.*'joint'"):
            mam.MaM(networks, density="joint")
        with pytest.raises(ValueError, match=r"orders has shape \(4,\).*must be \(3,\)"):
            mam.MaM(networks, orders=np.arange(4))
        with pytest.raises(ValueError, match=r"evidence has shape \(2,\)"):
            mam.MaM(networks, evidence=np.zeros(2, int))
        with pytest.raises(ValueError, match="mixture of a fixed set of orders, and got none"):
            mam.MaM(networks, density="ensemble")
        with pytest.raises(ValueError, match=r"observed has shape \(2,\)"):
            odd.marginal(np.ones(2, bool))

    def test_what_is_no_order_or_no_token_is_refused_and_nan_under_jit(self, odd):
        networks, one_based, x = odd.networks, np.array([1, 2, 3]), np.array([0, 2, 1])
        for made in (
            lambda: mam.MaM(networks, orders=one_based),
            lambda: odd.with_order(one_based),
        ):
            with pytest.raises(
                ValueError, match=r"orders holds \[1, 2, 3\].*no permutation of 0 to"
            ):
                made()
        with pytest.raises(
            ValueError, match=r"log_steps: order has shape \(2,\), and the last axes"
        ):
            odd.log_steps(x, np.array([0, 1]))
        with pytest.raises(ValueError, match=r"log_steps: order holds \[0, 0, 1\]"):
            odd.log_steps(x, np.array([0, 0, 1]))
        for token in (-1, K + 1):
            with pytest.raises(ValueError, match=rf"evidence holds {token}, which is no token"):
                mam.MaM(networks, evidence=np.array([token, 0, 0]))

        @jax.jit
        def run(order, evidence):
            model = mam.MaM(networks, orders=order, evidence=evidence)
            value, _, log_prob = model.draw(jax.random.key(0))
            return model.log_prob(x), model.log_marginal(x, x == 2), log_prob, value

        order, none = np.arange(D), np.zeros(D, int)
        assert np.isfinite(np.hstack(run(order, none))).all()
        for args in ((order + 1, none), (order, none - 1)):
            log_prob, level, drawn, value = run(*args)
            assert np.isnan(log_prob) and np.isnan(drawn) and (value == -1).all()
        assert np.isnan(level)

    def test_fractions_and_nan_have_density_zero(self, odd):
        values = np.array([[0.7, 2.0, 1.0], [np.nan, 2.0, 1.0], [0.0, 2.0, 1.0]])
        found = odd.with_order(np.arange(D)).log_prob(values)
        np.testing.assert_array_equal(np.isfinite(found), [False, False, True])


class TestInPrograms:
    @pytest.mark.slow
    def test_it_is_a_pytree_with_functions_inside(self, odd, key):
        model = odd.condition([0, 2, 1], [False, True, False])
        got = jax.jit(lambda m, x: m.with_order(ORDERS[0]).log_prob(x))(model, X)
        np.testing.assert_allclose(got, model.with_order(ORDERS[0]).log_prob(X), rtol=1e-5)
        assert jax.jit(lambda m, key: m.sample(key, (2,)))(model, key).shape == (2, D)
        batch = jax.vmap(lambda order: odd.with_order(order))(ORDERS)
        assert jax.vmap(lambda m: m.log_prob(X[0]))(batch).shape == (6,)

    def test_rows_with_missing_values_are_a_likelihood(self):
        log_p = joint(D, K, 4)
        model = mam.MaM(mam.Tables(log_p))
        x, observed = X[[3, 8, 20]], MASKS[[1, 6, 7]]

        def program(x):
            with ppl.plate("rows", 3):
                ppl.sample("x", model.marginal(observed), obs=x)

        want = sum(exact_marginal(log_p, *row) for row in zip(x, observed, strict=True))
        got = ppl.as_program(program).log_density({}, jnp.asarray(x))
        np.testing.assert_allclose(got, want, rtol=1e-5)
        with numpyro.handlers.seed(rng_seed=0):
            trace = numpyro.handlers.trace(program).get_trace(jnp.asarray(x))
        np.testing.assert_allclose(trace["x"]["fn"].log_prob(x).sum(), want, rtol=1e-5)

    @pytest.mark.slow  # seconds of compilation
    def test_a_guide_with_its_order_as_a_site_has_an_exact_bound(self, key):
        """ELBO and gradient of a guide of 3 bits against the sum over 6 orders and 8 values; |z| < 4.5 for 4e3 estimates.

        About 80 coordinates; a lost score term is tens of standard errors.
        """
        networks = odd_networks(3, 2, 5, scale=0.7)
        log_f = jnp.asarray(joint(3, 2, 6)) + 1.3
        law = lambda: mam.MaM(networks.declared("conditional"))

        def model():
            ppl.sample("order", mam.UniformOrder(3))
            x = ppl.sample("x", dist.Bernoulli(0.5 * jnp.ones(3)).to_event(1))
            x = jnp.asarray(x, int)
            ppl.factor("f", log_f[x[0], x[1], x[2]] + 3 * jnp.log(2.0))

        def guide():
            order = ppl.sample("order", mam.UniformOrder(3))
            ppl.sample("x", law().with_order(order))

        bound = inference.elbo(model, guide, strategies="reinforce")
        params = bound.init(key)

        def exact(params):
            model = mam.MaM(networks.with_params(params))
            x = rows(3, 2)
            log_q = jax.vmap(lambda order: model.with_order(order).log_prob(x))(ORDERS)
            return (jnp.exp(log_q) * (log_f.ravel() - log_q)).sum(1).mean()

        value, grads = jax.value_and_grad(exact)(params)
        estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key)))
        values, estimates = estimate(jax.random.split(key, 4000))
        assert_unbiased(values, value)
        for got, want in zip(jax.tree.leaves(estimates), jax.tree.leaves(grads), strict=True):
            assert_unbiased(got, want)

    @pytest.mark.slow  # seconds of compilation
    def test_rows_of_a_plate_have_evidence_and_orders_of_their_own(self, odd, key):
        """The same program as model and guide: the bound is 0 whatever is drawn, and draws keep what is observed."""
        observed = jnp.asarray(MASKS[[1, 6, 0, 7]])
        x = jnp.asarray(X[[3, 8, 20, 11]])

        @ppl.model
        def program(x, observed):
            with ppl.plate("rows", 4):
                order = ppl.sample("order", mam.UniformOrder(D))
                ppl.sample("whole", odd.condition(x, observed).with_order(order))

        bound = inference.elbo(program, program, strategies="reinforce")
        value = bound.value(bound.init(key, x, observed), key, x, observed)
        np.testing.assert_allclose(value, 0, atol=1e-4)
        trace = program.simulate(key, x, observed)
        assert (jnp.where(observed, trace.choices["whole"], x) == x).all()
        order = trace.choices["order"]
        want = odd.condition(x, observed).with_order(order).log_prob(trace.choices["whole"])
        np.testing.assert_allclose(trace.log_probs["whole"], want, rtol=1e-5)

    def test_numpyro_predicts_with_it(self, odd, key):
        def model():
            numpyro.sample("x", mam.MaM(odd.networks, density="amortised"))

        draws = numpyro.infer.Predictive(model, num_samples=5)(key)
        assert draws["x"].shape == (5, D)

    def test_orders_are_uniform(self, seed):
        """36 frequencies; a bias of 0.01 is 5 standard errors or more."""
        law = mam.UniformOrder(3)
        frequency = (law.sample(seed, (40_000,))[:, None] == ORDERS).all(-1)
        assert_unbiased(frequency, np.full(6, 1 / 6))
        np.testing.assert_allclose(law.log_prob(ORDERS), -np.log(6), rtol=1e-6)
        assert law.log_prob(np.array([0, 0, 2])) == -jnp.inf
