"""Whatever a transformation of programs makes, the others read: pairs of them against a table of all assignments.

Each transformation says what it makes of the program's sites: which are fixed, which count, and how. From the inner one to the
outer one that gives the density of what is left by enumeration; or the pair is refused in the library's own words.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers

from lapilli import ppl

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.2, -0.5])


def flat():
    c = ppl.sample("c", dist.Categorical(jnp.array([0.3, 0.7])))
    b = ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * c))
    ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=0.4)
    ppl.factor("f", 0.3 * b)


def rows():
    c = ppl.sample("c", dist.Bernoulli(0.7))
    with ppl.plate("rows", 3):
        b = ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * c))
        ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=Y)
    ppl.factor("f", 0.3 * c)


def steps():
    def step(c, y):
        c = ppl.sample("c", dist.Bernoulli(0.3 + 0.4 * c))
        b = ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * c))
        ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=y)
        return c, c

    last, _ = ppl.scan(step, jnp.array(0), Y)
    ppl.factor("f", 0.3 * last)


def branches():
    c = ppl.sample("c", dist.Bernoulli(0.3))
    b = ppl.cond(c == 1, *(lambda p=p: ppl.sample("b", dist.Bernoulli(p)) for p in (0.2, 0.6)))
    ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=0.4)
    ppl.factor("f", 0.3 * b)


def copies():
    c = ppl.sample("c", dist.Bernoulli(0.3))
    b = ppl.particles(3)(lambda: ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * c)))()
    ppl.sample("y", dist.Normal(c + 0.5 * b.sum(), 1.0), obs=0.4)
    ppl.factor("f", 0.3 * c)


BASES = {p.__name__: p for p in (flat, rows, steps, branches, copies)}


class Meaning:
    """What has been made of the sites: factors on their log-probs, sites that are fixed, sites that are summed."""

    def __init__(self):
        self.weights = dict.fromkeys("cbyf", 1.0)
        self.fixed, self.summed = False, set()

    def density(self, log_probs, shapes, given, ones):
        given = given | ({"b": ones} if self.fixed else {})
        names = [n for n in "cb" if n in self.summed and n not in given]
        total = lambda choices: sum(self.weights[n] * x for n, x in log_probs(choices).items())
        if not names:
            return total(given)
        sizes = [int(np.prod(shapes[n])) for n in names]
        table = np.array([*itertools.product((0, 1), repeat=sum(sizes))])
        parts = np.split(table, np.cumsum(sizes)[:-1], axis=1)
        every = {n: jnp.asarray(x).reshape(-1, *shapes[n]) for n, x in zip(names, parts, strict=True)}  # fmt: skip
        return logsumexp(jax.vmap(lambda one: total(given | one))(every))


def fixes(m):
    m.fixed = True


def sets(m):
    m.fixed, m.weights["b"] = True, 0.0


def hides(m):
    m.weights["f"] = 0.0


def doubles(m):
    m.weights = {n: 2 * x for n, x in m.weights.items()}


def doubles_y(m):
    m.weights["y"] *= 2


def silences(m):
    m.weights = dict.fromkeys("cbyf", 0.0)


SHAPES = {"flat": (), "rows": (3,), "steps": (3,), "branches": (), "copies": (3,)}
ONES = {name: jnp.ones(shape, int) for name, shape in SHAPES.items()}
# name -> (the transformation of a program, given the value of b; what it makes of the sites)
TRANSFORMATIONS = {
    "condition": (lambda p, b: ppl.condition(p, {"b": b}), fixes),
    "intervene": (lambda p, b: ppl.intervene(p, {"b": b}), sets),
    "block": (lambda p, b: ppl.block(p, ["f"]), hides),
    "mask": (lambda p, b: ppl.mask(p, False), silences),
    "eliminate_b": (lambda p, b: ppl.eliminate(p, "b"), lambda m: m.summed.add("b")),
    "eliminate_c": (lambda p, b: ppl.eliminate(p, "c"), lambda m: m.summed.add("c")),
    "reweight": (lambda p, b: ppl.reweight(p, {"y": 2.0}), doubles_y),
    "bind": (lambda p, b: ppl.as_program(p).bind({}), lambda m: None),
    "rescale_plates": (lambda p, b: ppl.rescale_plates(p, {}), lambda m: None),
    "called_inside": (lambda p, b: lambda: p() and None, lambda m: None),
    "marginal": (lambda p, b: ppl.marginal(p, keep=["c"]), None),
    "numpyro_mask": (lambda p, b: handlers.mask(p, mask=True), lambda m: None),
    "numpyro_scale": (lambda p, b: handlers.scale(p, scale=2.0), doubles),
    "numpyro_condition": (lambda p, b: handlers.condition(p, data={"b": b}), fixes),
    "numpyro_block": (lambda p, b: handlers.block(p, hide=["f"]), hides),
    "numpyro_uncondition": (lambda p, b: handlers.uncondition(p), None),
}
SUMS = ("eliminate_b", "eliminate_c")
# A sum has one log-prob: a mask or a scale around it acts on what is summed already (`ppl.mask`).
AROUND_A_SUM = {"mask": lambda x: 0 * x, "numpyro_scale": lambda x: 2 * x}
REMEDIES = (
    "Name|Use|Transform|Give|Leave|Mask|Pass|Reweight|Sum|Condition|Make|Estimate|Put|Keep|Sum"
)
OWN_WORDS = rf"(?si)(ppl\.|eliminate|marginal|[Ss]ite|Program).*\b({REMEDIES})\b"


def compare(base, names):
    """A chain of transformations: the density of what is left against the table; or None where it is refused in our words."""
    whole, ones = ppl.model(BASES[base]), ONES[base]
    shapes = {n: x.shape for n, x in jax.eval_shape(lambda: whole.simulate(KEY).choices).items()}
    log_probs = lambda c: {n: x.sum() for n, x in whole.trace(c).log_probs.items()}
    meaning, after = Meaning(), lambda x: x
    for i, name in enumerate(names):
        if name in AROUND_A_SUM and set(names[:i]) & set(SUMS):
            after = lambda x, f=AROUND_A_SUM[name], g=after: f(g(x))
        elif TRANSFORMATIONS[name][1] is not None:
            TRANSFORMATIONS[name][1](meaning)

    @jax.jit
    def both():
        program = whole
        for name in names:
            program = TRANSFORMATIONS[name][0](program, ones)
        program = ppl.as_program(program)
        left = program.simulate(KEY).choices
        given = {n: jnp.zeros(shapes[n], int).at[..., :1].set(1) if shapes[n] else 1 for n in left if n in shapes}  # fmt: skip
        rest = {n: x for n, x in left.items() if n not in shapes}
        expected = after(meaning.density(log_probs, shapes, given, ones))
        return program.estimate_log_density(KEY, {**given, **rest}), expected

    try:
        found, expected = both()
    except (TypeError, ValueError) as err:
        assert re.search(OWN_WORDS, str(err)), (names, err)
        return None
    if not {"marginal", "numpyro_uncondition"} & set(names):  # estimates, and other data
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5, err_msg=str(names))
    return float(found)


FAST = [
    ("eliminate_b", "numpyro_block"), ("eliminate_c", "numpyro_uncondition"), ("reweight", "condition"),
    ("condition", "eliminate_c"), ("called_inside", "eliminate_b"), ("reweight", "reweight"),
]  # fmt: skip


@pytest.mark.parametrize("pair", FAST, ids="-".join)
def test_some_pairs_in_rows(pair):
    found = compare("rows", pair)
    assert (found is None) == (pair in FAST[:2])


@pytest.mark.slow  # 256 programs each
@pytest.mark.parametrize("base", BASES)
def test_every_pair_is_right_or_refused(base):
    pairs = [*itertools.product(TRANSFORMATIONS, repeat=2)]
    found = {pair: compare(base, pair) for pair in pairs}
    assert sum(x is not None for x in found.values()) > len(pairs) / 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("base", BASES)
def test_random_triples_are_right_or_refused(base, number):
    draws = np.random.default_rng(number)
    for _ in range(20):
        compare(base, draws.choice([*TRANSFORMATIONS], size=3).tolist())
