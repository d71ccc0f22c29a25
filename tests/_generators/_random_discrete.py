"""Random programs of discrete sites, to be summed by brute force.

A program is a random tree of statements: sites with two or three values, observations and factors, plates, scans (in scans)
with a memory of up to three steps, branches and particle lanes. Each law depends on a few values that are met before, through
operations that keep elements apart (arithmetic), move them (roll, flip, gather) or mix them (cumulative sum, matrix product,
mean). All is drawn from the seed and the place in the tree, so that a body that is run twice is the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _brute_force import VALUES

from lapilli import ppl

Array = jax.Array


class RandomProgram:
    """A random program; returns the log of the number of assignments of the sites that are not met.

    Args:
        seed: of the structure and its coefficients.
        features: what it may hold: "plate", "scan", "cond", "particles", "mask", "kept".
    """

    def __init__(self, seed: int, features: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self.features = features or ("plate", "scan", "cond", "particles", "mask", "kept")
        # Every other program holds chains in the first place, and mixes elements only where they are observed.
        self.is_chains = seed % 2 == 1

    def __call__(self) -> Array:
        w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        block = _Block(self, "", w, (), 0)
        block.run([])
        return block.unmet


class _Block:
    """Statements in a row, at `path` in the tree, in plates of the sizes `plates`, innermost first."""

    def __init__(
        self, program: RandomProgram, path: str, w: Array, plates: tuple[int, ...], depth: int
    ) -> None:
        self.program, self.path, self.w, self.plates, self.depth = program, path, w, plates, depth
        self.rng = random.Random(f"{program.seed}{path}")
        self.unmet: Any = jnp.zeros(())
        self.carried: list[Array] = []  # by the scan of which this is the body
        self.num_values: list[tuple[int, int]] = []  # of each eliminated site: elements, values

    def run(self, values: list[Array]) -> list[Array]:
        """Run the statements; returns the values that they add."""
        old = len(values)
        values = list(values)
        counts = {0: [1, 2, 2, 3], 1: [1, 1, 2, 2, 3], 2: [1, 1, 2, 2, 3]}
        if self.program.is_chains:
            counts = {0: [1, 1, 2], 1: [2, 2, 3], 2: [1, 1, 2]}
        for number in range(self.rng.choice(counts[self.depth])):
            self.name = f"{self.path}_{number}"
            kind = self.rng.choice(self._kinds(number))
            values += getattr(self, f"_{kind}")(values)
        if not self.num_values:
            self.name = f"{self.path}_last"
            values += self._site(values)
        return values[old:]

    def _kinds(self, number: int) -> list[str]:
        kinds = ["site"] * (4 if number == 0 else 2) + (["observed"] if number else [])
        deeper = [k for k in ("plate", "scan", "scan", "cond") if k in self.program.features]
        if self.depth == 0 and "particles" in self.program.features:
            deeper.append("particles")
        if self.program.is_chains and "scan" in deeper and self.depth < 2:
            first = ["site"] if self.carried else ["scan"]
            return first if number == 0 else ["scan", "plate", *kinds]
        if self.depth < 2 and len(self.plates) < 2:
            kinds += [k for k in deeper if k != "cond" or not self.plates]
            kinds += ["scan"] * (2 if self.depth and "scan" in deeper else 0)
        return kinds + (["kept"] if "kept" in self.program.features and number else [])

    # Statements.

    def _site(self, values: list[Array]) -> list[Array]:
        letter = self.rng.choice("bbbbbc")
        k, event = VALUES[letter], self.rng.choice([0, 0, 0, 0, 0 if self.program.is_chains else 2])
        logits = [self._mean(values, event) for _ in range(k - 1)]
        law: Any = (
            dist.Bernoulli(logits=logits[0])
            if k == 2
            else dist.CategoricalLogits(jnp.stack([jnp.zeros_like(logits[0]), *logits], -1))
        )
        law = self._masked(law.to_event(1) if event else law)
        value = ppl.sample(letter + self.name, law)
        self.num_values.append((value.size, k))
        return [value]

    def _kept(self, values: list[Array]) -> list[Array]:
        law = dist.Normal(self._mean(values), self.rng.uniform(0.5, 2.0))
        return [ppl.sample("v" + self.name, law)]

    def _observed(self, values: list[Array]) -> list[Array]:
        mean = self._mean(values, moving=True)
        if self.rng.random() < 0.5:
            law = self._masked(dist.Normal(mean, self.rng.uniform(0.5, 2.0)))
            ppl.sample("x" + self.name, law, obs=self._numbers(mean.shape))
        else:
            ppl.factor("f" + self.name, 0.6 * jnp.sin(mean))
        return []

    def _plate(self, values: list[Array]) -> list[Array]:
        size = self.rng.choice([1, 2, 2, 3])
        with ppl.plate("p" + self.name, size, dim=-1 - len(self.plates)):
            return self._inside("p", values, (*self.plates, size))[0]

    def _scan(self, values: list[Array]) -> list[Array]:
        length = self.rng.choice([1, 2, 2] if self.depth else [1, 2, 2, 3, 3, 4])
        memory, size = self.rng.choice([0, 1, 1, 1, 2, 3]), self.plates[::-1]
        chains = self.rng.choice([1, 1, 2]) if memory else 0
        known = [jnp.zeros(size) + self.rng.choice([0, 1, 0.5]) for _ in range(memory * chains)]
        inputs = [v for v in values if v.ndim and v.shape[0] == length][-1:]
        starts = [v for v in values if v.shape == size]
        if known and starts and self.rng.random() < 0.4:
            known[-1] = 1.0 * starts[-1]

        def step(carry: list[Array], x: Any) -> tuple[list[Array], Any]:
            found, unmet = self._inside("s", [*values, *x, *carry], self.plates, carry)
            own = [v for v in found if v.shape == size] or found
            new = [self._shaped(v, size) + jnp.zeros(size) for v in [*own, *own][:chains]]
            if new and self.rng_of("sum").random() < 0.1:
                new[0] += 0.5 * carry[-1]
            return [*carry, *new][chains:], (found, unmet)

        last, (found, unmet) = ppl.scan(step, known, inputs, length)
        self.unmet += unmet.sum()
        return [*found, *(last[:1] if self.rng.random() < 0.2 else [])]

    def _cond(self, values: list[Array]) -> list[Array]:
        test = self._shaped(self.rng.choice(values), ()) > 0 if values else self.w[0] > 0
        counts = {}

        def branch(side: str) -> Callable[[], Array]:
            def run() -> Array:
                block = _Block(self.program, self.name + side, self.w, (), 2)
                found = block.run(values)
                counts[side] = block.num_values
                return sum(self._shaped(v, ()) for v in found) + jnp.zeros(())

            return run

        out = ppl.cond(test, branch("t"), branch("f"))
        logs = {s: sum(n * math.log(k) for n, k in found) for s, found in counts.items()}
        self.unmet += jnp.where(test, logs["f"], logs["t"])
        self.num_values += counts["t"] + counts["f"]
        return [out]

    def _particles(self, values: list[Array]) -> list[Array]:
        lane = lambda: self._inside("k", values, self.plates)
        found, unmet = ppl.particles(2)(lane)()
        self.unmet += unmet.sum()
        return found

    def _inside(
        self, side: str, values: list[Array], plates: tuple[int, ...], carried: Any = ()
    ) -> tuple[list[Array], Array]:
        block = _Block(self.program, self.name + side, self.w, plates, self.depth + 1)
        block.carried = list(carried)
        found = block.run(values)
        self.num_values += block.num_values
        if side == "p":
            self.unmet += block.unmet
        return found, block.unmet

    # Expressions.

    def rng_of(self, what: str) -> random.Random:
        """Random choices of one statement."""
        return random.Random(f"{self.program.seed}{self.name}{what}")

    def _masked(self, law: Any) -> Any:
        if "mask" not in self.program.features or self.rng.random() < 0.85:
            return law
        choice = self.rng.random()
        if choice < 0.4 or not law.batch_shape:
            return law.mask(choice < 0.2)
        return law.mask(self._numbers(law.batch_shape) > 0)

    def _mean(self, values: list[Array], event: int = 0, *, moving: bool = False) -> Array:
        """A number for each element, from up to three values."""
        shape = self.plates[::-1] + ((event,) if event else ())
        total = self.rng.uniform(-1, 1) + jnp.zeros(shape)
        recent = values[-5:]
        if self.program.is_chains and not moving:
            recent = [v for v in recent if _fits(v, shape)]
        chosen = self.rng.sample(recent, min(len(recent), self.rng.choice([1, 2, 2, 3])))
        chosen += [v for v in self.carried if self.rng.random() < 0.6]
        for value in chosen:
            if self.rng.random() < (0.3 if moving else 0.04):
                value = self._moved(value)
            if event and value.shape == shape[:-1]:
                value = value[..., None]
            scale = self.rng.uniform(0.5, 1.5) * self.rng.choice([-1, 1])
            term = scale * self.w[self.rng.randrange(4)] * self._shaped(value, shape)
            total = total * (0.5 + term) if self.rng.random() < 0.15 else total + term
        return total

    def _shaped(self, value: Array, shape: tuple[int, ...]) -> Array:
        """A value broadcast or reduced to `shape`."""
        if _fits(value, shape):
            return 1.0 * value
        rng = self.rng_of(f"{value.shape}")
        while value.ndim > len(shape):
            reduce = rng.choice(
                [jnp.sum, jnp.mean, jnp.max, lambda x, axis: jnp.take(x, -1, int(axis))]
            )
            value = reduce(value, axis=rng.randrange(value.ndim))
        return self._shaped(1.0 * value if value.shape == shape else value.sum(), shape)

    def _moved(self, value: Array) -> Array:
        """A value whose elements are moved or mixed along an axis."""
        if not value.ndim:
            return value
        axis = self.rng.randrange(value.ndim)
        size = value.shape[axis]
        table = self._numbers((size, size))
        order = np.argsort(self._numbers((size,)))
        moves: list[Callable[[Array], Array]] = [
            lambda x: jnp.roll(x, 1, axis),
            lambda x: jnp.flip(x, axis),
            lambda x: jnp.cumsum(x, axis),
            lambda x: jnp.moveaxis(jnp.moveaxis(1.0 * x, axis, -1) @ table, -1, axis),
            lambda x: x - x.mean(axis, keepdims=True),
            lambda x: x.take(order, axis),
            lambda x: jnp.concatenate([x.take(jnp.arange(1), axis) * 0, x], axis).take(
                jnp.arange(size), axis
            ),
            lambda x: jnp.sort(x, axis),
        ]
        return self.rng.choice(moves)(value)

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        rng = self.rng_of(f"numbers {shape}")
        return np.reshape([rng.gauss(0, 1) for _ in range(math.prod(shape))], shape)


def _fits(value: Array, shape: tuple[int, ...]) -> bool:
    """Whether a value broadcasts to `shape`."""
    try:
        return np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        return False
