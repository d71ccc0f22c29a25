"""Whatever a transformation of programs makes, the others read: pairs of them against a table of all assignments.

Each transformation says what it makes of the program's sites: which are fixed, which count, and how. From the inner one to the
outer one that gives the density of what is left by enumeration, of normal sites on a grid; or the pair is refused in the
library's own words.
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
from numpyro.infer.reparam import LocScaleReparam

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


def normal():
    c = ppl.sample("c", dist.Normal(0.3, 1.0))
    b = ppl.sample("b", dist.Normal(0.2 + 0.5 * c, 0.7))
    ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=0.4)
    ppl.factor("f", 0.3)


def normal_rows():
    c = ppl.sample("c", dist.Normal(0.3, 1.0))
    with ppl.plate("rows", 2):
        b = ppl.sample("b", dist.Normal(0.2 + 0.5 * c, 0.7))
        ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=Y[:2])
    ppl.factor("f", 0.3)


def kinds():
    """Normal given a discrete site."""
    c = ppl.sample("c", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Normal(0.2 + 0.5 * c, 0.7))
    ppl.sample("y", dist.Normal(c + 0.5 * b, 1.0), obs=0.4)
    ppl.factor("f", 0.3 * c)


BASES = {p.__name__: p for p in (flat, rows, steps, branches, copies, normal, normal_rows, kinds)}
GRID = np.arange(
    -8.0, 8.01, 0.25
)  # sums over it are integrals to rounding: no law here is narrower than 0.5
LAW_OF_B = (0.2, 0.5, 0.7)  # of the normal ones: mean at 0, slope in c, standard deviation


class Meaning:
    """What has been made of the sites.

    Attributes:
        weights: factors on their log-probs.
        scaled: the factor of NumPyro's handlers among them.
        fixed: b has the given value.
        followed: what follows b sees the given value, b itself does not.
        summed: sites that are summed.
        proposed: there is a proposal only: no data, and each latent site by itself.
        standard: b is a shift and a multiple of a standard normal site.
    """

    def __init__(self):
        self.weights = dict.fromkeys("cbyf", 1.0)
        self.scaled = 1.0
        self.fixed = self.followed = self.proposed = self.standard = False
        self.summed = set()

    def total(self, log_probs, choices, ones):
        parts = log_probs(choices)
        if self.followed:
            parts |= {n: log_probs(choices | {"b": ones})[n] for n in "yf"}
        if self.proposed:
            parts |= {n: proposal_of(x).log_prob(x).sum() for n, x in choices.items()}
        return sum(self.weights[n] * x for n, x in parts.items())

    def density(self, log_probs, shapes, given, ones):
        given = given | ({"b": ones} if self.fixed else {})
        noise = given.pop(STANDARD, None)
        names = [n for n in "cb" if n in self.summed and n not in given]

        def total(choices):
            if noise is None:
                return self.total(log_probs, choices, ones)
            if self.proposed:
                return self.total(log_probs, choices | {"b": noise}, ones)
            mean, slope, scale = LAW_OF_B
            b = mean + slope * choices["c"] + scale * noise
            jacobian = self.weights["b"] * np.size(ones) * np.log(scale)
            return self.total(log_probs, choices | {"b": b}, ones) + jacobian

        if not names:
            return total(given)
        sizes = [int(np.prod(shapes[n].shape)) for n in names]
        is_normal = [n for n, size in zip(names, sizes, strict=True) for _ in range(size)]
        is_normal = [jnp.issubdtype(shapes[n].dtype, jnp.floating) for n in is_normal]
        table = np.array([*itertools.product(*(GRID if flag else (0, 1) for flag in is_normal))])
        parts = np.split(table, np.cumsum(sizes)[:-1], axis=1)
        every = {
            n: jnp.asarray(x, shapes[n].dtype).reshape(-1, *shapes[n].shape)
            for n, x in zip(names, parts, strict=True)
        }
        found = jax.vmap(lambda one: total(given | one))(every)
        return logsumexp(found) + sum(is_normal) * np.log(GRID[1] - GRID[0])


def proposal_of(x):
    return dist.Normal(0.0, 1.0) if jnp.issubdtype(x.dtype, jnp.floating) else dist.Bernoulli(0.5)


def fixes(m):
    m.fixed = True


def sets(m):
    m.fixed, m.weights["b"] = True, 0.0


def hides(m):
    m.weights["f"] = 0.0


def doubles(m):
    m.weights, m.scaled = {n: 2 * x for n, x in m.weights.items()}, 2 * m.scaled


def doubles_y(m):
    m.weights["y"] *= 2


def silences(m):
    m.weights = dict.fromkeys("cbyf", 0.0)


def does(m):
    """NumPyro's `do` sends the site through the handlers inside of it once more, as `numpyro.infer.util.log_density` does."""
    if not m.standard:  # a site that is computed is left alone
        m.followed, m.weights["b"] = True, m.weights["b"] * m.scaled


