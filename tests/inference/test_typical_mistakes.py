"""Mistakes that people make: each is told with the site or the argument, what happened, and what to do.

A row is a program with one mistake, the words that say where it is, and those that say what to do about it.
"""

import argparse
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
X = np.array([0.5, -0.2, 1.3], np.float32)
GAP = np.array([0.5, np.nan, 1.3], np.float32)


def line(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def guide(x, y=None):
    scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
    ppl.sample("slope", dist.Normal(ppl.param("loc", 0.0), scale))


def value(model=line, guide=guide, args=(X, X), **options):
    bound = inference.elbo(model, guide, **options)
    return bound.value(bound.init(KEY, *args), KEY, *args)


def fit(model=line, guide=guide, args=(X, X), optimizer=None, **options):
    settings = {"num_steps": 1, "key": KEY, "progress": False} | options
    bound = inference.elbo(model, guide)
    return inference.fit(bound, optimizer or optax.adam(0.1), args, **settings)


def of_slope(likelihood):
    """A model whose observation is made from its slope."""

    def model(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        law = likelihood(slope, x)
        ppl.sample("y", law, obs=y)

    return model


def branching(slope, x):
    return dist.Normal(1.0 if slope > 0 else -1.0, 1.0).expand([3]).to_event(1)


def guide_with_likelihood(x, y=None):
    guide(x, y)
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)


def guide_with_more(x, y=None):
    guide(x, y)
    ppl.sample("other", dist.Normal(0.0, 1.0))


def renamed(x, y=None):
    ppl.sample("Slope", dist.Normal(ppl.param("loc", 0.0), 1.0))


def larger(x, y=None):
    ppl.sample("slope", dist.Normal(ppl.param("loc", jnp.zeros(2)), 1.0).to_event(1))


def positive(x, y=None):
    ppl.sample("slope", dist.HalfNormal(1.0))


def twice(x, y=None):
    ppl.sample("slope", dist.Normal(0.0, 1.0))
    ppl.sample("slope", dist.Normal(0.0, 1.0))


def other_size(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 4):
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def coin(x, y=None):
    heads = ppl.sample("heads", dist.Bernoulli(0.3))
    ppl.sample("y", dist.Normal(heads * x, 1.0).to_event(1), obs=y)


def coin_guide(x, y=None):
    ppl.sample("heads", dist.Bernoulli(logits=ppl.param("logit", 0.0)))


def raw_scan(x, y=None):
    draw = lambda carry, x: (carry, numpyro.sample("slope", dist.Normal(x, 1.0)))
    jax.lax.scan(draw, 0.0, jnp.asarray(x))


def raw_vmap(x, y=None):
    jax.vmap(lambda x: ppl.sample("slope", dist.Normal(x, 1.0)))(jnp.asarray(x))


def sized(x, y=None):
    with ppl.plate("groups", int(x.max()) + 1):
        ppl.sample("slope", dist.Normal(0.0, 1.0))


def alone(model=line, args=(X, X), **options):
    return inference.fit(model, args=args, num_steps=1, progress=False, **options)


def tempered(model, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's, of values outside of the support
        return inference.tempered_smc(model, KEY, *args, num_particles=4, max_steps=3)


def with_class(x, y=None):
    ppl.module("net", eqx.nn.Linear)


def outside(x, y=None):
    ppl.sample("slope", dist.Normal(0.0, ppl.param("scale", -1.0)))


def needs_data(x, y):
    line(x, y)


def start():
    return inference.elbo(line, guide).init(KEY, X, X)


def counts(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Gamma(2.0, jnp.exp(slope)), obs=y)


def resumed_on_other_data(path):
    fit(checkpoint=path / "run")
    fit(args=(X, X + 1.0), checkpoint=path / "run", num_steps=2)


def loaded_with_another_model(path):
    fit().save(path / "fit.npz")
    other = lambda x, y=None: ppl.sample("slope", dist.Normal(0.0, 2.0))
    inference.Fit.load(path / "fit.npz", inference.elbo(other, guide))


def hidden(x, y=None):
    with numpyro.handlers.block(hide=["slope"]):
        ppl.sample("slope", dist.Normal(0.0, 1.0))


def of_rows(x, y=None):
    guide(x, y)
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("u", dist.Normal(ppl.param("at", jnp.zeros(3)), 1.0))


def effects(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(slope * x + u, 1.0), obs=y)


# Mistake: (what is done, words for where, words for what to do).
MISTAKES = {
    # The guide.
    "the likelihood left in the guide": (
        lambda _: value(guide=guide_with_likelihood),
        "Site 'y'",
        "Leave the likelihood to the model",
    ),
    "model and guide swapped": (
        lambda _: value(guide, line),
        "Site 'y'",
        "hand the data to the guide as an argument",
    ),
    "a guide outside of the prior's support": (
        lambda _: value(positive),
        "Site 'slope'",
        "e.g. LogNormal",
    ),
    "a guide that misses a site": (
        lambda _: value(guide=lambda x, y=None: None),
        "['slope']",
        "propose them in the guide",
    ),
    "a guide with a site too many": (
        lambda _: value(guide=guide_with_more),
        "['other']",
        "remove them, or mark them as auxiliary",
    ),
    "a site under another name": (
        lambda _: value(guide=renamed),
        "['Slope']",
        "propose them in the guide",
    ),
    "a guide's site of another shape": (
        lambda _: value(guide=larger),
        "Site 'slope'",
        "give it shape ()",
    ),
    "a start outside of the law's domain": (
        lambda _: value(guide=outside),
        "Site 'slope'",
        "Correct the arguments",
    ),
    # Shapes.
    "a column in place of a vector": (
        lambda _: value(args=(X, X[:, None])),
        "Site 'y'",
        "give it shape (3,)",
    ),
    "a plate of another size": (
        lambda _: value(other_size),
        "Site 'y'",
        "Give one row per plate element",
    ),
    "one name twice": (lambda _: value(twice), "Site 'slope'", "Rename one of them"),
    # Data.
    "an obs forgotten": (lambda _: value(args=(X,)), "['y']", "if they are data, pass them"),
    "NaN in the data": (
        lambda _: fit(args=(X, X * np.array([1.0, np.nan, 1.0]))),
        "site 'model.y'",
        "obs_mask",
    ),
    "data outside of the law's support": (
        lambda _: fit(counts),
        "site 'model.y'",
        "give the guide a law within",
    ),
    "text as data": (
        lambda _: value(args=(X, np.array(["a", "b", "c"]))),
        "Site 'y'",
        "return_inverse=True",
    ),
    "dates as data": (
        lambda _: value(args=(X, np.array(["2020-01-01"] * 3, "M8[D]"))),
        "Argument 'y'",
        "Subtract an origin",
    ),
    "a list as data": (lambda _: value(args=(X, [0.1, 0.2, 0.3])), "Site 'y'", "jnp.asarray"),
    "an argument forgotten": (lambda _: value(needs_data, args=(X,)), "'y'", "same arguments"),
    "an argument under another name": (
        lambda _: inference.elbo(line, guide).init(KEY, X, z=X),
        "'z'",
        "same arguments",
    ),
    "options in a namespace": (
        lambda _: value(
            lambda x, y, o: line(x, y), lambda x, y, o: guide(x), (X, X, argparse.Namespace(a=1))
        ),
        "args[2]",
        "functools.partial",
    ),
    # Python and JAX.
    "a Python if on a draw": (
        lambda _: value(of_slope(branching)),
        "after site 'slope'",
        "ppl.cond",
    ),
    "a NumPy function of a draw": (
        lambda _: value(of_slope(lambda slope, x: dist.Normal(np.exp(slope) * x, 1.0).to_event(1))),
        "after site 'slope'",
        "jax.numpy",
    ),
    "a size read from an argument": (
        lambda _: value(sized, sized),
        "int(x.max())",
        "functools.partial(program, x=x)",
    ),
    "jax.lax.scan with a site": (lambda _: value(raw_scan), "Site 'slope'", "Use ppl.scan"),
    "jax.vmap with a site": (lambda _: value(raw_vmap), "Site 'slope'", "ppl.plate"),
    "a negative scale": (
        lambda _: value(of_slope(lambda slope, x: dist.Normal(slope * x, -1.0).to_event(1))),
        "Normal distribution got invalid scale",
        "Correct the arguments",
    ),
    "a statement outside of a run": (
        lambda _: ppl.sample("slope", dist.Normal(0.0, 1.0)),
        "Site 'slope'",
        "simulate(key, *args)",
    ),
    "a result in place of a program": (
        lambda _: inference.elbo(line(X), guide),
        "Site 'slope'",
        "elbo(model, guide)",
    ),
    "a site hidden by a handler": (
        lambda _: value(hidden),
        "Site 'slope'",
        "ppl.condition, ppl.intervene",
    ),
    "a module that was not made": (lambda _: value(with_class), "Module 'net'", "key=key"),
    # Strategies.
    "a discrete site without a strategy": (
        lambda _: value(coin, coin_guide),
        "Site 'heads'",
        "choose one of",
    ),
    "a misspelt strategy": (
        lambda _: value(strategies={"slope": "reparametrise"}),
        "Site 'slope'",
        "Did you mean 'reparam'?",
    ),
    "a strategy for no site": (
        lambda _: value(strategies={"slop": "reparam"}),
        "['slop']",
        "The sites are ['slope']",
    ),
    "a strategy for another kind of law": (
        lambda _: value(strategies={"slope": "enum"}),
        "Site 'slope'",
        "choose one of",
    ),
    # fit and its result.
    "an optimiser of NumPyro": (
        lambda _: fit(optimizer=numpyro.optim.Adam(0.1)),
        "'optimizer'",
        "optax.adam(1e-3)",
    ),
    "an optimiser that was not called": (
        lambda _: fit(optimizer=optax.adam),
        "'optimizer'",
        "optax.adam(1e-3)",
    ),
    "no steps": (lambda _: fit(num_steps=0), "num_steps=0", "params="),
    "a number of steps that is none": (lambda _: fit(num_steps=1e3), "'num_steps'", "an integer"),
    "a number as a key": (lambda _: fit(key=0), "'key'", "jax.random.key(seed)"),
    "arguments without a tuple": (lambda _: fit(args=X), "'args'", "a tuple such as (x,)"),
    "a batch larger than the plate": (
        lambda _: fit(subsample={"rows": 20}),
        "plate 'rows'",
        "choose 1 to 3",
    ),
    "a plate that there is not": (
        lambda _: fit(subsample={"row": 2}),
        "no plate 'row'",
        "the plates and their sizes are",
    ),
    "a parameter left out": (
        lambda _: inference.elbo(line, guide).value({"loc": 0.0}, KEY, X, X),
        "Parameter 'scale'",
        "objective.init(key, *args)",
    ),
    "a parameter under another name": (
        lambda _: fit().with_params({"log": 0.0}),
        "['log']",
        "which has ['loc', 'scale']",
    ),
    "predictions for other rows": (
        lambda _: fit(effects, of_rows).predict(KEY, X + 1.0, num_samples=2),
        "site 'u'",
        "keep=['slope']",
    ),
    "a number of draws that is none": (
        lambda _: fit().predict(KEY, num_samples=2.0),
        "num_samples",
        "must be an integer, got 2.0",
    ),
    "a checkpoint of other data": (
        resumed_on_other_data,
        "'values of args (hashes)'",
        "choose another path",
    ),
    "a file of another model": (
        loaded_with_another_model,
        "model, 'slope'",
        "Load it with the programs",
    ),
    "a batch size without its plate": (
        lambda _: fit(subsample=2),
        "'subsample'",
        "subsample={'rows': 256}",
    ),
    # A model alone.
    "a missing cell": (lambda _: alone(args=(X, GAP)), "site 'y'", "obs_mask=seen"),
    "a missing covariate": (lambda _: alone(args=(GAP, X)), "site 'y'", "Argument 1 holds NaN"),
    "a missing cell by name": (
        lambda _: alone(args={"x": X, "y": GAP}),
        "Argument y",
        "obs_mask=seen",
    ),
    "data outside of their law's support": (
        lambda _: alone(of_slope(lambda slope, x: dist.LogNormal(slope * x, 1.0).to_event(1))),
        "site 'y'",
        "needs another law",
    ),
    "a scale without a positive law": (
        lambda _: alone(of_slope(lambda slope, x: dist.Normal(x, slope).to_event(1))),
        "scale of Normal (positive)",
        "jax.nn.softplus",
    ),
    # Samplers and programs.
    "a missing cell under tempering": (
        lambda _: tempered(line, X, GAP),
        "Argument 2 holds NaN",
        "obs_mask=seen",
    ),
    "particles for a program without data": (
        lambda _: inference.smc(line, KEY, X, num_particles=4),
        "<Program line>",
        "Pass the data",
    ),
    "an option that there is not": (
        lambda _: inference.smc(line, KEY, X, X, num_particles=4, polcy=None),
        "'polcy'",
        "policy",
    ),
    "steps seen without a scan": (
        lambda _: inference.predict(line, {"slope": np.zeros(2)}, KEY, X, num_seen=2),
        "num_seen=2",
        "Leave it out",
    ),
    "a condition on no site": (
        lambda _: ppl.condition(line, {"slop": 1.0}).simulate(KEY, X),
        "['slop']",
        "the program's sites are",
    ),
}
# A warning is an error here: `fit` warns of a model that fails at few draws only.
ERRORS = (ValueError, TypeError, RuntimeError, UserWarning, inference.fitting.NonFiniteError)


@pytest.mark.slow_for("a missing cell under tempering", "data outside of the law's support")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_its_remedy(mistake, tmp_path):
    make, where, remedy = MISTAKES[mistake]
    with pytest.raises(ERRORS) as caught:
        make(tmp_path)
    told = re.sub(r"\s+", " ", str(caught.value))
    assert where in told and remedy in told, told


def test_without_mistakes_all_of_it_runs():
    """What the rows start from is right."""
    assert np.isfinite(value()) and np.isfinite(fit().history["value"]).all()
    assert np.isfinite(fit(effects, of_rows).history["value"]).all()
    assert set(start()) == {"loc", "scale"}


def test_there_are_forty():
    assert len(MISTAKES) >= 40
