"""The contexts of the unbiasedness matrix: tiny programs that run with any kind of site, under any objective.

A context is a body `body(lang, noise)`: it asks `lang` for parameters (`theta`), latent sites (`site`) and costs
(`observe`), and returns a cost. Three languages run it:

- raw: parameters are a dict, a cost is a number, the result is what the body returns (`ppl.expectation`);
- guide: parameters are `ppl.param`s, costs are nothing;
- model: other parameters, each cost is an observation Normal(value, 1) in its plate or scan (`elbo`, `iwelbo`).

Kinds of sites: "bernoulli", "categorical" (3 values), "normal" (location from upstream, scale a parameter), "gamma" (rate a
parameter, shifted by what is upstream).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _oracles import (
    bernoulli,
    bits,
    categorical,
    digits,
    gamma,
    gamma_nodes,
    nodes,
    normal,
    of,
    steps,
)

from lapilli import ppl

KINDS = {
    "bernoulli": lambda num_nodes, *shape: bits(*shape),
    "categorical": lambda num_nodes, *shape: digits(3, *shape),
    "normal": nodes,
    "gamma": lambda num_nodes, *shape: gamma_nodes(3.0, num_nodes, *shape),
}
ROWS = np.array([0.4, -0.3, 0.8], np.float32)
TIMES = np.array([0.9, -0.2, 0.4, 0.1, 0.6], np.float32)


def kind_of(kind, name):
    """The kind of a site: `kind` is one for all, or "kind of x/kind of all others"."""
    first, _, rest = kind.partition("/")
    return first if name == "x" or not rest else rest


def branch_kind(kind):
    """The kind of the site that chooses a branch: discrete."""
    return kind_of(kind, "x") if kind_of(kind, "x") in ("bernoulli", "categorical") else "bernoulli"


class Language:
    """Raw: costs are numbers."""

    def __init__(self, kind, params=None):
        self.kind, self.params = kind, params

    def theta(self, name):
        return self.params[name]

    def site(self, name, eta, noise, shape=(), kind=None, event=0):
        """Draw a site of this language's kind whose distribution depends on `eta`, shape `shape`."""
        kind = kind or kind_of(self.kind, name)
        eta = jnp.broadcast_to(eta, shape)
        if kind == "bernoulli":
            fn = bernoulli(jax.nn.sigmoid(eta), noise)
        elif kind == "categorical":
            logits = eta[..., None] * jnp.array([0.0, 0.8, -0.5]) + jnp.array([0.1, -0.2, 0.3])
            fn = categorical(logits, noise)
        elif kind == "normal":
            fn = normal(eta, jnp.exp(self.theta("s")) * jnp.ones(shape), noise)
        else:
            fn = gamma(3.0 * jnp.ones(shape), jnp.exp(1 + self.theta("s")) * jnp.ones(shape), noise)
        z = ppl.sample(name, fn.to_event(event) if event else fn)
        return {"bernoulli": z, "categorical": 0.7 * z, "normal": z, "gamma": z + 0.5 * eta}[
            kind
        ] * 1.0

    def observe(self, name, value, target):
        return (value - target) ** 2


class Guide(Language):
    prefix, shift = "q_", 0.0

    def theta(self, name):
        return ppl.param(self.prefix + name, PARAMS[name] + self.shift)

    def observe(self, name, value, target):
        return jnp.zeros(jnp.shape(value))


class Model(Guide):
    prefix, shift = "p_", 0.15

    def observe(self, name, value, target):
        value, target = jnp.broadcast_arrays(value, target)
        ppl.sample(name, dist.Normal(value, 1.0), obs=target)
        return jnp.zeros(jnp.shape(value))


PARAMS = {
    "a": jnp.array(0.3),
    "b": jnp.array(-0.5),
    "w": jnp.array(0.7),
    "s": jnp.array(-0.6),
    "r": jnp.array([0.2, -0.6, 0.5]),
}


def straight(lang, noise):
    a = lang.site("x", lang.theta("a"), of(noise, "x"))
    b = lang.site("y", lang.theta("b") + 0.6 * a, of(noise, "y"))
    return lang.observe("o", a + 2 * b, 0.3) + lang.theta("a") * b


