"""Random programs of rows: what all rows share and what belongs to them, in numbers that may coincide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

STANDARD = dist.Normal(0.0, 1.0)


def coefficients(x, group, table, size):
    return x @ ppl.sample("beta", STANDARD.expand([x.shape[1]]).to_event(1))


def groups(x, group, table, size):
    with ppl.plate("groups", size):
        return ppl.sample("effect", STANDARD)[group]


def entities(x, group, table, size):
    """As many effects as the table has rows."""
    with ppl.plate("entities", table.shape[0]):
        return ppl.sample("entity", dist.Normal(table, 1.0))[group]


def plate(x, group, table, size):
    with ppl.plate("single", x.shape[0]):
        return ppl.sample("u", STANDARD)


def event(x, group, table, size):
    return ppl.sample("v", dist.Normal(jnp.zeros(x.shape[0]), 1.0).to_event(1))


def process(x, group, table, size):
    """Whitened: as many standard normals as rows."""
    factor = jnp.linalg.cholesky(
        0.5 * jnp.exp(-((x[:, :1] - x[:, 0]) ** 2)) + 0.5 * jnp.eye(len(x))
    )
    return factor @ ppl.sample("white", STANDARD.expand([len(x)]).to_event(1))


def pairs(x, group, table, size):
    with ppl.plate("pairs", x.shape[0] // 2):
        return jnp.repeat(ppl.sample("pair", STANDARD), 2)


def blocks(x, group, table, size):
    with ppl.plate("blocks", (x.shape[0] + 2) // 3):
        return jnp.repeat(ppl.sample("block", STANDARD), 3)[: x.shape[0]]


def innovations(x, group, table, size):
    steps = ppl.sample("step", STANDARD.expand([x.shape[0] - 1]).to_event(1))
    return jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])


def walk(x, group, table, size):
    def step(state, _):
        state = ppl.sample("state", dist.Normal(state, 1.0))
        return state, state

    return ppl.scan(step, 0.0, x[:, 0])[1]


def loop(x, group, table, size):
    return jnp.stack([ppl.sample(f"z_{i}", STANDARD) for i in range(x.shape[0])])


SHARED = {coefficients: "beta", groups: "effect", entities: "entity"}
OF_ROWS = {
    plate: "u",
    event: "v",
    process: "white",
    blocks: "block",
    innovations: "step",
    walk: "state",
    loop: "z_",
}
EVEN = {pairs: "pair"}  # of an even number of rows only


@dataclasses.dataclass(frozen=True)
class Program:
    """A random program, its arguments, and which of its sites belong to the rows."""

    model: Callable[..., Any]
    args: tuple
    shared: frozenset[str]
    of_rows: frozenset[str]
    size: int

    def arguments(self, rng: np.random.Generator, num_rows: int) -> tuple:
        """Other rows of the same groups."""
        x = rng.normal(size=(num_rows, self.args[0].shape[1])).astype(np.float32)
        return x, rng.integers(0, self.size, num_rows), self.args[2]

    def means(self, values: dict[str, Any], x: Any, group: Any) -> np.ndarray:
        """Of y, given what the rows share."""
        parts = [values[n][group] for n in ("effect", "entity") if n in values]
        return sum(parts, x @ values["beta"] if "beta" in values else np.zeros(len(x)))


def random_program(rng: np.random.Generator, *, num_of_rows: int | None = None) -> Program:
    """Of some pieces. The numbers of rows, groups and columns coincide in half of the cases."""
    num_rows = int(rng.integers(3, 7))
    size, columns = (num_rows if rng.random() < 0.5 else int(rng.integers(2, 7)) for _ in range(2))
    own = OF_ROWS if num_rows % 2 else OF_ROWS | EVEN
    pick = lambda some, n: {k: some[k] for k in rng.permutation(np.array(list(some)))[:n]}
    shared = pick(SHARED, int(rng.integers(1, 4)))
    of_rows = pick(own, int(rng.integers(0, 3)) if num_of_rows is None else num_of_rows)

    def model(x, group, table, y=None):
        mean = sum(piece(x, group, table, size) for piece in {**shared, **of_rows})
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(mean, 0.1), obs=y)

    names = {n for n in of_rows.values() if n != "z_"}
    if "z_" in of_rows.values():
        names |= {f"z_{i}" for i in range(num_rows)}
    x = rng.normal(size=(num_rows, columns)).astype(np.float32)
    table, y = (rng.normal(size=n).astype(np.float32) for n in (size, num_rows))
    args = x, rng.integers(0, size, num_rows), table, y
    return Program(model, args, frozenset(shared.values()), frozenset(names), size)
