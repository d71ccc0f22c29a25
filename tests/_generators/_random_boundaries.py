"""Random programs with comparisons that are affine in one of two Normal sites, and their exact expectations.

z1 ~ Normal(loc, scale); z2 ~ Normal(affine in z1, and in outcomes of the first comparisons, 1); b ~ Bernoulli by the outcomes.
Comparisons of z1 have places that parameters move, those of z2 also such that z1 moves. The cost is smooth between places.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _boundary_programs import pieces, stop

from lapilli import ppl

NUM_PARAMS = 4
PANELS = np.linspace(-8, 8, 33)  # of z1, in units of its scale: places of z2 may meet there
OPERATIONS = {"lt": jnp.less, "le": jnp.less_equal, "gt": jnp.greater, "ge": jnp.greater_equal}
SIDES = ("whole", "both sides", "exp", "sigmoid")


class Comparison:
    """slope * (z - place) against 0, written in one of several ways; the slope never vanishes."""

    def __init__(self, rng, *, sees_z1):
        self.operation = rng.choice(list(OPERATIONS))
        self.side = rng.choice(SIDES)
        self.sign = rng.choice([-1.0, 1.0])
        self.slope, self.place = rng.normal(size=NUM_PARAMS) * 0.4, rng.normal(size=NUM_PARAMS)
        self.of_z1 = rng.normal() * 0.7 if sees_z1 else 0.0
        self.is_flipped = rng.random() < 0.5

    def place_of(self, p, z1: Any = 0.0):
        return self.place @ p + self.of_z1 * z1

    def __call__(self, z, p, z1: Any = 0.0):
        """As a program writes it."""
        slope = self.sign * jnp.exp(self.slope @ p)
        place = self.place_of(p, z1)
        left, right = slope * z, slope * place
        if self.side == "whole":
            left, right = slope * (z - place) + 1.0, 1.0
        elif self.side == "exp":
            left, right = jnp.exp(left), jnp.exp(right)
        elif self.side == "sigmoid":
            left, right = jax.nn.sigmoid(left), jax.nn.sigmoid(right)
        operation = OPERATIONS[self.operation]
        return operation(right, left) if self.is_flipped else operation(left, right)

    def side_of(self, z, p, z1: Any = 0.0):
        """The outcome, by its place alone."""
        is_increasing = (self.sign > 0) == (self.operation in ("gt", "ge"))
        is_increasing ^= self.is_flipped
        is_above = z > stop(self.place_of(p, z1))
        return is_above if is_increasing else ~is_above


class RandomProgram:
    """A program, `cost(params)`, with the strategies that it names, and its exact mean."""

    def __init__(self, rng, name):
        self.name = name
        self.first = [Comparison(rng, sees_z1=False) for _ in range(rng.integers(1, 3))]
        self.second = [Comparison(rng, sees_z1=True) for _ in range(rng.integers(1, 3))]
        n, m = len(self.first), len(self.second)
        self.weights = [rng.normal(size=k) * 0.7 for k in (n, n, n + m, n + m)]
        self.numbers = rng.normal(size=4) * 0.5
        bases = [ppl.Boundary(b) for b in rng.choice(["reparam", "reinforce"], size=2)]
        discrete = str(rng.choice(["enum", "reinforce", "mvd"]))
        self.strategies = {
            f"{name}.z1": bases[0], f"{name}.z2": bases[1], f"{name}.b": discrete
        }  # fmt: skip

    def loc_of(self, p, z1, d1):
        return self.numbers[0] * z1 + self.weights[0] @ d1 + 0.3 * p[2]

    def logit_of(self, p, z1, d1):
        return self.weights[1] @ d1 + self.numbers[1] * z1 + p[3]

    def cost_of(self, z1, z2, d, b):
        angle = self.weights[2] @ d + self.numbers[2] * z1 + self.numbers[3] * z2
        return jnp.sin(angle) + b * jnp.cos(self.weights[3] @ d + z2)

    def cost(self, p):
        z1 = ppl.sample(f"{self.name}.z1", dist.Normal(p[0], jnp.exp(0.3 * p[1])))
        d1 = jnp.stack([1.0 * f(z1, p) for f in self.first])
        z2 = ppl.sample(f"{self.name}.z2", dist.Normal(self.loc_of(p, z1, d1), 1.0))
        b = ppl.sample(f"{self.name}.b", dist.Bernoulli(logits=self.logit_of(p, z1, d1)))
        d = jnp.concatenate([d1, jnp.stack([1.0 * f(z2, p, z1) for f in self.second])])
        return self.cost_of(z1, z2, d, b)

    def exact(self, p):
        """Quadrature in z1 and z2; the mean over b is a sum."""
        loc, scale = p[0], jnp.exp(0.3 * p[1])
        places = [f.place_of(p) for f in self.first]
        ends = [*places, *(loc + scale * x for x in PANELS[1:-1])]

        def given(z1, inside1):
            d1 = jnp.stack([1.0 * f.side_of(inside1, p) for f in self.first])
            q = jax.nn.sigmoid(self.logit_of(p, z1, d1))

            def one(z2, inside2):
                d2 = jnp.stack([1.0 * f.side_of(inside2, p, z1) for f in self.second])
                d = jnp.concatenate([d1, d2])
                return (1 - q) * self.cost_of(z1, z2, d, 0) + q * self.cost_of(z1, z2, d, 1)

            cuts = [f.place_of(p, z1) for f in self.second]
            z2, weights, inside2 = pieces(self.loc_of(p, z1, d1), 1.0, cuts, 8.0)
            return jnp.sum(weights * jax.vmap(one)(z2, inside2))

        z1, weights, inside1 = pieces(loc, scale, ends, 8.0, num_nodes=8)
        return jnp.sum(weights * jax.vmap(given)(z1, inside1))
