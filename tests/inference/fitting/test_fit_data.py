"""fit: minibatches by reshuffling, iterables of batches, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _fit_fakes import Objective
from _random_rows import random_program
from numpyro.infer.autoguide import AutoDelta

from lapilli import inference, ppl
from lapilli.inference.fitting._fit import fit
from lapilli.inference.fitting.data import Minibatches

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
SGD = optax.sgd(1e-3)


def run(objective=None, args=(X,), optimizer=SGD, **options):
    options = {"num_steps": 6, "key": jax.random.key(0), "progress": False} | options
    return fit(objective or Objective(), optimizer, args, **options)


class TwoPlates(Objective):
    """Also y_j ~ N(mu, 1) in plate "cols"; the value is the log density at mu = loc."""

    def __init__(self, sizes=None):
        super().__init__(sizes, noisy=False)

    def value(self, params, key, x, y):
        loc, factor = params["loc"], {"rows": x, "cols": y}
        return -0.5 * sum(
            self.sizes.get(name, len(v)) / len(v) * ((v - loc) ** 2).sum()
            for name, v in factor.items()
        )

    def step(self, params, state, key, *args):
        value, grads = jax.value_and_grad(self.value)(params, key, *args)
        return value, grads, state

    def plate_sizes(self, x, y):
        return {"rows": len(x), "cols": len(y)}

    def with_plate_sizes(self, sizes):
        return TwoPlates(sizes)


def batches_of(source, key, num_steps):
    for step in range(num_steps):
        order, valid = source.segment(key, step)
        assert valid >= 1
        yield source.batch(source.load(1)[0], order, 0, step)


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    source = Minibatches(
        (X, 3, X[:, None] * np.ones(2)), {"rows": 4}, {"rows": 12}, None, ["rows", "rows"]
    )
    batches = list(batches_of(source, jax.random.key(1), 6))
    first, second = ([np.asarray(b[0]) for b in batches[i : i + 3]] for i in (0, 3))
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), X)
    np.testing.assert_array_equal(np.sort(np.concatenate(second)), X)
    assert not np.array_equal(first, second)
    for x, static, matrix in batches:
        assert static == 3  # not an array: untouched
        np.testing.assert_array_equal(matrix[:, 0], x)  # all leaves see the same rows


def test_the_last_partial_batch_is_dropped():
    source = Minibatches((X,), {"rows": 5}, {"rows": 12}, None, ["rows"])
    rows = np.concatenate([np.asarray(b[0]) for b in batches_of(source, jax.random.key(1), 2)])
    assert len(set(rows.tolist())) == 10


@pytest.mark.slow
def test_rows_are_uniform():
    # 3000 first batches of 4 out of 12 rows: each row in a third of them. Binomial z, 12 comparisons, false alarm 8e-5.
    keys = jax.random.split(jax.random.key(2), 3000)
    source = Minibatches((np.arange(12),), {"rows": 4}, {"rows": 12}, None, ["rows"])
    draw = lambda key: source.batch(source.load(1)[0], source.segment(key, 0)[0], 0, 0)[0]
    counts = np.bincount(np.asarray(jax.vmap(draw)(keys)).ravel(), minlength=12)
    z = (counts / 3000 - 1 / 3) / np.sqrt(2 / 9 / 3000)
    assert np.abs(z).max() < 4.5


def test_mean_of_the_scaled_values_over_an_epoch_is_the_full_value():
    still = optax.sgd(0.0)
    batched = run(Objective(noisy=False), optimizer=still, num_steps=3, subsample={"rows": 4})
    full = run(Objective(noisy=False), optimizer=still, num_steps=1)
    assert np.ptp(batched.history["value"]) > 0.1
    np.testing.assert_allclose(batched.history["value"].mean(), full.history["value"][0], rtol=1e-6)


def test_the_comparison_above_sees_a_missing_scale():
    class Unscaled(Objective):
        def with_plate_sizes(self, sizes):
            return self

    still = optax.sgd(0.0)
    batched = run(Unscaled(noisy=False), optimizer=still, num_steps=3, subsample={"rows": 4})
    full = run(Unscaled(noisy=False), optimizer=still, num_steps=1)
    assert abs(batched.history["value"].mean() / full.history["value"][0] - 1) > 0.5


@pytest.mark.slow
def test_a_batch_of_all_rows_equals_the_full_data():
    full, batched = run(num_steps=3), run(num_steps=3, subsample={"rows": 12})
    np.testing.assert_allclose(batched.history["value"], full.history["value"], rtol=1e-5)


def test_two_plates_are_subsampled_together():
    # Epochs of 3 and 2 steps: over 6 steps every row and every column is seen equally often.
    args = (X, np.arange(8, dtype=np.float32))
    frozen = {"loc": optax.sgd(0.0), "log_scale": "frozen"}
    part = run(TwoPlates(), args, frozen, subsample={"rows": 4, "cols": 4})
    full = run(TwoPlates(), args, frozen, num_steps=1)
    np.testing.assert_allclose(part.history["value"].mean(), full.history["value"][0], rtol=1e-6)


def test_step_is_traced_once_with_minibatches_and_epochs():
    objective = Objective()
    run(objective, num_steps=20, subsample={"rows": 5})
    assert objective.num_traces == [1]


@pytest.mark.parametrize(
    ("subsample", "args", "message"),
    [
        ({"row": 4}, (X,), r"no plate 'row'; the plates and their sizes are \{'rows': 12\}"),
        ({"rows": 13}, (X,), "plate 'rows' has 12 rows, so a batch size of 13 is impossible"),
        ({"rows": 0}, (X,), "batch size of 0 is impossible"),
    ],
    ids=["unknown", "too-large", "zero"],
)
def test_impossible_subsamples_are_refused(subsample, args, message):
    with pytest.raises(ValueError, match=message):
        run(args=args, subsample=subsample)


def test_a_plate_without_data_of_its_size_is_refused():
    class Other(Objective):
        def plate_sizes(self, x):
            return {"rows": 7}

    with pytest.raises(ValueError, match=r"'rows' has size 7, but no argument has.*float32\[12\]"):
        run(Other(), subsample={"rows": 4})


def test_plates_of_equal_size_are_told_apart_by_the_arguments_that_they_follow():
    args = (X, np.arange(12, dtype=np.float32))
    frozen = {"loc": optax.sgd(0.0), "log_scale": "frozen"}
    full = run(TwoPlates(), args, frozen, num_steps=1)
    epochs = run(TwoPlates(), args, frozen, subsample={"rows": 4, "cols": 6}, num_steps=6)
    np.testing.assert_allclose(epochs.history["value"].mean(), full.history["value"][0], rtol=1e-6)


def test_plates_of_one_argument_cannot_be_told_apart():
    class Twice(TwoPlates):
        def plate_sizes(self, x):
            return {"rows": len(x), "cols": len(x)}

    with pytest.raises(ValueError, match="plates 'rows' and 'cols' both have size 12"):
        run(Twice(), (X,), subsample={"rows": 4, "cols": 4})


def slope(*args):
    return ppl.sample("slope", dist.Normal(0.0, 1.0))


def looked_up(x, group, table, y):
    mean = slope() * x + table[group]
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(mean, 1.0), obs=y)


def things(x, group, table, y):
    mean = slope() * x
    with ppl.plate("things", table.shape[0]):
        effect = ppl.sample("effect", dist.Normal(table, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(mean + effect[group], 1.0), obs=y)


def cut_to_rows(x, group, table, y):
    """The table is no table: its first rows go with those of y."""
    mean = slope() * table[: len(y)] * x[jnp.arange(len(y))]
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(mean, 1.0), obs=y)


def point(x, group, table, y):
    ppl.sample("slope", dist.Delta(ppl.param("at", 0.3)))


def points(x, group, table, y):
    point(x, group, table, y)
    with ppl.plate("things", table.shape[0]):
        ppl.sample("effect", dist.Delta(2.0 * table))


@pytest.mark.parametrize("model", [looked_up, things, cut_to_rows])
def test_what_is_as_long_as_a_plate_is_cut_only_if_it_goes_with_its_rows(model):
    """The mean over an epoch is the value on all rows, whichever arguments happen to be as long."""
    rng = np.random.default_rng(0)
    x, table, y = (jnp.asarray(rng.normal(size=12), jnp.float32) for _ in range(3))
    objective = inference.elbo(model, points if model is things else point)
    options = {"optimizer": optax.sgd(0.0), "args": (x, rng.integers(0, 12, 12), table, y)}
    part = run(objective, **options, num_steps=3, subsample={"rows": 4}).history["value"]
    full = run(objective, **options, num_steps=1).history["value"][0]
    assert np.ptp(part) > 0.1
    np.testing.assert_allclose(part.mean(), full, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_programs_are_scaled_right_or_refused(seed):
    """What rows share: the mean over an epoch is the value on all rows. A site of the rows has parameters of theirs: refused."""
    case = random_program(np.random.default_rng(seed), num_of_rows=seed % 2)
    num_rows = len(case.args[0])
    size = max(n for n in range(1, num_rows) if num_rows % n == 0)
    objective = inference.elbo(case.model, AutoDelta(case.model))
    options = {"optimizer": optax.sgd(0.0), "args": tuple(map(jnp.asarray, case.args))}
    minibatches = {**options, "num_steps": num_rows // size, "subsample": {"rows": size}}
    if case.of_rows:
        with pytest.raises(ValueError, match="rows|plate '"):
            run(objective, **minibatches)
        return
    full = run(objective, **options, num_steps=1).history["value"][0]
    np.testing.assert_allclose(
        run(objective, **minibatches).history["value"].mean(), full, rtol=1e-5
    )


@pytest.mark.parametrize(
    "plates", [{"rows": 12}, {"rows": 4, "cols": 12}], ids=["stuck", "dragged"]
)
def test_a_plate_that_does_not_follow_its_data_is_refused(plates):
    class Fixed(Objective):
        def plate_sizes(self, x):
            return (
                {"rows": 12} | ({"cols": 12} if "cols" in plates else {}) if len(x) == 12 else seen
            )

    seen = {"rows": 12} if "cols" not in plates else {"rows": 4, "cols": 4}
    with pytest.raises(ValueError, match="with sliced arguments plate '.*' has size.*was expected"):
        run(Fixed(), subsample={"rows": 4})


@pytest.mark.parametrize("kind", ["subsample", "batches"])
def test_a_parameter_with_one_entry_per_row_is_refused(kind):
    message = r"one entry per row of the data: 'offsets'.*amortised"
    with pytest.raises(ValueError, match=message):
        if kind == "subsample":
            run(Objective(local=True), subsample={"rows": 4})
        else:
            run(Objective(local=True), [(X[:4],)], plate_sizes={"rows": 12})


# Iterables


def test_batches_equal_the_same_steps_by_hand_and_are_read_again():
    batches = [(X[:4],), (X[4:8],), (X[8:],)]
    result = run(Objective(noisy=False), batches, optax.sgd(0.0), plate_sizes={"rows": 12})
    values = result.history["value"]
    np.testing.assert_array_equal(values[:3], values[3:])
    full = run(Objective(noisy=False), optimizer=optax.sgd(0.0), num_steps=1)
    np.testing.assert_allclose(values[:3].mean(), full.history["value"][0], rtol=1e-6)


def test_batches_compile_once_for_any_number_of_steps():
    objective = Objective()
    batches = (
        [X[i % 8 : i % 8 + 4]] for i in range(40)
    )  # a generator of lists, as data loaders yield
    result = run(objective, batches, num_steps=37, plate_sizes={"rows": 12})
    assert objective.num_traces == [1] and result.steps == 37


def test_an_iterator_trains_until_it_ends_without_num_steps():
    result = run(args=iter([(X[:4],)] * 21), num_steps=None, plate_sizes={"rows": 12})
    assert result.steps == 21 and result.stop_reason == "data"


def test_an_iterator_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="ended after 3 of 6 steps.*can be read again"):
        run(args=iter([(X[:4],)] * 3), plate_sizes={"rows": 12})


def test_batches_of_complete_data_need_an_empty_declaration():
    assert run(args=[(X,)], plate_sizes={}).steps == 6


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ([(X[:4],)], {}, r"nothing says how many rows.*\{'rows': 4\}.*plate_sizes="),
        ([(X[:4],)], {"subsample": {"rows": 2}}, "already yields batches.*plate_sizes"),
        ([(X[:4],)], {"plate_sizes": {"row": 12}}, r"no plate 'row'; the plates.*'rows': 4"),
        ([(X[:4],)], {"plate_sizes": {"rows": 3}}, "'rows' has 4 rows.*more than its full size 3"),
        ((X,), {"plate_sizes": {"rows": 12}}, "'args' is one tuple of arguments"),
        ([], {"plate_sizes": {}}, "holds no batch"),
        (
            [(X[:4],), (X[:3],)],
            {"plate_sizes": {}},
            r"batch 1 has \['float32\[3\]'\], but batch 0 has \['float32\[4\]'\].*drop_last",
        ),
        ([(X[:4],), (X[:4], 1)], {"plate_sizes": {"rows": 12}}, "batch 1 differs from batch 0"),
    ],
    ids=["undeclared", "both", "unknown", "small", "tuple", "empty", "shapes", "structure"],
)
def test_iterables_that_would_mislead_are_refused(args, options, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        run(args=args, **options)
