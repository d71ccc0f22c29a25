"""The family's program: densities by hand, padding and fill, switches, ObsDropout, the mixture over draws."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from lapilli import inference, ppl
from lapilli.models import imputation
from lapilli.models.imputation._imputation import Imputation

pytestmark = pytest.mark.one_in(2)

N, T, D, C = 3, 5, 2, 3
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(N, T, D))
VALUES[RNG.random(VALUES.shape) < 0.4] = np.nan
DATA = imputation.series(VALUES, lengths=[5, 3, 4], labels=[2, 0, 1])
Z = RNG.normal(size=(N, 2, T)).astype(np.float32)
DRAWN = RNG.normal(size=(N, T, D)).astype(np.float32)


@functools.cache
def make(**switches):
    options = {"num_classes": C, "missingness": "network", "num_latents": 2, "num_hidden": 4}
    options |= dict.fromkeys(("encoder", "decoder", "classifier"), "conv")  # compiles fastest
    return imputation.programs(D, key=jax.random.key(1), **{**options, **switches})


def scored(model, data=DATA, z=Z, drawn=DRAWN, key=0):
    """The trace at fixed choices; it has a key, which the noise of ObsDropout needs."""
    choices = {"z": jnp.asarray(z), "x_unobserved": jnp.asarray(drawn)}
    return jax.jit(lambda c, d: model.generate(jax.random.key(key), c, d)[0])(choices, data)


def close(a, b, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def padded(array, num=3, fill=9.0):
    """Three more steps, holding what should not matter; time is the axis 1 (2 in z)."""
    axis = 2 if array is Z else 1
    width = [(0, 0)] * array.ndim
    width[axis] = (0, num)
    return np.pad(array, width, constant_values=fill)


def longer(data):
    """The same series in arrays with more steps, whose masks say that they do not exist."""
    times = np.concatenate([data.times, data.times[:, -1:] + np.arange(1, 4)], 1)
    return data._replace(
        values=padded(data.values), observed=padded(data.observed, fill=False), times=times,
        valid=padded(data.valid, fill=False),
    )  # fmt: skip


@pytest.mark.slow  # a long compilation
@pytest.mark.parametrize(
    "kind, prior",
    [
        ("gru", "gp"),
        ("conv", "normal"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # compile more networks
            for case in (("transformer", "gp"), ("conv", "gp"), ("gru", "normal"))
        ),
    ],
)
def test_padding_a_series_changes_nothing(kind, prior):
    model, guide = make(
        prior=prior, encoder=kind, decoder=kind, classifier=kind, has_decay=kind == "gru"
    )
    short, long = scored(model), scored(model, longer(DATA), padded(Z), padded(DRAWN))
    for site in ("x_observed", "s", "y"):
        close(long.log_probs[site], short.log_probs[site])
    close(long.deterministic["logits"], short.deterministic["logits"])
    score = jax.jit(lambda z, d: guide.trace({"z": z}, d).log_probs["z"])
    ratio = short.log_probs["z"] - score(Z, DATA)
    close(long.log_probs["z"] - score(padded(Z), longer(DATA)), ratio, atol=1e-4)


@pytest.mark.fast("1000000.0")
@pytest.mark.parametrize("fill", [0.0, 1e6])
def test_what_stands_in_a_missing_cell_is_never_read(fill):
    model, guide = make()
    data = DATA._replace(values=np.where(DATA.observed, DATA.values, fill).astype(np.float32))
    jax.tree.map(close, scored(model, data).log_probs, scored(model).log_probs)
    score = jax.jit(lambda z, d: guide.trace({"z": z}, d).log_probs["z"])
    close(score(Z, data), score(Z, DATA))


def test_an_observed_zero_is_not_a_missing_cell():
    """The encoder sees the mask beside the values."""
    _, guide = make()
    data = DATA._replace(values=np.zeros_like(DATA.values))
    unseen = data._replace(observed=np.zeros_like(DATA.observed))
    score = jax.jit(lambda z, d: guide.trace({"z": z}, d).log_probs["z"])
    assert np.all(np.abs(score(Z, data) - score(Z, unseen)) > 1e-3)


def test_one_categorical_term_per_series():
    """Log p(y | x) enters the weight once, whatever the number of classes."""
    trace = scored(make().model)
    logits = np.asarray(trace.deterministic["logits"], float)
    close(trace.log_probs["y"], log_softmax(logits, -1)[range(N), DATA.labels])
    assert trace.log_probs["s"].shape == trace.log_probs["x_observed"].shape == (N,)


@pytest.mark.slow
def test_the_mask_is_scored_on_steps_that_exist():
    model, _ = make(missingness="self_masking")  # slope and bias zero: one half each
    close(scored(model).log_probs["s"], np.log(0.5) * D * DATA.valid.sum(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "observation", ["normal", pytest.param("student_t", marks=pytest.mark.slow)]
)
def test_the_law_that_hidden_cells_are_drawn_from_leaves_the_density_as_it_is(observation):
    """Log q(x_m | z) and the weight make log p(x_m | z), whatever P(miss | x)."""
    model = make(missingness="self_masking", observation=observation).model
    params = model.init(jax.random.key(2), DATA)
    found = {}
    for slope in (0.0, -2.0):
        net = eqx.tree_at(lambda n: n.slope, params["missingness"], jnp.full(D, slope))
        found[slope] = scored(model.bind({**params, "missingness": net})).log_probs
    assert not found[0.0]["x_weight"].any() and np.all(np.abs(found[-2.0]["x_weight"]) > 1e-3)
    joint = [lp["x_unobserved"] + lp["x_weight"] for lp in found.values()]
    close(joint[1], joint[0], rtol=1e-4)


@pytest.mark.parametrize("mechanism", ["self_masking", "linear", "network"])
def test_every_mechanism_can_express_any_rate(mechanism):
    net = imputation.missingness(mechanism, D, 4, key=jax.random.key(0))
    where = {
        "self_masking": lambda n: n.bias,
        "linear": lambda n: n.bias,
        "network": lambda n: n.layers[-1].bias,
    }[mechanism]
    for rate in (0.02, 0.98):
        moved = eqx.tree_at(where, net, jnp.full(D, np.log(rate / (1 - rate))))
        assert np.all(np.abs(jax.nn.sigmoid(moved(jnp.zeros(D))) - rate) < 0.015)


SHIFT = np.log(0.5) * D * DATA.valid.sum(1)  # log p(s) where p(s | x) is one half


@pytest.mark.slow
def test_a_mask_that_does_not_depend_on_x_changes_no_prediction(key):
    """Weights shift by log p(s), and predictions are MIWAE's."""
    plain, masked = make(missingness=None), make(missingness="self_masking")
    found = [
        imputation.impute(*i, DATA, key, num_particles=4, num_imputations=2)
        for i in (plain, masked)
    ]
    shift = np.broadcast_to(SHIFT, (4, 2, N))
    close(found[1].log_weights - found[0].log_weights, shift, atol=1e-4)
    close(found[1].probs, found[0].probs)
    assert found[0].is_collapsed and not found[1].is_collapsed


