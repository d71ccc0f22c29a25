"""The table of primitives: complete, without overlaps, and closed to what it does not know."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from jax.extend.core import Primitive

from lapilli import ppl
from lapilli.ppl.analysis._analyse import analyse
from lapilli.ppl.checks._jumps import suspects_of
from lapilli.ppl.jaxprs import _catalogue
from lapilli.ppl.jaxprs._relation import PARAMS

# Lists what JAX itself defines: other packages' primitives are suspected, since they are in no row.
INVENTORY = """
import gc, jax, jax.numpy, jax.scipy, jax.experimental.pallas
from jax.extend.core import Primitive
print(*sorted({x.name for x in gc.get_objects() if isinstance(x, Primitive)}))
"""
ROWS = "PLACES SUMS PRODUCTS KEEPS_INFINITY SMOOTH STEPS CUTS INTEGERS OPAQUE CONTROL HANDLED ZEROS SOLVED DOMAINS".split()


@pytest.mark.slow
def test_every_primitive_of_jax_is_in_the_table():
    run = subprocess.run(
        [sys.executable, "-c", INVENTORY], capture_output=True, text=True, check=True
    )
    names = set(run.stdout.split())
    assert len(names) > 200
    assert names <= _catalogue.CATALOGUE, sorted(names - _catalogue.CATALOGUE)


def test_every_primitive_is_in_one_row():
    rows = {name: set(getattr(_catalogue, name)) for name in ROWS}
    rows["CALLS"] = set(_catalogue.CALLS)
    shared = {(a, b): x & y for (a, x), (b, y) in itertools.combinations(rows.items(), 2) if x & y}
    assert not shared


def suspects(fn, strategies=None, params=0.3):
    program = analyse(fn, jnp.asarray(params), jax.random.key(0), (), strategies=strategies)
    return {program.sites[s].name if isinstance(s, int) else s for s in suspects_of(program)}


unknown = Primitive("a_primitive_of_a_user")
unknown.def_impl(lambda x: x)
unknown.def_abstract_eval(lambda x: x)


def test_what_is_in_no_row_is_suspected():
    assert suspects(lambda m: unknown.bind(ppl.sample("z", dist.Normal(m, 1.0)))) == {"z"}


def test_what_cannot_be_opened_is_suspected():
    def call(m):
        z = ppl.sample("z", dist.Normal(m, 1.0))
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), z.dtype), z)

    assert suspects(call) == {"z"}


class Own(ppl.strategies.Strategy):
    name = "own"
    kind = "pathwise"

    def refuse(self, distribution):
        return None

    def draw(self, fn, key):
        return fn.sample(key)


@pytest.mark.slow
def test_a_pathwise_strategy_of_the_user_is_searched():
    step = lambda m: jnp.where(ppl.sample("z", dist.Normal(m, 1.0)) > 0, 1.0, 0.0)
    assert suspects(step, {"z": Own()}) == {"z"}
    with pytest.raises(ValueError, match="Site 'z': the result jumps by 1"):
        ppl.expectation(step, strategies={"z": Own()}).plan(0.3)


Z = lambda m: ppl.sample("z", dist.Normal(m, 1.0))
S = lambda m: ppl.sample("s", dist.Gamma(jnp.exp(m), 1.0))
U = lambda m: ppl.sample("u", dist.Beta(jnp.exp(m), 1.0))
K = lambda m: ppl.sample("k", dist.Poisson(jnp.exp(m)), strategy="reinforce")
HELD = lambda m: ppl.sample("z", dist.Normal(0.0, 1.0), strategy="reinforce")

# No reason to search: what is said of each is a proof.
CLEAR = {
    "a decoder": lambda m: dist.Bernoulli(logits=jax.nn.relu(Z(m))).log_prob(1.0),
    "a latent scale": lambda m: dist.Normal(0.0, S(m)).log_prob(0.3),
    "the prior of a latent scale": lambda m: dist.HalfNormal(1.0).log_prob(S(m)),
    "log-weights of a latent scale": lambda m: jax.nn.logsumexp(jnp.stack([dist.HalfNormal(1.0).log_prob(S(m)), m])),
    "probabilities": lambda m: dist.Bernoulli(probs=U(m)).log_prob(1.0),
    "log of a probability": lambda m: (lambda u: jnp.log(u) + jnp.log1p(-u))(U(m)),
    "odds": lambda m: (lambda u: u / (1 - u))(U(m)),
    "softmax": lambda m: jax.nn.softmax(jnp.stack([Z(m), 0.0]))[0],
    "layer norm": lambda m: (lambda x: (x - x.mean()) / jnp.sqrt(x.var() + 1e-5))(Z(m) * jnp.arange(3.0)).sum(),
    "student": lambda m: dist.StudentT(3.0, Z(m), 1.0).log_prob(0.2),
    "negative binomial": lambda m: dist.NegativeBinomial2(jnp.exp(Z(m)), 2.0).log_prob(3),
    "data in the scale": lambda m: dist.Normal(0.0, S(m) * jnp.array([1.0, 2.0])).log_prob(0.3).sum(),
    "a threshold of discrete draws": lambda m: (K(m) < m) * 1.0,
    "a threshold that nothing moves": lambda m: m * jnp.where(ppl.sample("z", dist.Normal(0.0, 1.0)) > 0, 1.0, 0.0),
    "a threshold under a score": lambda m: jnp.where(ppl.sample("z", dist.Normal(m, 1.0), strategy="reinforce") > 0, 1.0, 0.0),
    "a comparison that is certain": lambda m: jnp.where(S(m) > -1, 1.0, 0.0),
    "log-sum-exp of what may overflow": lambda m: jax.nn.logsumexp(jnp.stack([jnp.exp(Z(m)), m])),
    "softplus of what may overflow": lambda m: jax.nn.softplus(jnp.exp(Z(m))),
    "a guard of a draw": lambda m: (lambda z: jnp.where(jnp.isfinite(z), z**2, 0.0))(Z(m)),
    "a guard of what is bounded": lambda m: jnp.nan_to_num(jnp.exp(jnp.clip(Z(m), -5.0, 5.0))),
    "a jump that is loud": lambda m: jnp.where(Z(m) > 0, 0.0, -jnp.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_no_reason_to_search(name):
    assert not suspects(CLEAR[name])


# (program, sources suspected).
SUSPECTED = {
    "parameter as threshold, pathwise": (lambda m: jnp.where(ppl.sample("z", dist.Normal(0.0, 1.0)) < m, 1.0, 0.0), {PARAMS}),
    "parameter as threshold, scored": (lambda m: (HELD(m) < m) * 1.0, {PARAMS}),
    "both move": (lambda m: jnp.where(Z(m) < m, 1.0, 0.0), {"z", PARAMS}),
    "a key's noise": (lambda m: jnp.where(jax.random.uniform(ppl.rng_key("u")) < m, 1.0, 0.0), {PARAMS}),
    "a pole, squashed": (lambda m: jnp.tanh(1 / Z(m)), {"z"}),
    "a pole that meets a zero": (lambda m: (lambda z: jnp.abs(z) * (1 / z))(Z(m)), {"z"}),
    "poles that cancel": (lambda m: (lambda z: (jnp.abs(z) + 1) / z - 1 / z)(Z(m)), {"z"}),
    "zero over zero": (lambda m: (lambda z: jnp.abs(z) / z)(Z(m)), {"z"}),
    "an infinity, swallowed": (lambda m: jnp.exp(jnp.where(Z(m) > 0, 0.0, -jnp.inf)), {"z"}),
    "a test for infinity": (lambda m: jnp.where(jnp.isfinite(jnp.log(Z(m))), 1.0, 0.0), {"z"}),
    "a test for overflow": (lambda m: jnp.where(jnp.isfinite(jnp.exp(Z(m))), 1.0, 0.0), {"z"}),
    "an overflow by a constant": (lambda m: jnp.nan_to_num(Z(m) * 1e30), {"z"}),
    "an overflow by a divisor": (lambda m: jnp.nan_to_num(Z(m) / 1e-30), {"z"}),
    "an overflow by a power": (lambda m: jnp.nan_to_num(Z(m) ** 30), {"z"}),
    "a point mass on a draw": (lambda m: jnp.where(ppl.sample("d", dist.Delta(Z(m))) > 0, 1.0, 0.0), {"z", "d"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SUSPECTED)
def test_a_reason_to_search(name):
    program, expected = SUSPECTED[name]
    found = suspects(program)
    assert found and found <= expected