def plate(lang, noise):
    with ppl.plate("rows", 3):
        a = lang.site("x", lang.theta("r"), of(noise, "x"), (3,))
        b = lang.site("y", lang.theta("b") + 0.5 * a, of(noise, "y"), (3,))
        cost = lang.observe("o", a + b, ROWS)
    return jnp.sum(cost) * (1 + lang.theta("a")) + lang.theta("w") * a.sum()


def rows(lang, noise):
    """One site in a plate: everything lies in the plate."""
    with ppl.plate("rows", 2):
        a = lang.site("x", lang.theta("r")[:2], of(noise, "x"), (2,))
        cost = lang.observe("o", a, ROWS[:2])
    return jnp.sum(cost * (1 + lang.theta("w")))


def short_scan(lang, noise):
    a, w = lang.theta("a"), lang.theta("w")

    def step(carry, x):
        y, x = x
        z = lang.site("x", a + w * carry, None if x is None else x["x"])
        return z, lang.observe("o", z, y)

    _, costs = ppl.scan(step, jnp.array(0.2), (TIMES[:2], steps(noise, "x")))
    return costs.sum()


def plate_mixed(lang, noise):
    """The rows meet: in a global site downstream, and in a cost."""
    with ppl.plate("rows", 3):
        a = lang.site("x", lang.theta("r"), of(noise, "x"), (3,))
    b = lang.site("y", lang.theta("b") + 0.5 * a.sum(), of(noise, "y"))
    with ppl.plate("rows", 3):
        cost = lang.observe("o", a * b, ROWS)
    return jnp.sum(cost) + lang.observe("t", a.sum(), 0.4) * lang.theta("w") + b


def nested_plate(lang, noise):
    groups, rows = ppl.plate("groups", 2, dim=-2), ppl.plate("rows", 2, dim=-1)
    with groups:
        g = lang.site("x", lang.theta("r")[:2, None], of(noise, "x"), (2, 1))
        with rows:
            b = lang.site(
                "y", lang.theta("b") + lang.theta("r")[1:] + 0.6 * g, of(noise, "y"), (2, 2)
            )
            cost = lang.observe("o", b - g, ROWS[:2])
        extra = lang.observe("e", g, 0.2)
    return cost.sum() + lang.theta("w") * extra.sum() + lang.theta("a") * b.sum()


def scan(lang, noise):
    a, w, s = lang.theta("a"), lang.theta("w"), lang.theta("s")

    def step(carry, x):
        y, x = x
        z = lang.site("x", a + w * carry, None if x is None else x["x"])
        return 0.5 * carry + z, lang.observe("o", z + 0.3 * carry, y)

    carry, costs = ppl.scan(step, jnp.array(0.2), (TIMES, steps(noise, "x")))
    return costs.sum() * (1 + s) + lang.observe("e", carry, 0.5)


def nested_scan(lang, noise):
    a, b, w = lang.theta("a"), lang.theta("b"), lang.theta("w")

    def outer(carry, x):
        y, x = x
        u = lang.site("x", a + 0.4 * carry, None if x is None else x["x"])

        def inner(carry, x):
            y, x = x
            v = lang.site("y", b + 0.5 * carry + 0.3 * u, None if x is None else x["y"])
            return 0.4 * v, lang.observe("o", v * w, y)

        carry, costs = ppl.scan(inner, carry + u, (y, None if x is None else {"y": x["y"]}))
        return carry, costs.sum() + lang.observe("u", u, y[0])

    carry, costs = ppl.scan(
        outer, jnp.array(0.2), (TIMES[:4].reshape(2, 2), steps(noise, "x", "y"))
    )
    return costs.sum() + w * carry


def cond(lang, noise):
    """Branches with different sites, then a tail that is not linear."""
    first = lang.site("x", lang.theta("a"), of(noise, "x"), kind=branch_kind(lang.kind))
    y, z = of(noise, "y"), of(noise, "z")
    b, r, w = lang.theta("b"), lang.theta("r"), lang.theta("w")

    def yes():
        return lang.site("y", b + 0.5 * first, y) * w

    def no():
        return lang.site("z", r[0] - first, z) + lang.site("v", r[1], of(noise, "v")) * 0.5 + r[2]

    value = ppl.cond(first > 0.5, yes, no)
    return lang.observe("o", value, 0.3) + lang.theta("a") * value


