"""A model and data are enough: what fit chooses, when it stops, what it warns of."""

import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _fit_fakes import Objective

from lapilli import inference, ppl
from lapilli.inference import fitting
from lapilli.inference.fitting import settling
from lapilli.inference.fitting._choose import choose_objective
from lapilli.inference.fitting._judge import of_seeds
from lapilli.inference.fitting._judgement import verdict_on
from lapilli.inference.fitting.starts import _search
from lapilli.inference.fitting.stationarity import is_done

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (X @ [1.0, -1.0, 0.5] + 0.5 * RNG.normal(size=40)).astype(np.float32)


def regression(x, y=None):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def mixture(x):
    weight = ppl.sample("weight", dist.Beta(2.0, 2.0))
    with ppl.plate("rows", x.shape[0]):
        z = ppl.sample("z", dist.Bernoulli(weight))
        ppl.sample("x", dist.Normal(4.0 * z - 2.0, 1.0), obs=x)


def test_a_model_and_data_reach_the_exact_posterior(capsys):
    fit = inference.fit(regression, args={"x": X, "y": Y})
    precision = np.eye(3) + X.T @ X / 0.25
    mean, cov = np.linalg.solve(precision, X.T @ Y / 0.25), np.linalg.inv(precision)
    sd = np.sqrt(np.diag(cov))
    draws = fit.posterior(KEY, 4000).choices["beta"]
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.12)
    np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.1)
    assert fit.stop_reason == "settled"
    said = capsys.readouterr().out
    for words in (
        "AutoWhitenedNormal, for 3 coordinates",
        "elbo",
        "Adam, 0.02",
        "settled",
        "mode from",
        "k-hat",
    ):
        assert words in said


@pytest.mark.slow
def test_discrete_sites_are_summed_out(capsys):
    x = np.concatenate([-2 + RNG.normal(size=30), 2 + RNG.normal(size=10)]).astype(np.float32)
    fit = inference.fit(mixture, args=(x,), num_steps=600, progress=False)
    assert capsys.readouterr().out == ""
    grid = jnp.linspace(0.005, 0.995, 200)
    log_liks = [dist.Normal(m, 1.0).log_prob(x) for m in (-2.0, 2.0)]
    each = jnp.logaddexp(
        jnp.log1p(-grid)[:, None] + log_liks[0], jnp.log(grid)[:, None] + log_liks[1]
    )
    post = jax.nn.softmax(each.sum(1) + dist.Beta(2.0, 2.0).log_prob(grid))
    exact = float(jnp.sum(grid * post))
    assert abs(fit.posterior(KEY, 2000).choices["weight"].mean() - exact) < 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. k-hat")  # of few steps
def test_several_discrete_sites_are_summed_out(capsys):
    def model(y):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        a = ppl.sample("a", dist.Bernoulli(0.5))
        b = ppl.sample("b", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        ppl.sample("y", dist.Normal(mean + a + 2.0 * b, 1.0), obs=y)

    inference.fit(model, args=(1.0,), num_steps=10)
    assert "a, b summed out" in capsys.readouterr().out


@pytest.mark.slow
def test_missing_cells_are_left_to_the_model():
    def model(y):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(mean, 0.5), obs=jnp.nan_to_num(y), obs_mask=~jnp.isnan(y))

    y = np.array([1.0, np.nan, 2.0, 1.5], np.float32)
    fit = inference.fit(model, args=(y,), num_steps=800, progress=False)
    exact = (4.5 / 0.25) / (1 + 3 / 0.25)
    assert abs(fit.posterior(KEY, 2000).choices["mean"].mean() - exact) < 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. k-hat")  # of few steps
def test_many_coordinates_keep_the_starts_correlations_very_many_have_none_and_none_get_no_guide(
    capsys,
):
    def wide(number):
        return lambda y: ppl.sample("z", dist.Normal(jnp.zeros(number), 1.0).to_event(1))

    def none(y):
        ppl.sample("y", dist.Normal(ppl.param("mean", 0.0), 1.0), obs=y)

    settings = {"args": (jnp.asarray(2.0),), "num_steps": 200}
    inference.fit(wide(31), unobserved="allow", **settings)
    assert "for 31 coordinates (more than 30), correlations as at" in capsys.readouterr().out
    inference.fit(wide(401), unobserved="allow", **settings)
    assert "AutoMeanField, for 401 coordinates (more than 400)" in capsys.readouterr().out
    fit = inference.fit(none, **settings)
    assert "none, since no continuous site is latent" in capsys.readouterr().out
    assert fit.params["mean"] > 1.5


