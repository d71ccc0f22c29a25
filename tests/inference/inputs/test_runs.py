"""Calls refuse indices out of range before they compute anything, with the argument, the value and the range."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = np.zeros(4, np.float32)
GOOD, MISSING, BEYOND = np.array([0, 1, 2, 0]), np.array([0, 1, -1, 0]), np.array([0, 3, 2, 3])
UNKNOWN = np.array([0, 1, np.nan, 0], np.float32)


@ppl.model
def model(g, y=None):
    with ppl.plate("groups", 3):
        effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", g.shape[0]):
        ppl.sample("y", dist.Normal(effect[g.astype(int)], 1.0), obs=y)


@ppl.model
def guide(g, y=None):
    with ppl.plate("groups", 3):
        ppl.sample("effect", dist.Normal(ppl.param("loc", jnp.zeros(3)), 1.0))


OPTIONS = {"num_steps": 1, "progress": False, "k_hat": "skip"}
CALLS = {
    "fit": lambda g: inference.fit(model, args=(g, Y), **OPTIONS),
    "fit by name": lambda g: inference.fit(model, args={"g": g, "y": Y}, **OPTIONS),
    "fit of an objective": lambda g: inference.fit(
        inference.elbo(model, guide), optax.sgd(0.1), (g, Y), **OPTIONS
    ),
    "fit by minibatches": lambda g: inference.fit(
        inference.elbo(model, guide), optax.sgd(0.1), (g, Y), subsample={"rows": 2}, **OPTIONS
    ),
    "fit_fixed_draws": lambda g: inference.fitting.fit_fixed_draws(
        inference.elbo(model, guide), (g, Y), key=KEY
    ),
    "plan": lambda g: inference.elbo(model, guide).plan({"loc": jnp.zeros(3)}, g, Y),
    "smc": lambda g: inference.smc(model, KEY, g, Y, num_particles=2),
    "tempered_smc": lambda g: inference.tempered_smc(model, KEY, g, Y, num_particles=2),
    "predict": lambda g: inference.predict(model, {"effect": np.zeros((5, 3))}, KEY, g),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "convert", [np.asarray, jnp.asarray, pd.Series], ids=["numpy", "jax", "pandas"]
)
def test_an_index_out_of_range_is_refused(call, convert):
    for g, value in ((MISSING, -1), (BEYOND, 3)):
        words = rf"argument 'g' of .* holds {value} at \[\d\].*has 3 entries, 0 to 2"
        with pytest.raises(ValueError, match=words):
            CALLS[call](convert(g))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of NumPy's own
@pytest.mark.parametrize("call", CALLS)
def test_nan_as_an_index_is_refused(call):
    words = r"what is made of 'g' in .* holds NaN at \[2\] \(1 such\).*Leave such rows out"
    with pytest.raises(ValueError, match=words):
        CALLS[call](UNKNOWN)


def test_nan_that_a_program_holds_or_reads_later_is_refused(fit):
    with pytest.raises(ValueError, match="Fit.predict: what is made of 'g'.* holds NaN"):
        fit.predict(KEY, UNKNOWN, num_samples=2)
    held = lambda y: model.fn(jnp.asarray(UNKNOWN), y)
    with pytest.raises(ValueError, match="smc: a constant in .* holds NaN"):
        inference.smc(held, KEY, Y, num_particles=2)
    batches = [(UNKNOWN[:2], Y[:2]), (UNKNOWN[2:], Y[2:])]
    with pytest.raises(ValueError, match="fit: batch 1: what is made of 'g'.* holds NaN"):
        inference.fit(
            inference.elbo(model, guide), optax.sgd(0.1), batches,
            plate_sizes={"rows": 4}, **OPTIONS | {"num_steps": 2},
        )  # fmt: skip


def test_what_a_program_holds_may_have_a_type_and_no_values():
    like = jax.ShapeDtypeStruct((4,), jnp.float32)
    held = lambda y: model.fn(jnp.zeros(like.shape, int), y)
    inference.smc(held, KEY, Y, num_particles=2)


def test_nan_that_is_replaced_before_is_a_code():
    filled = lambda g, y: model.fn(jnp.where(jnp.isnan(g), 2, g), y)
    inference.smc(filled, KEY, UNKNOWN, Y, num_particles=2)
    inference.fit(filled, args=(UNKNOWN, Y), **OPTIONS)


@pytest.fixture(scope="module")
def fit():
    return inference.fit(inference.elbo(model, guide), optax.sgd(0.1), (GOOD, Y), **OPTIONS)


def test_new_rows_are_looked_at_too(fit):
    with pytest.raises(ValueError, match="Fit.predict: argument 'g'.* holds 3 .*name in keep="):
        fit.predict(KEY, BEYOND, num_samples=2)
    with pytest.raises(ValueError, match="Fit.posterior: argument 'g'.* holds -1"):
        fit.posterior(KEY, 2, args=(MISSING, Y))
    assert fit.predict(KEY, np.array([2, 2, 1]), num_samples=2)["y"].shape == (2, 3)


def test_rows_that_do_not_count_may_hold_anything():
    @ppl.model
    def padded(g, y=None):
        with ppl.plate("groups", 3):
            effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", g.shape[0]):
            ppl.sample("y", dist.Normal(effect[g], 1.0).mask(g >= 0), obs=y)

    inference.smc(padded, KEY, MISSING, Y, num_particles=2)
    with pytest.raises(ValueError, match="argument 'g' of .* holds 3"):
        inference.smc(padded, KEY, BEYOND, Y, num_particles=2)


def test_an_index_made_of_data_or_held_by_the_program_is_named_so():
    with pytest.raises(ValueError, match="an index made of 'g'"):
        inference.smc(lambda g, y: model.fn(g - 1, y), KEY, GOOD, Y, num_particles=2)
    with pytest.raises(ValueError, match="an index of constants"):
        inference.fit(lambda y: model.fn(jnp.asarray(MISSING), y), args=(Y,), **OPTIONS)


@pytest.mark.slow_for("2")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_later_batch_is_looked_at_where_its_integers_go_further(prefetch):
    """Batch 2 has group 3 of 3. What does not count, and what stays in the range seen so far, is no matter."""
    batches = [(GOOD[:2], Y[:2]), (GOOD[2:], Y[2:]), (BEYOND[:2], Y[:2])]
    train = lambda batches: inference.fit(
        inference.elbo(model, guide), optax.sgd(0.1), batches,
        plate_sizes={"rows": 4}, prefetch=prefetch, **OPTIONS | {"num_steps": 3},
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"fit: batch 2: argument 'g' of .* holds 3 at \[1\].*0 to 2"
    ):
        train(batches)
    train([*batches[:2], batches[0]])


@pytest.mark.slow(reason="many small programs")
def test_data_that_a_program_holds_is_told_from_numbers_that_are_written():
    """Codes may come once each; what is computed of no array, and a whole turn, are neighbours on a circle."""

    def held(index):
        effect = ppl.sample("effect", dist.Normal(jnp.zeros(5), 1.0).to_event(1))
        law = dist.Normal(effect[index] + effect[-1], 1.0)
        ppl.sample("y", law.to_event(1), obs=np.zeros(len(index), np.float32))

    for codes in ([0, -1, 0], [0, -1], [-1, 0, 1]):
        words = r"an index of constants of .* holds -1 .* 0 to 4.* To count from the end, write 4\."
        with pytest.raises(ValueError, match=words):
            inference.smc(lambda codes=codes: held(np.array(codes)), KEY, num_particles=2)
    inference.smc(lambda: held(np.arange(5) - 1), KEY, num_particles=2)
    inference.smc(lambda: held(jnp.arange(3) - 1), KEY, num_particles=2)


CODES = np.array([0, -1])


class Held:
    """Programs that hold codes in an attribute, in a container, in a default."""

    def __init__(self, codes):
        self.codes = codes

    def __call__(self):
        self.rows(self.codes)

    def of_default(self, codes=(0, -1)):
        self.rows(np.array(codes))

    def rows(self, codes):
        effect = ppl.sample("effect", dist.Normal(jnp.zeros(5), 1.0).to_event(1))
        law = dist.Normal(effect[codes], 1.0)
        ppl.sample("y", law.to_event(1), obs=np.zeros(len(codes), np.float32))


def holders():
    inner = {"data": [pd.DataFrame({"g": CODES})]}
    rows, module = Held(CODES).rows, types.SimpleNamespace(codes=CODES)
    nested = lambda: (lambda: rows(module.codes))()
    return {
        "attribute": Held(CODES),
        "method": Held(CODES).__call__,
        "default": Held(CODES * 0).of_default,
        "container": lambda: rows(inner["data"][0]["g"].to_numpy()),
        "attribute of a closure": nested,
        "partial": functools.partial(rows, CODES),
        "global": lambda: rows(CODES),
        "written": lambda: rows(np.array([0, 1, -1])),
    }


@pytest.mark.parametrize("way", holders())
def test_codes_are_found_wherever_a_program_holds_them(way):
    with pytest.raises(ValueError, match="holds -1"):
        inference.smc(holders()[way], KEY, num_particles=2)