def plate_around_scan(lang, noise):
    r, w = lang.theta("r"), lang.theta("w")
    with ppl.plate("rows", 2):

        def step(carry, x):
            y, x = x
            z = lang.site("x", r[:2] + w * carry, None if x is None else x["x"], (2,))
            return 0.6 * carry + z, lang.observe("o", z + 0.2 * carry, y)

        carry, costs = ppl.scan(
            step, jnp.zeros(2), (jnp.stack([TIMES[:3], -TIMES[1:4]], 1), steps(noise, "x"))
        )
        last = lang.observe("e", carry, ROWS[:2])
    return costs.sum() + last.sum() * (1 + lang.theta("a"))


def plate_inside_scan(lang, noise):
    r, w = lang.theta("r"), lang.theta("w")

    def step(carry, x):
        y, x = x
        g = lang.site("y", r[2] + w * carry, None if x is None else x["y"])
        with ppl.plate("rows", 2):
            z = lang.site("x", r[:2] + 0.5 * g, None if x is None else x["x"], (2,))
            cost = lang.observe("o", z, y)
        return 0.5 * carry + 0.3 * z.sum(), cost.sum()

    carry, costs = ppl.scan(step, jnp.array(0.1), (TIMES[:2], steps(noise, "x", "y")))
    return costs.sum() + lang.observe("e", carry, 0.5)


def event(lang, noise):
    """Elements declared by to_event: one density, elements that separate and elements that meet."""
    a = lang.site("x", lang.theta("r"), of(noise, "x"), (3,), event=1)
    b = lang.site("y", lang.theta("b") + 0.6 * a[:2], of(noise, "y"), (2,), event=1)
    return (
        lang.observe("o", (a * ROWS).sum(), 0.3)
        + jnp.sum(lang.theta("w") * a * a)
        + lang.theta("a") * b.prod()
    )


@dataclasses.dataclass(frozen=True)
class Context:
    """A body with the shapes of its sites' elements."""

    name: str
    body: object
    shapes: dict

    def spec(self, kind, num_nodes=4, num_lanes=None):
        """Noise of the sites; with `num_lanes` a leading axis for `ppl.particles`."""
        kinds = {name: kind_of(kind, name) for name in self.shapes}
        if self.name == "cond":
            kinds["x"] = branch_kind(kind)
        lanes = () if num_lanes is None else (num_lanes,)
        return {
            name: KINDS[kinds[name]](num_nodes, *lanes, *shape)
            for name, shape in self.shapes.items()
        }

    def raw(self, kind):
        """`fn(params, noise)` of a raw expectation; its parameters are PARAMS."""
        return lambda params, noise: self.body(Language(kind, params), noise)

    def programs(self, kind):
        """(model, guide), programs of `noise`; parameters are declared inside."""

        def guide(noise):
            self.body(Guide(kind), noise)

        def model(noise):
            self.body(Model(kind), noise)

        return ppl.model(model), ppl.model(guide)


CONTEXTS = {
    c.name: c
    for c in (
        Context("straight", straight, {"x": (), "y": ()}),
        Context("plate", plate, {"x": (3,), "y": (3,)}),
        Context("plate-mixed", plate_mixed, {"x": (3,), "y": ()}),
        Context("nested-plate", nested_plate, {"x": (2, 1), "y": (2, 2)}),
        Context("scan", scan, {"x": (5,)}),
        Context("nested-scan", nested_scan, {"x": (2,), "y": (2, 2)}),
        Context("cond", cond, {"x": (), "y": (), "z": (), "v": ()}),
        Context("plate-around-scan", plate_around_scan, {"x": (3, 2)}),
        Context("plate-inside-scan", plate_inside_scan, {"y": (2,), "x": (2, 2)}),
        Context("event", event, {"x": (3,), "y": (2,)}),
        Context("rows", rows, {"x": (2,)}),
        Context("short-scan", short_scan, {"x": (2,)}),
    )
}
