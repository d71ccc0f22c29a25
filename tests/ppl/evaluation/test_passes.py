"""Passes change no number: with each of them left out, and without any, programs give the estimates that they give with all."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _random_programs import make

from lapilli import inference, ppl
from lapilli.ppl.evaluation import NAMES, _evaluate, is_on, passes

KEY = jax.random.key(3)
QUICK = (7, 25, 36)  # as in test_unbiased_random.py
LEFT_OUT = [*(pytest.param(n, marks=pytest.mark.slow) for n in NAMES), None]  # slow: one by one


def chain(strategy):
    """A hidden Markov chain whose guide is one too."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=6))

    def model(x):
        def step(z, x):
            z = ppl.sample("z", dist.Categorical(logits=jnp.eye(3)[z]))
            ppl.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
            return z, None

        ppl.scan(step, 0, x)

    def guide(x):
        logits = ppl.param("logits", jnp.array([[0.3, -0.1, 0.0]] * 3))

        def step(z, x):
            return ppl.sample("z", dist.Categorical(logits=logits[z] + x)), None

        ppl.scan(step, 0, x)

    return inference.elbo(model, guide, strategies=strategy), x


def codes(strategy):
    """A class in every row, and a code that is drawn given the class."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=4))

    def model(x):
        with ppl.plate("rows", len(x)):
            k = ppl.sample("k", dist.Categorical(jnp.array([0.2, 0.3, 0.1, 0.4])))
            z = ppl.sample("z", dist.Normal(1.0 * k, 1.0))
            ppl.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        shift = ppl.param("shift", jnp.arange(4.0))
        with ppl.plate("rows", len(x)):
            k = ppl.sample("k", dist.Categorical(logits=ppl.param("logits", 0.1 * jnp.arange(4.0))))
            ppl.sample("z", dist.Normal(x + shift[k], 0.5))

    return inference.elbo(model, guide, strategies={"k": strategy}), x


def drifting(_):
    """A walk that is reparametrised in a loop."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=5))

    def model(x):
        def step(z, x):
            z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        ppl.scan(step, 0.0, x)

    def guide(x):
        slope = ppl.param("slope", 0.2)

        def step(z, x):
            return ppl.sample("z", dist.Normal(z + slope * x, 0.3)), None

        ppl.scan(step, 0.0, x)

    return inference.elbo(model, guide), x


PROGRAMS = {
    **{f"chain, {s}": (chain, s) for s in ("enum", "mvd", "reinforce")},
    **{f"codes, {s}": (codes, s) for s in ("enum", "mvd")},
    "drifting": (drifting, None),
}


def kept(left_out):
    return () if left_out is None else tuple(n for n in NAMES if n != left_out)


def agree(estimate, left_out):
    with passes(*NAMES):
        expected = estimate()
    with passes(*kept(left_out)):
        found = estimate()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("name", PROGRAMS)
def test_objectives_are_those_of_the_reference(name, left_out):
    def estimate():
        objective, x = PROGRAMS[name][0](PROGRAMS[name][1])
        params = objective.init(KEY, x)
        return jax.jit(objective.value_and_grad)(params, KEY, x)

    agree(estimate, left_out)


@pytest.mark.fast("7-None")
@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize(
    "seed",
    [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in range(30) if n not in QUICK)],
)  # slow: more of them
def test_random_programs_are_those_of_the_reference(seed, left_out):
    program = make(seed)

    def estimate():
        expectation = ppl.expectation(
            lambda params: program.fn(params, None), strategies=program.strategies
        )
        return jax.jit(expectation.value_and_grad)(program.params, KEY)

    agree(estimate, left_out)


@pytest.mark.slow
def test_sums_are_those_of_the_reference():
    def estimate():
        _, x = chain("enum")

        def model(logits, x):
            def step(z, x):
                z = ppl.sample("z", dist.Categorical(logits=logits[z]))
                ppl.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
                return z, None

            ppl.scan(step, 0, x)

        summed = ppl.eliminate(ppl.model(model), "z")
        return jax.value_and_grad(lambda t: summed.log_density({}, t, x))(jnp.eye(3))

    agree(estimate, None)


def test_the_reference_knows_no_pass():
    assert not re.findall(r"from \.(\w+) import", Path(_evaluate.__file__).read_text())


def test_where_passes_apply(monkeypatch):
    assert all(map(is_on, NAMES))  # on the processor all were measured
    with passes():
        assert not any(map(is_on, NAMES))
        with passes("windows"):
            assert [n for n in NAMES if is_on(n)] == ["windows"]
    monkeypatch.setenv("LAPILLI_PASSES", "noise, numbers")
    assert [n for n in NAMES if is_on(n)] == ["noise", "numbers"]
    monkeypatch.setenv("LAPILLI_PASSES", "")
    assert not any(map(is_on, NAMES))
    monkeypatch.delenv("LAPILLI_PASSES")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not any(map(is_on, NAMES))  # nobody has measured them there


def test_unknown_passes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"\['fusion'\] are no passes .* Choose from invariants"):
        with passes("fusion"):  # type: ignore[arg-type]
            pass
    monkeypatch.setenv("LAPILLI_PASSES", "fusion")
    with pytest.raises(ValueError, match="fusion"):
        is_on("noise")