def test_a_normal_that_leaves_the_models_support_is_refused(monkeypatch):
    def logs(y):
        s = ppl.sample("s", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        ppl.sample("y", dist.Normal(jnp.log(s), 3.0).to_event(1), obs=y)

    monkeypatch.setattr(_search, "_MOST_BROKEN", 0.0)
    with pytest.raises(ValueError, match="no place to start.*invalid loc parameter.*Correct"):
        inference.fit(logs, args=(jnp.zeros(5),), num_steps=5, progress=False)


@pytest.mark.slow  # by other words in test_judgement.py, where a funnel is told with the reason
def test_a_bad_guide_is_warned_of():
    def funnel(y):
        scale = ppl.sample("scale", dist.Normal(0.0, 3.0))
        ppl.sample("z", dist.Normal(jnp.zeros(40), jnp.exp(scale)).to_event(1))
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.warns(UserWarning, match="k-hat is .*no stand-in"):
        inference.fit(funnel, args=(0.0,), num_steps=100, progress=False)


def pair(x):
    """Two means of which the data know the sum much better than the difference."""
    z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(z.sum(), 0.1), obs=x)


def exact(x):
    """Its posterior is Normal, and so is the guide."""
    root = ppl.param("root", jnp.eye(2), constraint=dist.constraints.lower_cholesky)
    ppl.sample("z", dist.MultivariateNormal(ppl.param("loc", jnp.zeros(2)), scale_tril=root))


def mean_field(x):
    scale = ppl.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(ppl.param("loc", jnp.zeros(2)), scale).to_event(1))


@pytest.mark.slow  # 100 fits, vectorised
@pytest.mark.parametrize(("guide", "alarms"), [(exact, range(1)), (mean_field, range(90, 101))])
def test_100_fits_with_an_exact_guide_raise_no_alarm_and_most_with_a_bad_one_do(guide, alarms):
    """The weights of the bad one have k about 0.8, near enough to the threshold for 4,000 draws to miss it now and then."""
    rate = optax.adam(optax.cosine_decay_schedule(0.05, 1000))
    x = jnp.asarray(0.5)
    objective = inference.elbo(pair, guide, num_replicates=8)
    fit = inference.fit(objective, rate, (x,), num_steps=1000, num_seeds=100, progress=False)

    def log_weight(params, key):
        trace = objective.guide.bind(params).simulate(key, x)
        return objective.model.log_density(trace.choices, x) - trace.log_density

    keys = jax.random.split(jax.random.key(1), (100, 4000))
    weights = jax.jit(jax.vmap(jax.vmap(log_weight, (None, 0))))(fit.params, keys)
    assert sum(verdict_on(w)[1] is not None for w in np.asarray(weights)) in alarms