@pytest.mark.slow  # compiles two gradients
def test_a_mask_that_does_not_depend_on_x_changes_no_gradient(key):
    """Nor a gradient but its own; the bound shifts by log p(s)."""
    values = {}
    for mechanism in (None, "self_masking"):
        bound = inference.iwelbo(*make(missingness=mechanism), num_particles=3, per="rows")
        values[mechanism] = bound.value_and_grad(bound.init(key, DATA), key, DATA)
    (plain, grads), (masked, others) = values.values()
    close(masked - plain, SHIFT.sum(), rtol=1e-4)
    rest = {k: v for k, v in others.items() if k != "missingness"}
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-3, atol=1e-4), rest, dict(grads))


MEMBERS = {  # classes, missingness, prior
    "HI-VAE, MIWAE": (None, None, "normal"),
    "GP-VAE": (None, None, "gp"),
    "not-MIWAE": (None, "linear", "normal"),
    "supMIWAE": (C, None, "normal"),
    "supnotMIWAE": (C, "network", "gp"),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_members_of_the_family_have_their_sites(member):
    num_classes, missingness, prior = MEMBERS[member]
    model, _ = make(num_classes=num_classes, missingness=missingness, prior=prior)
    sites = jax.eval_shape(lambda k: model.simulate(k, DATA).log_probs, jax.random.key(0))
    optional = {"y"} if num_classes else set()
    optional |= {"s"} if missingness else set()
    assert set(sites) == {"z", "x_observed", "x_unobserved"} | optional


@pytest.mark.slow
def test_the_untrained_imputer_is_near_gaussian_process_regression(key):
    """A smooth path seen at two thirds of its steps: better than its mean by far, without a step of training."""
    times = np.arange(24.0)
    truth = np.stack([np.sin(times / 4 + phase) for phase in range(6)])[..., None]
    seen = np.random.default_rng(0).random(truth.shape) < 0.6
    data = imputation.series(np.where(seen, truth, np.nan))
    imputer = imputation.programs(1, num_hidden=4, length_scale=4.0, key=jax.random.key(0))
    found = imputation.impute(*imputer, data, key, num_particles=20, num_imputations=1)
    error = np.abs(found.mean - truth)[~seen].mean()
    assert error < 0.6 * np.abs(truth)[~seen].mean()


@pytest.mark.slow
def test_student_t_observations(key):
    model, _ = make(observation="student_t")
    assert np.isfinite(scored(model).log_density)


def test_a_causal_program_does_not_look_ahead():
    """Encoder and decoder of the first two steps do not change when later values do."""
    model, guide = make(is_causal=True, encoder="transformer", decoder="conv")
    later = DATA._replace(
        values=DATA.values + np.where(np.arange(T) > 1, 1.0, 0.0)[:, None].astype(np.float32)
    )
    z = Z + np.where(np.arange(T) > 1, 1.0, 0.0).astype(np.float32)
    close(
        scored(model, z=z).deterministic["x_loc"][:, :2],
        scored(model).deterministic["x_loc"][:, :2],
    )
    draw = jax.jit(lambda d: guide.simulate(jax.random.key(0), d).choices["z"])
    close(draw(later)[..., :2], draw(DATA)[..., :2])


@pytest.mark.slow
def test_an_early_observer_knows_nothing_of_later_steps():
    """The series until a step is the series of that length: weights there are filtering weights."""
    model, guide = make()
    later = DATA._replace(
        values=DATA.values + np.where(np.arange(T) > 1, 1.0, 0.0)[:, None].astype(np.float32)
    )
    early, cut = later.until(2), imputation.series(VALUES[:, :2], labels=DATA.labels)
    np.testing.assert_array_equal(early.valid.sum(1), 2)
    whole, short = scored(model, early), scored(model, cut, Z[..., :2], DRAWN[:, :2])
    for site in ("x_observed", "s", "y"):
        close(whole.log_probs[site], short.log_probs[site])
    score = jax.jit(lambda z, d: guide.trace({"z": z}, d).log_probs["z"])
    close(
        whole.log_probs["z"] - score(Z, early),
        short.log_probs["z"] - score(Z[..., :2], cut),
        atol=1e-4,
    )


# ObsDropout.


def test_obs_dropout_at_rate_zero_is_the_program_itself():
    model = make().model
    assert imputation.obs_dropout(model, 0.0) is model


@pytest.mark.slow
def test_weights_do_not_know_of_obs_dropout():
    """Every factor of r = p(s | x) p(x_o | z) p(z) / q is the same, so the ESS with dropout on is that with dropout off."""
    model = make(has_decay=True).model
    off, on = scored(model), scored(imputation.obs_dropout(model, 0.5))
    for site in ("z", "x_observed", "x_unobserved", "s"):
        np.testing.assert_array_equal(on.log_probs[site], off.log_probs[site])
    assert set(on.log_probs) == set(off.log_probs)
    # Of a series with few cells the dropout may keep all.
    assert np.any(np.abs(on.log_probs["y"] - off.log_probs["y"]) > 1e-4)


@pytest.mark.slow
def test_obs_dropout_shows_generated_values_in_dropped_cells():
    model = imputation.obs_dropout(make().model, 0.4)
    trace = scored(model)
    kept, seen = trace.deterministic["kept"], trace.deterministic["seen"]
    assert not np.any(kept & ~DATA.observed) and np.any(DATA.observed & ~kept)
    np.testing.assert_array_equal(seen, np.where(kept, DATA.values, DRAWN))
    np.testing.assert_array_equal(
        trace.deterministic["x"], np.where(DATA.observed, DATA.values, DRAWN)
    )
    other = scored(model, key=1).deterministic["kept"]
    assert np.any(other != kept)


@pytest.mark.slow
def test_obs_dropout_at_rate_one_hides_all_observed_values():
    """The classifier's logits are then functions of z and the generated cells alone."""
    model = imputation.obs_dropout(make().model, 1.0)
    data = DATA._replace(values=DATA.values + 1)
    close(scored(model, data).deterministic["logits"], scored(model).deterministic["logits"])


def test_obs_dropout_in_every_lane_and_step_has_its_own_mask(key):
    model = imputation.obs_dropout(make().model, 0.5)
    lanes = ppl.model(lambda data: ppl.particles(3)(lambda: model(data))())
    kept = jax.jit(lambda k: lanes.simulate(k, DATA).deterministic["kept"])(key)
    assert kept.shape == (3, N, T, D)
    assert np.any(kept[0] != kept[1]) and np.any(kept[1] != kept[2])


@pytest.mark.slow  # compiles a gradient, and searches it for jumps
def test_obs_dropout_trains(key):
    bound = inference.iwelbo(
        imputation.obs_dropout(make().model, 0.3),
        make().guide,
        num_particles=2,
        num_imputations=2,
        per="rows",
    )
    value, grads = bound.value_and_grad(bound.init(key, DATA), key, DATA)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_obs_dropout_without_its_sites_is_refused_by_name():
    model = imputation.obs_dropout(make(num_classes=None).model, 0.3)
    with pytest.raises(ValueError, match=r"obs_dropout: .* has no site \['kept', 'seen'\]"):
        model.simulate(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], got 1.5"):
        imputation.obs_dropout(model, 1.5)


# The mixture over draws.


def draws(average, k=2, j=2):
    rng = np.random.default_rng(1)
    return Imputation(
        observed=DATA.observed, x=rng.normal(size=(k, j, N, T, D)), x_loc=rng.normal(size=(k, N, T, D)),
        log_weights=rng.normal(size=(k, j, N)) * 2, logits=rng.normal(size=(k, j, N, C)) * 2, average=average,
        is_collapsed=False,
    )  # fmt: skip


def test_levels_that_are_no_probabilities_are_refused():
    for levels in ([5, 95], [0.5, 0.0], [np.nan]):
        with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\), got \["):
            draws("inner").quantiles(levels)


@pytest.mark.parametrize("average", ["inner", "outer"])
def test_the_prediction_is_the_arithmetic_mixture(average):
    found = draws(average)
    np.testing.assert_allclose(found.probs.sum(-1), 1.0, atol=1e-6)
    r = np.exp(found.log_weights)
    p = np.exp(log_softmax(found.logits, -1))
    by_hand = np.zeros((N, C))
    for n in range(N):
        for j in range(2):
            for k in range(2):
                total = r[:, j, n].sum() * 2 if average == "outer" else r[:, :, n].sum()
                by_hand[n] += r[k, j, n] / total * p[k, j, n]
    np.testing.assert_allclose(found.probs, by_hand, rtol=1e-10)
    geometric = np.exp(np.einsum("kjn,kjnc->nc", found.weights, np.log(p)))
    assert np.all(
        np.abs(geometric.sum(-1) - 1) > 1e-3
    )  # the released code's average over j is of this kind
    assert np.all(found.disagreement > 0) and np.all(found.entropy <= np.log(C))


def test_the_effective_sample_size_counts_particles():
    equal = draws("outer", k=6)
    for average, size in (("outer", 6.0), ("inner", 12.0)):
        flat = Imputation(**{**vars(equal), "log_weights": np.zeros((6, 2, N)), "average": average})
        np.testing.assert_allclose(flat.ess, size)
    assert np.all(equal.ess < 6)


def test_weighted_quantiles_and_crps_against_sums():
    found = draws("inner", k=4, j=3)
    x, w = found.x.reshape(12, N, T, D), found.weights.reshape(12, N)
    cell, truth = (1, 2, 0), 0.3
    values, weights = x[(slice(None), *cell)], w[:, 1]
    crps = (weights * abs(values - truth)).sum()
    crps -= 0.5 * (weights[:, None] * weights * abs(values[:, None] - values)).sum()
    assert found.crps(np.full((N, T, D), truth))[cell] == pytest.approx(crps, rel=1e-9)
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    expected = [
        values[order][np.argmax(reached >= level * reached[-1])] for level in (0.1, 0.5, 0.9)
    ]
    np.testing.assert_allclose(found.quantiles([0.1, 0.5, 0.9])[(slice(None), *cell)], expected)


@pytest.mark.slow  # compiles a bound and its draws
def test_the_bound_is_the_log_mean_of_whole_weights(key):
    """K = 2, J = 2, by brute force from the draws of `impute`, whose mean over runs must be the bound's."""
    model, guide = make()
    bound = inference.iwelbo(
        model, guide, num_particles=2, num_imputations=2, per="rows", check_jumps=False
    )
    params = bound.init(key, DATA)
    run = jax.jit(jax.vmap(lambda k: bound.value(params, k, DATA)))
    values = np.asarray(run(jax.random.split(key, 1000)), float)
    many = imputation.impute(
        model, guide, DATA, jax.random.key(5), num_particles=2000, num_imputations=2
    )
    log_y = log_softmax(many.logits.astype(float), -1)[..., np.arange(N), DATA.labels]
    weights = (many.log_weights + log_y).reshape(1000, 4, N)
    by_hand = (logsumexp(weights, 1) - np.log(4)).sum(-1)
    error = np.hypot(values.std(), by_hand.std()) / np.sqrt(1000)
    assert abs(values.mean() - by_hand.mean()) < 4.5 * error


def test_impute_refuses_impossible_numbers(key):
    with pytest.raises(ValueError, match="impute: num_particles, num_imputations and batch_size"):
        imputation.impute(*make(), DATA, key, num_particles=0)
    plain = draws("inner")
    with pytest.raises(ValueError, match="average is 'both'"):
        dataclasses.replace(plain, average="both")
    with pytest.raises(ValueError, match="no classifier"):
        _ = Imputation(**{**vars(plain), "logits": None}).probs


@pytest.mark.slow
def test_batches_of_series_give_what_one_batch_gives(key):
    """Draws differ by their keys; the series and their order do not."""
    found = imputation.impute(*make(), DATA, key, num_particles=3, batch_size=2)
    seen = DATA.observed
    assert found.x.shape == (3, 5, N, T, D)
    close(found.x[:, :, seen], np.broadcast_to(DATA.values[seen], (3, 5, seen.sum())))


# Refusals.


@pytest.mark.parametrize(
    "switches, match",
    [
        ({"prior": "flat"}, "prior must be 'normal' or 'gp'"),
        ({"observation": "cauchy"}, "observation must be 'normal' or 'student_t'"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": None, "has_decay": True}, "options of a classifier"),
        ({"num_latents": 1}, "has_skip needs num_latents >= num_channels"),
        ({"missingness": "odd"}, "No missingness mechanism 'odd'"),
        ({"encoder": "lstm"}, "No backbone of kind 'lstm'"),
        ({"num_hidden": 3, "encoder": "gru"}, "even num_hidden, got 3"),
    ],
)
def test_impossible_switches_are_refused(switches, match):
    with pytest.raises(ValueError, match=match):
        make(**switches)


def test_trees_are_of_the_series_that_were_imputed(key):
    """Those of one series were laid over all that were imputed."""
    x = np.zeros((4, 1, 3, 2, 1))
    found = Imputation(np.zeros((3, 2, 1), bool), x, x[:, 0], x[..., 0, 0], None, False)
    data = imputation.series(np.full((3, 2, 1), np.nan))
    for other in (data.rows(slice(1)), imputation.series(np.zeros((3, 2, 1)))):
        with pytest.raises(ValueError, match="other cells are observed in the data, of shape"):
            imputation.to_arviz(found, other, key)
    with pytest.raises(ValueError, match=r"'truth' has shape \(3, 2\), and the cells \(3, 2, 1\)"):
        imputation.to_arviz(found, data, key, truth=np.zeros((3, 2)))


def test_draws_without_weights_say_nothing():
    """Quantiles were the smallest draws where no draw of a series had a weight."""
    rng = np.random.default_rng(0)
    for bad in (-np.inf, np.nan, np.inf):
        for average in ("inner", "outer"):
            log_weights = rng.normal(size=(4, 2, 3))
            x = rng.normal(size=(4, 2, 3, 2, 1))
            found = Imputation(
                np.zeros((3, 2, 1), bool), x, x[:, 0], log_weights, None, False, average=average
            )
            np.testing.assert_allclose(found.weights.sum((0, 1)), 1)
            log_weights = log_weights.copy()
            log_weights[:, :, 1] = bad
            lost = dataclasses.replace(found, log_weights=log_weights)
            for ask in (
                lambda lost=lost: lost.quantiles([0.5]),
                lambda lost=lost: lost.mean,
                lambda lost=lost: lost.crps(np.zeros((3, 2, 1))),
                lambda lost=lost: lost.ess,
            ):
                with pytest.raises(
                    ValueError, match="draws of 1 of 3 series have no weights.* 1: 32"
                ):
                    ask()
            rest = lost.rows(np.array([0, 2])).quantiles([0.5])
            np.testing.assert_array_equal(rest, found.quantiles([0.5])[:, [0, 2]])
    with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\), got \[\]"):
        found.quantiles([])
    for truth in (np.zeros((3, 2)), np.zeros((2, 1)), np.zeros(())):
        with pytest.raises(ValueError, match=r"and the cells \(3, 2, 1\): values would be"):
            found.crps(truth)
