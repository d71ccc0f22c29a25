"""A fit is told something: a program without data is refused, and so is an observation whose data are None."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.inference.fitting._choose import choose_objective
from lapilli.inference.inputs._observed import check_none, tells
from lapilli.inference.inputs._readers import Readers
from lapilli.inference.inputs._runs import abstract_run, whole
from lapilli.ppl.language import as_arguments

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 5, dtype=np.float32)
NAMES = ("one", "two", "three")


def chain(*given):
    """Three sites in a row, each observed where its argument is given."""
    mean = 0.0
    for name, obs in zip(NAMES, given, strict=True):
        mean = ppl.sample(name, dist.Normal(mean, 1.0), obs=obs)


def apart(x, y=None, *, z=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Normal(slope, 1.0), obs=z)
        if y is not None:
            assert y.shape == x.shape  # as people write
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def guide(x, y=None):
    ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), 1.0))


def forgotten(x):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 1.0))


def weighted(x):
    ppl.factor("w", -(ppl.sample("slope", dist.Normal(0.0, 1.0)) ** 2))


def masked(x, y=None):
    with ppl.plate("rows", x.shape[0]):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(slope, 1.0), obs=x, obs_mask=y)


def without_rows(x):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(slope, 1.0).expand([0]).to_event(1), obs=x[:0])


def fit(objective, args, **options):
    options = {"num_steps": 1, "key": KEY, "progress": False, "k_hat": "skip"} | options
    return inference.fit(objective, optax.adam(0.1), args, **options)


def named(x, y=None, z=None):
    return {"x": x, "y": y, "z": z}


@pytest.mark.parametrize(
    "program, told",
    [
        (forgotten, False),
        (apart, False),
        (weighted, True),
        (masked, True),
        (without_rows, False),
        (ppl.condition(forgotten, {"y": X}), True),
        (ppl.intervene(forgotten, {"y": X}), False),
        (ppl.eliminate(forgotten, ["slope"]), False),
        (ppl.eliminate(ppl.condition(forgotten, {"y": X}), ["slope"]), True),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)[:60]),
)
def test_observations_and_factors_tell_something(program, told):
    run = abstract_run(whole(ppl.as_program(program)), (X,))
    assert tells(run.trace.sites) == told


@pytest.mark.parametrize("given", list(itertools.product([True, False], repeat=3)), ids=str)
def test_a_none_is_refused_where_no_observation_hears_of_it(given):
    args = tuple(1.0 if g else None for g in given)
    # A site tells of those before it, so that a None matters where nothing after it is given.
    last = max((i for i, g in enumerate(given) if g), default=-1)

    def program(one=None, two=None, three=None):
        chain(one, two, three)

    choose = lambda may_be_prior: choose_objective(program, args, may_be_prior=may_be_prior)
    if last == -1:
        with pytest.raises(ValueError, match="has no observation and no factor"):
            choose(False)
    elif last < 2:
        name = NAMES[last + 1]
        with pytest.raises(ValueError, match=f"'{name}' of .* is None, so that site '{name}'"):
            choose(False)
    else:
        choose(False)
    choose(True)


@pytest.mark.parametrize(
    "args", [(X,), (X, None), named(X, z=X), (X, X), {"x": X, "y": X}], ids=str
)
def test_an_argument_that_is_left_out_counts_as_none(args):
    with pytest.raises(ValueError, match="Pass the data, if they were forgotten"):
        fit(apart, args)


def test_a_none_within_an_argument_is_found():
    def program(data):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        for name in data:
            ppl.sample(name, dist.Normal(slope, 1.0).expand([5]).to_event(1), obs=data[name])

    with pytest.raises(ValueError, match=r"argument 'data'\['z'\] of .* is None, so that site 'z'"):
        fit(program, ({"y": X, "z": None},))


def test_arguments_that_are_no_data_may_be_none():
    def program(x, y, scale=None, mask=None, label=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        scale = ppl.sample("scale", dist.HalfNormal(1.0), obs=scale)
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(slope * x, scale), obs=y, obs_mask=mask)

    made = ppl.as_program(program)
    trace = jax.eval_shape(lambda: made.simulate(KEY, X, X))
    check_none("fit", made, trace, (X, X), "Give it.")


@pytest.mark.parametrize("bound", ["elbo", "iwelbo", "renyi"])
def test_a_guide_of_ones_own_does_not_make_a_posterior_of_nothing(bound):
    options = {"elbo": {}, "iwelbo": {"num_particles": 2}, "renyi": {"alpha": 0.5}}[bound]
    if bound == "renyi":
        options["num_particles"] = 2

    def whole(x, y=None):
        guide(x, y)
        if y is None:
            with ppl.plate("rows", x.shape[0]):
                ppl.sample("y", dist.Normal(0.0, 1.0))

    objective = getattr(inference, bound)(forgotten, lambda x: whole(x), **options)
    with pytest.raises(ValueError, match="has no observation and no factor"):
        fit(objective, (X,))
    if bound == "elbo":
        with pytest.raises(ValueError, match="fit_fixed_draws: .* has no observation"):
            inference.fitting.fit_fixed_draws(objective, (X,), key=KEY)
        assert np.isfinite(fit(objective, (X,), unobserved="allow").history["value"]).all()


@pytest.mark.parametrize(
    "run",
    [
        lambda: inference.smc(forgotten, KEY, X, num_particles=4),
        lambda: inference.tempered_smc(forgotten, KEY, X, num_particles=4),
        lambda: inference.smooth(forgotten, KEY, X, num_particles=4),
    ],
    ids=["smc", "tempered_smc", "smooth"],
)
def test_particles_have_nothing_to_weigh(run):
    with pytest.raises(ValueError, match="has no observation and no factor"):
        run()


def test_an_unknown_wish_is_refused():
    with pytest.raises(ValueError, match="'unobserved' must be 'raise' or 'allow'"):
        fit(apart, (X, X), unobserved="skip")


def test_jnp_zeros_is_data():
    def program(y=None):
        ppl.sample("y", dist.Normal(ppl.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    assert choose_objective(program, (jnp.zeros(()),), may_be_prior=False).objective is not None


def two_outcomes(x, y, z):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        ppl.sample("of_z", dist.Normal(slope * x, 1.0))


def test_a_statement_that_was_to_be_observed_is_told_by_the_argument_that_nothing_reads():
    with pytest.warns(UserWarning, match="reads the argument 'z', and site 'of_z'.*write obs=z"):
        choose_objective(ppl.model(two_outcomes), (X, X, X), may_be_prior=False)


@pytest.mark.parametrize("z", [X[:3], None, 1.0], ids=["other rows", "none", "number"])
def test_other_arguments_that_nothing_reads_are_let_pass(z):
    choose_objective(ppl.model(two_outcomes), (X, X, z), may_be_prior=False)


def spread_in_steps(y):
    start = ppl.sample("start", dist.Normal(0.0, 1.0))
    drift = ppl.sample("drift", dist.HalfNormal(1.0))

    def step(level, y):
        level = ppl.sample("level", dist.Normal(level, drift))
        ppl.sample("y", dist.Normal(level, 1.0), obs=y)
        return level, None

    ppl.scan(step, start, y)


def test_gaps_under_scales_that_are_drawn_are_no_wrong_scales():
    y = np.ma.masked_array(X, [False, True, False, False, True])
    program, args = ppl.model(spread_in_steps), as_arguments((y,), spread_in_steps)
    run = abstract_run(program, args)
    readers = Readers(program, args, run.trace)
    assert set(readers("y_unobserved")) == {"y_unobserved"}
    assert {"level"} < set(readers("drift"))