@pytest.mark.parametrize(
    ("steps", "options", "is_told"),
    [
        (1000, {}, True),
        (999, {}, False),
        (1000, {"k_hat": "skip"}, False),
        (1000, {"num_seeds": 2}, False),
    ],
)
def test_a_bad_guide_of_ones_own_is_warned_of(steps, options, is_told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = inference.elbo(pair, mean_field)
        settings = {"num_steps": steps, "progress": False, **options}
        inference.fit(objective, optax.adam(0.02), (jnp.asarray(0.5),), **settings)
    told = [str(w.message) for w in caught if "k-hat is" in str(w.message)]
    assert len(told) == is_told and all("k_hat='skip' leaves this check out" in t for t in told)


class Judging(Objective):
    """Its verdict is plain Python: a location below zero is wrong."""

    def verdict(self, result, key):
        assert result.num_seeds is None and jnp.shape(key) == ()
        loc = float(result.params["loc"])
        return f"fit: loc is {loc:.0f}." if loc < 0 else None


def test_each_seed_is_judged_in_one_warning():
    """At rate 0 parameters stay where they start; 1,000 steps of a closed form."""
    locs = jnp.array([-2.0, 1.0, -2.0, -3.0])
    with pytest.warns(UserWarning, match="3 of 4 seeds") as caught:
        inference.fit(
            Judging(), optax.sgd(0.0), (jnp.zeros(2),), num_steps=1000, num_seeds=4,
            params={"loc": locs, "log_scale": jnp.zeros(4)}, progress=False,
        )  # fmt: skip
    assert [str(w.message) for w in caught] == [
        "fit: 3 of 4 seeds, [0, 2, 3], do not pass; Fit.seed(number) takes another one.\n"
        "Seed 0, 2: loc is -2.\nSeed 3: loc is -3."
    ]


def test_what_is_said_of_seeds():
    assert of_seeds([None, None]) is None
    assert of_seeds(["fit: bad."] * 2) == (
        "fit: 2 of 2 seeds, [0, 1], do not pass; no other is left.\nSeed 0, 1: bad."
    )
    assert str(of_seeds(list("abcde"))).endswith("Seed 2: c\n2 more of the kind.")


def test_weights_that_are_no_numbers_and_weights_of_zero_are_told():
    _, told = verdict_on(np.array([0.0, np.nan, 1.0]))
    assert "of 1 of 3 draws of the guide are no numbers" in str(told)
    assert "none of 2 draws" in str(verdict_on(np.full(2, -np.inf))[1])


def test_a_k_hat_that_cannot_be_fitted_is_none_to_trust():
    """A few draws have all the weight, and the rest are ties."""
    worth, told = verdict_on(np.concatenate([np.full(990, -800.0), np.arange(10.0)]))
    assert not worth.k_hat <= worth.k_threshold and "no stand-in" in str(told)


def test_what_has_no_default_is_refused_with_the_remedy():
    def counts(y):
        k = ppl.sample("k", dist.Poisson(3.0))
        ppl.sample("y", dist.Normal(1.0 * k, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"sites \['k'\] of .*cannot be summed out.*Write a guide"):
        inference.fit(counts, args=(1.0,), progress=False)
    with pytest.raises(
        TypeError, match="'objective' is a model, and 'args' is a list, an iterable of batches"
    ):
        inference.fit(regression, args=[(X, Y)], plate_sizes={}, progress=False)
    # Of data that are no tuple of arguments one thing is said.
    with pytest.raises(TypeError, match=r"^fit: argument 'args' must hold [^\n]*got ndarray\.$"):
        inference.fit(regression, args=np.asarray(Y), progress=False)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_fit_inside_of_a_transformation_is_refused(transform):
    with pytest.raises(TypeError, match="inside of jit, vmap, grad .*Call it outside"):
        transform(lambda x: inference.fit(regression, args=(x, Y), progress=False).params)(X)


def test_fit_inside_of_jit_is_refused_where_no_argument_is_traced():
    with pytest.raises(TypeError, match="inside of jit, vmap, grad .*Call it outside"):
        jax.jit(lambda: inference.fit(regression, args=(X, Y), progress=False).params)()


def test_an_objective_gets_an_optimiser_with_rates_by_kind():
    import equinox as eqx

    def model(x):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(z + ppl.param("shift", 0.0), 1.0), obs=x)

    def guide(x):
        net = ppl.module("net", eqx.nn.Linear(1, 1, key=KEY))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("z", dist.Normal(jax.vmap(net)(x[:, None])[:, 0], 1.0))

    bound = inference.elbo(model, guide)
    x = jnp.arange(5.0)
    start = bound.init(KEY, x)
    fit = inference.fit(bound, args=(x,), num_steps=1, params=start, progress=False)
    moved = {
        n: max(
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(*map(jax.tree.leaves, (fit.params[n], start[n])), strict=True)
        )
        for n in start
    }
    assert moved["shift"] == pytest.approx(0.02, rel=1e-3)
    assert moved["net"] == pytest.approx(0.001, rel=1e-3)


def descend(noise, *, rate=0.02, seed=0, drift=0.0, most=60_000, **options):
    """Noisy steps down a bowl with curvatures 1 to 100, whose floor sinks by `drift` nats a step."""
    optimizer = settling(optax.adam(rate), **options)
    curvature = jnp.logspace(0, 2, 5)

    def body(loop):
        params, state, key, step = loop
        key, one, two = jax.random.split(key, 3)
        value = 0.5 * jnp.sum(curvature * params**2) - drift * step
        value = value + noise * jax.random.normal(one)
        grads = curvature * params + 0.3 * noise * jnp.sqrt(curvature) * jax.random.normal(
            two, (5,)
        )
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, key, step + 1

    def run(seed):
        params = 5.0 * jnp.ones(5)
        start = params, optimizer.init(params), jax.random.key(seed), 0
        go_on = lambda loop: ~is_done(loop[1]) & (loop[3] < most)
        params, state, _, step = jax.lax.while_loop(go_on, body, start)
        return 0.5 * jnp.sum(curvature * params**2), state.settled_at, step

    return jax.jit(jax.vmap(run))(jnp.arange(seed, seed + 20))


@pytest.mark.slow_for("0.1-0.02", "10.0-0.1", "1.0-0.02")
@pytest.mark.parametrize(("noise", "rate"), [(0.1, 0.02), (1.0, 0.02), (10.0, 0.1)])
def test_a_settled_run_is_near_the_bottom(noise, rate):
    """What is left is a small part of one estimate's noise, for 20 seeds of 20, and the run does end."""
    left, settled_at, step = descend(noise, rate=rate)
    assert (settled_at > 0).all() and (step < 60_000).all()
    assert (left < 0.1 * max(1.0, noise)).all()


@pytest.mark.slow
def test_a_slow_gain_worth_having_is_not_taken_for_the_end():
    """1 nat in 1,000 steps, hidden in noise of 3 nats: over a third of the run more than the tolerance."""
    _, settled_at, step = descend(3.0, drift=1e-3, most=15_000)
    assert (settled_at == 0).all() and (step == 15_000).all()


def test_the_pace_falls_to_zero_and_not_before():
    left, settled_at, step = descend(0.1, max_steps=300)
    assert (settled_at == 300).all() and (step == 500).all()


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0.0},
        {"relative_tolerance": 0.0},
        {"confidence": -1.0},
        {"most": 0.0},
        {"max_steps": 0},
    ],
)
def test_settling_refuses_what_is_not_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        settling(optax.adam(0.1), **options)


