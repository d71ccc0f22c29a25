"""fit: steps that are not finite are located, or left out and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _fit_fakes import Objective

from lapilli import inference, ppl
from lapilli.inference.fitting._fit import fit
from lapilli.inference.fitting.training._nonfinite import NonFiniteError

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)


def run(objective, optimizer=None, args=(X,), **options):
    options = {"num_steps": 8, "key": jax.random.key(0), "progress": False} | options
    return fit(objective, optimizer or optax.sgd(1e-3), args, **options)


def test_the_first_bad_site_is_named_with_its_range():
    bad = X.copy()
    bad[3] = np.nan
    with pytest.raises(NonFiniteError, match="step 0: site 'x' broke first") as caught:
        run(Objective(), args=(bad,))
    error = caught.value
    assert (error.step, error.site, error.broke) == (0, "x", "log_prob")
    assert "value in [0.5, 3], 1 of 12 non-finite (nan)" in str(error)
    assert "log_prob in [" in str(error) and "obs_mask" in str(error)
    assert "on_nonfinite='skip'" not in str(error)  # the data are at fault


def test_an_infinite_gradient_names_the_parameter():
    with pytest.raises(
        NonFiniteError, match="step 2.*gradient broke for parameter 'loc'"
    ) as caught:
        run(Objective(break_at=("gradient", (2, 5))))
    error = caught.value
    assert (error.step, error.site, error.broke) == (2, None, "gradient")
    assert error.parameters == ("loc",)
    assert "on_nonfinite='skip'" in str(error)


@pytest.mark.slow
def test_a_draw_outside_of_the_support_is_not_to_be_skipped():
    def model(_):
        low = ppl.sample("low", dist.Normal(0.0, 0.1))  # a support that is not known while tracing
        z = ppl.sample("z", dist.Uniform(low, low + 10.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)

    def guide(_):
        ppl.sample("low", dist.Normal(0.0, 0.1))
        ppl.sample("z", dist.Normal(ppl.param("m", -1.0), 0.1))

    with pytest.raises(
        NonFiniteError, match="site 'model.z' broke first.*outside of the law's support"
    ) as caught:
        run(inference.elbo(model, guide, check_jumps=False), args=(jnp.zeros(()),))
    assert "skip" not in str(caught.value)


def test_numbers_that_are_huge_but_finite_are_no_alarm():
    class Huge(Objective):
        def init(self, key, x):
            return super().init(key, x) | {"huge": jnp.full(4, 3e38)}

        def step(self, params, state, key, x):
            value, grads, new = super().step(params, state, key, x)
            return value, type(params)(grads, huge=jnp.zeros(4)), new

    assert run(Huge()).steps == 8


def test_a_bad_objective_over_good_sites_is_told_apart():
    with pytest.raises(NonFiniteError, match="objective is nan though the log_prob of every site"):
        run(Objective(break_at=("value", (3,))))


def test_a_bad_update_is_told_apart():
    with pytest.raises(NonFiniteError, match="optimiser's update is not") as caught:
        run(Objective(), optax.sgd(lambda count: jnp.where(count == 4, jnp.inf, 1e-3)))
    assert caught.value.step == 4 and caught.value.broke == "update"


@pytest.mark.slow
def test_the_error_holds_the_fit_before_the_bad_step():
    good = run(Objective(), num_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        run(Objective(break_at=("gradient", (2,))))
    part = caught.value.fit
    assert part.steps == 2 and part.stop_reason == "error"
    np.testing.assert_allclose(part.params["loc"], good.params["loc"], rtol=1e-6)
    np.testing.assert_allclose(part.history["value"], good.history["value"], rtol=1e-6)


def test_a_report_that_fails_does_not_hide_the_error():
    class Mute(Objective):
        def site_report(self, *args):
            raise KeyError("mu")

    with pytest.raises(NonFiniteError, match="sites could not be reported: KeyError"):
        run(Mute(break_at=("value", (0,))))


@pytest.mark.slow
def test_the_minibatch_of_the_bad_step_is_the_one_reported():
    class Spiked(Objective):
        def terms(self, params, key, x):
            mu, prior, rows, guide = super().terms(params, key, x)
            return mu, prior, jnp.where(x == X[7], jnp.inf, rows), guide

        def with_plate_sizes(self, sizes):
            return Spiked(sizes)

    with pytest.raises(NonFiniteError, match="site 'x' broke first: .*1 of 2 non-finite"):
        run(Spiked(), subsample={"rows": 2})


def test_skipping_leaves_parameters_and_state_and_is_counted():
    class Stubborn(Objective):
        """Breaks at steps 2 and 3 by its key, since the state stands still at a skipped step."""

        def step(self, params, state, key, x):
            value, grads, new = super().step(params, state, key, x)
            keys = jax.vmap(lambda s: jax.random.key_data(jax.random.fold_in(steps_key, s)))
            is_bad = jnp.any(jnp.all(keys(jnp.array([2, 3])) == jax.random.key_data(key), axis=1))
            return jnp.where(is_bad, jnp.nan, value), grads, new

    steps_key = jax.random.split(jax.random.key(0), 4)[2]
    seen = []
    watch = lambda info: seen.append((float(info.params["loc"]), int(info.num_skipped)))
    result = run(Stubborn(), on_nonfinite="skip", callbacks=[watch], callback_every=1)
    assert result.num_skipped == 2 and result.state["count"] == 6 and result.steps == 8
    np.testing.assert_array_equal(np.isnan(result.history["value"]), np.isin(np.arange(8), [2, 3]))
    locs, counts = zip(*seen, strict=True)
    assert locs[1] == locs[2] == locs[3] != locs[4]
    assert counts == (0, 0, 1, 2, 2, 2, 2, 2)


def test_skipping_for_ever_is_an_error():
    with pytest.raises(NonFiniteError, match="step 99: the objective is nan"):
        run(Objective(break_at=("value", ())), on_nonfinite="skip", num_steps=1000)


def test_frozen_parameters_may_have_bad_gradients():
    groups = {"loc": "frozen", "log_scale": optax.sgd(1e-3)}
    result = run(Objective(break_at=("gradient", ())), groups)
    assert result.num_skipped == 0 and np.isfinite(result.params["log_scale"])


@pytest.mark.slow
def test_a_bad_seed_is_named_or_skipped_alone():
    # Step 0 is bad only for the seed that starts far away.
    class Far(Objective):
        def step(self, params, state, key, x):
            value, grads, new = super().step(params, state, key, x)
            return jnp.where(params["loc"] > 50, jnp.nan, value), grads, new

    start = {"loc": np.array([0.0, 99.0], np.float32), "log_scale": 0.0}
    with pytest.raises(NonFiniteError, match="step 0 of seed 1") as caught:
        run(Far(), params=start, num_seeds=2)
    assert caught.value.seed == 1 and caught.value.fit.steps == 0
    np.testing.assert_array_equal(caught.value.fit.params["loc"], start["loc"])
    result = run(Far(), params=start, num_seeds=2, on_nonfinite="skip")
    np.testing.assert_array_equal(result.num_skipped, [0, 8])
    assert result.params["loc"][1] == 99 and result.params["loc"][0] != 0
    assert result.best().params["loc"] == result.params["loc"][0]
