"""Arrays that are matched to rows by position are told from tables that the data look into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.inference.inputs._positions import by_position

MATCHED = {
    "indices": lambda z, x: z[jnp.arange(len(x))] + x,
    "NumPy's indices": lambda z, x: z[np.arange(len(x))] + x,
    "indices within a period": lambda z, x: z[jnp.arange(len(x)) % 3] + x,
    "first entries": lambda z, x: z[: len(x)] + x,
    "blocks": lambda z, x: jnp.repeat(z[:4], 2)[: len(x)] + x,
    "a product": lambda z, x: jax.nn.one_hot(jnp.arange(len(x)), 8) @ z + x,
    "after arithmetic": lambda z, x: jnp.exp(2.0 * z)[jnp.arange(len(x))] + x,
    "in a function of its own": lambda z, x: jax.jit(lambda z: z[jnp.arange(len(x))])(z) + x,
    "in a branch": lambda z, x: jax.lax.cond(x[0] > 0, lambda: z[: len(x)], lambda: x),
    "in steps": lambda z, x: jax.lax.scan(lambda t, x: (t + 1, z[t] + x), 0, x)[1],
    "of so many rows only": lambda z, x: z[:5] + x,
    "mapped": lambda z, x: jax.vmap(lambda i, x: z[i] + x)(jnp.arange(len(x)), x),
    "in a loop": lambda z, x: sum(z[i] * x[i] for i in range(len(x))),
}
LOOKED_UP = {
    "indices": lambda z, x: z[x.astype(int)] + x,
    "a product": lambda z, x: jax.nn.one_hot(x.astype(int), 8) @ z + x,
    "coefficients": lambda z, x: jnp.tile(x[:, None], 8) @ z,
    "in steps": lambda z, x: jax.lax.scan(lambda t, x: (t + 1, z[x.astype(int)]), 0, x)[1],
    "some entries": lambda z, x: z[0] + z[1:3].sum() + x,
    "in a loop": lambda z, x: sum(z[x[i].astype(int)] for i in range(len(x))),
    "nowhere in a loop": lambda z, x: sum(x[i] * i for i in range(len(x))),
    "nowhere": lambda z, x: x,
    "its mean": lambda z, x: z.mean() * x,
}


def found(fn):
    run = lambda asked, known, args: fn(asked[0], args[0])
    before, after = ([np.zeros(n, np.float32)] for n in (5, 6))
    return by_position(run, [np.zeros(8, np.float32)], {}, before, after)


@pytest.mark.parametrize("name", MATCHED)
def test_what_is_matched_by_position(name):
    assert found(MATCHED[name]) == [True]


@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_the_data_look_into(name):
    assert found(LOOKED_UP[name]) == [False]


def test_arrays_are_told_one_by_one():
    run = lambda asked, known, args: asked[0][: len(args[0])] + asked[1][args[0].astype(int)]
    before, after = ([np.zeros(n, np.float32)] for n in (5, 6))
    assert by_position(run, [np.zeros(8, np.float32)] * 2, {}, before, after) == [True, False]