def test_a_run_that_settles_resumes_to_the_bit_and_stays_ended(tmp_path):
    bowl = lambda **options: inference.fit(
        Objective(), optax.adam(0.05), (np.ones(4, np.float32),), key=KEY, progress=False, **options
    )
    whole = bowl()
    path = tmp_path / "run.npz"
    stop = lambda info: info.step >= 500
    bowl(checkpoint=path, callbacks=[stop])
    resumed = bowl(checkpoint=path)
    assert whole.steps == resumed.steps and whole.stop_reason == resumed.stop_reason == "settled"
    assert all(np.array_equal(whole.params[n], resumed.params[n]) for n in whole.params)
    again = bowl(checkpoint=path)
    assert again.steps == whole.steps and again.stop_reason == "settled"


@pytest.mark.slow
def test_seeds_settle_together():
    fit = inference.fit(
        Objective(),
        optax.adam(0.05),
        (np.ones(4, np.float32),),
        num_seeds=2,
        key=KEY,
        progress=False,
    )
    assert fit.stop_reason == "settled" and fit.history["value"].shape == (fit.steps, 2)


def test_a_run_that_does_not_settle_is_warned_of(monkeypatch):
    from lapilli.inference.fitting import _judge
    from lapilli.inference.fitting.stationarity import _settling

    fit = inference.fit(  # by a rule of its own, of which fit says nothing
        Objective(), settling(optax.adam(0.05), max_steps=110), (np.ones(4, np.float32),), num_steps=1000, key=KEY,
        progress=False,
    )  # fmt: skip
    assert fit.stop_reason == "settled" and fit.steps == 310
    monkeypatch.setattr(_judge, "MAX_STEPS", 100)
    with pytest.warns(UserWarning, match="after 100 steps the value had not settled"):
        _judge.warn_if_unsettled(fit)
    monkeypatch.setattr(_judge, "MAX_STEPS", 250)
    monkeypatch.setattr(_judge, "MAX_STEPS", 250)
    _judge.warn_if_unsettled(fit)  # it may settle before the last step and slow down beyond it
    assert _settling.MAX_STEPS == 100_000


def test_the_budgets_end_is_told_where_the_pace_is_0_some_steps_before_it():
    from lapilli.inference.fitting import _judge

    with pytest.warns(UserWarning, match="after 100,000 steps the value had not settled"):
        _judge.warn_if_unsettled(types.SimpleNamespace(stop_reason="settled", steps=149_997))


@pytest.mark.parametrize(
    "transform, memory",
    [
        (optax.adam(0.1), 1000),
        (optax.adamw(0.1, b2=0.95), 20),
        (optax.chain(optax.clip_by_global_norm(0.1), optax.rmsprop(0.1, decay=0.8)), 5),
        (optax.adam(optax.cosine_decay_schedule(0.1, 5), b2=0.5), 2),
        (optax.sgd(0.1), np.inf),
        (optax.adagrad(0.1), np.inf),
        (optax.partition({1: optax.rmsprop(0.1), 2: optax.adam(0.1)}, {"a": 2, "b": 1}), 10),
        (optax.chain(optax.masked(optax.set_to_zero(), {"a": True, "b": False}), optax.rmsprop(0.1)), 10),
        (fitting.by_row(optax.rmsprop(0.1)), np.inf),  # not seen: a scalar has no rows
    ],
    ids=["adam", "adamw", "chain", "schedule", "sgd", "adagrad", "partition", "held", "rows"],
)  # fmt: skip
def test_the_memory_of_optimizers(transform, memory):
    from lapilli.inference.fitting.training._optimizer import memory_of

    params = {"a": np.ones(3), "b": np.ones((2, 2))}
    np.testing.assert_allclose(memory_of(transform, params), memory, rtol=1e-4)