def proposes(m):
    m.weights, m.proposed = {"c": 1.0, "b": float(not m.fixed), "y": 0.0, "f": 0.0}, True


def standardizes(m):
    m.standard = True


def normalized(p, b):
    """By one particle, whose law is the proposal's."""
    latent = jax.eval_shape(lambda: ppl.as_program(p).simulate(KEY).choices)

    def proposal():
        for name, x in latent.items():
            law = proposal_of(x)
            ppl.sample(name, law.expand(x.shape).to_event(x.ndim) if x.ndim else law)

    return ppl.normalize(p, proposal=proposal, num_particles=1)


SHAPES = {
    "flat": (), "rows": (3,), "steps": (3,), "branches": (), "copies": (3,),
    "normal": (), "normal_rows": (2,), "kinds": (),
}  # fmt: skip
ARE_NORMAL = ("normal", "normal_rows", "kinds")
ONES = {n: jnp.ones(shape, float if n in ARE_NORMAL else int) for n, shape in SHAPES.items()}
STANDARD = "b_decentered"
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
    "numpyro_do": (lambda p, b: handlers.do(p, data={"b": b}), does),
    "numpyro_reparam": (
        lambda p, b: handlers.reparam(p, {"b": LocScaleReparam(0)}),
        standardizes,
    ),
    "normalize": (normalized, proposes),
}
SUMS = ("eliminate_b", "eliminate_c")
# A sum has one log-prob: a mask or a scale around it acts on what is summed already (`ppl.mask`).
AROUND_A_SUM = {"mask": lambda x: 0 * x, "numpyro_scale": lambda x: 2 * x}
REMEDIES = "Name|Use|Transform|Give|Leave|Mask|Pass|Reweight|Sum|Condition|Make|Estimate|Put|Keep|Sum|leave|set"
OWN_WORDS = rf"(?si)(ppl\.|eliminate|marginal|normalize|[Ss]ite|Program).*\b({REMEDIES})\b"


def compare(base, names):
    """A chain of transformations: the density of what is left against the table; or None where it is refused in our words."""
    whole, ones = ppl.model(BASES[base]), ONES[base]
    shapes = jax.eval_shape(lambda: whole.simulate(KEY).choices)
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
        first = lambda x: jnp.zeros_like(x).at[..., :1].set(1) if x.ndim else jnp.ones_like(x)
        given = {n: first(x) for n, x in left.items() if n in (*shapes, STANDARD)}
        rest = {n: x for n, x in left.items() if n not in given}
        expected = after(meaning.density(log_probs, shapes, given, ones))
        return program.estimate_log_density(KEY, {**given, **rest}), expected

    try:
        found, expected = both()
    except (TypeError, ValueError, NotImplementedError) as err:
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


@pytest.mark.parametrize(
    "pair", [("numpyro_reparam", "eliminate_c"), ("numpyro_do", "eliminate_b"), ("condition", "normalize")], ids="-".join
)  # fmt: skip
def test_some_pairs_of_normal_sites(pair):
    assert compare("normal", pair) is not None


def test_what_numpyro_cannot_do_is_told():
    ones, run = ONES["normal"], lambda p: ppl.as_program(p).simulate(KEY)
    fixed, done = (TRANSFORMATIONS[n][0](normal, ones) for n in ("condition", "numpyro_do"))
    with pytest.raises(
        ValueError, match="Site 'b'.*reparam cannot rewrite.*leave out of its config"
    ):
        run(TRANSFORMATIONS["numpyro_reparam"][0](fixed, ones))
    with pytest.warns(RuntimeWarning, match="multiple times"):
        with pytest.raises(ValueError, match="in a circle.*numpyro.handlers.do.*set it once"):
            run(TRANSFORMATIONS["numpyro_do"][0](done, ones))


@pytest.mark.slow  # 361 programs each
@pytest.mark.filterwarnings("ignore:Attempting to intervene:RuntimeWarning")
@pytest.mark.parametrize("base", BASES)
def test_every_pair_is_right_or_refused(base):
    pairs = [*itertools.product(TRANSFORMATIONS, repeat=2)]
    found = {pair: compare(base, pair) for pair in pairs}
    assert sum(x is not None for x in found.values()) > len(pairs) / 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attempting to intervene:RuntimeWarning")
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("base", BASES)
def test_random_triples_are_right_or_refused(base, number):
    draws = np.random.default_rng(number)
    for _ in range(20):
        compare(base, draws.choice([*TRANSFORMATIONS], size=3).tolist())