def test_a_short_memory_of_squared_gradients_is_warned_of(recwarn):
    """Where there is a guide whose draws make noise, and steps enough to come to rest."""
    from lapilli.inference.fitting._default_optimizer import warn_of_short_memory as warn

    bound, likelihood = (types.SimpleNamespace(guide=g) for g in ("a guide", None))
    params = {"loc": np.zeros(2), "scale": np.ones(2)}
    groups = {"loc": optax.adam(0.1), "scale": optax.rmsprop(0.1), "other": "frozen"}
    for optimizer, objective, num_steps in [
        (optax.rmsprop(0.1), bound, 999),
        (optax.rmsprop(0.1), likelihood, None),
        (optax.rmsprop(0.1, decay=0.99), bound, None),
        (groups | {"scale": optax.adam(0.1)}, bound, 1000),
        ({"*": "frozen"}, bound, 1000),  # refused by name later
    ]:
        warn(optimizer, objective, params, num_steps)
    assert not recwarn
    for optimizer in (optax.rmsprop(0.1), groups):
        with pytest.warns(UserWarning, match="root mean square of some 10 of them"):
            warn(optimizer, bound, params, 1000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. k-hat")  # after two steps
def test_missing_cells_that_others_read_need_a_guide():
    """Left to their prior they would bias what is learned of the others; cells that nobody reads are left to it."""

    def gaps(dose, seen, y):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3):
            dose = ppl.sample("dose", dist.Normal(0.0, 1.0), obs=dose, obs_mask=seen)
            ppl.sample("y", dist.Normal(slope * dose, 1.0), obs=y, obs_mask=seen)

    x, seen = jnp.array([0.5, -0.2, 1.3]), jnp.array([True, False, True])
    with pytest.raises(
        ValueError, match=r"\['y_observed'\] depend on the missing cells 'dose_unob"
    ):
        inference.fit(gaps, args=(x, seen, x))

    def outcome(x, seen, y):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3):
            ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y, obs_mask=seen)

    fit = inference.fit(outcome, args=(x, seen, x), num_steps=2, progress=False)
    assert fit.steps == 2


def test_check_jumps_is_handed_to_the_objective_that_is_made():
    def model(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(jnp.where(z > 0, 1.0, 0.0), 1.0), obs=y)

    args = (jnp.asarray(1.0),)
    with pytest.raises(
        ValueError, match=r"jumps by.*check_jumps=False, of the objective or of fit"
    ):
        inference.fit(model, args=args, num_steps=1, progress=False)
    made = inference.fit(
        model, args=args, num_steps=1, progress=False, k_hat="skip", check_jumps=False
    )
    assert made.objective.check_jumps is False
    with pytest.raises(ValueError, match="check_jumps=False is for a model alone"):
        inference.fit(made.objective, args=args, num_steps=1, check_jumps=False)


def test_missing_cells_beside_discrete_sites_cost_nothing():
    """The default objective's model is that of the rows that were seen."""

    def gappy(y, seen):
        mean = ppl.sample("mean", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", len(y)):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            ppl.sample("y", dist.Normal(mean + 2.0 * k, 1.0), obs=y, obs_mask=seen)

    rng = np.random.default_rng(0)
    y, seen = rng.normal(size=6), np.array([True, False, True, True, False, True])
    found = choose_objective(gappy, (jnp.array(y), jnp.array(seen)), may_be_prior=False)
    assert "y_unobserved" in found.reasons["missing"] and "k" in found.reasons["discrete"]
    own = jax.jit(lambda at: found.objective.model.log_density(at, jnp.array(y), jnp.array(seen)))
    want = jax.jit(lambda at: ppl.eliminate(gappy, "k").log_density(at, jnp.array(y[seen]), None))
    for mean in (0.3, -1.2):
        at = {"mean": jnp.array(mean)}
        np.testing.assert_allclose(own(at), want(at), rtol=1e-5)


def test_an_eliminated_program_is_fitted_and_its_data_are_looked_at():
    program, gap = ppl.eliminate(mixture, "z"), jnp.array([0.3, jnp.nan])
    found = choose_objective(program, (jnp.array([0.3, -1.0]),), may_be_prior=False)
    assert found.reasons["objective"] == "elbo"
    with pytest.raises(ValueError, match="fit: site 'x' of .* meets numbers that are NaN"):
        choose_objective(program, (gap,), may_be_prior=False)
