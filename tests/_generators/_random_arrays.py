"""Random array programs: compositions of JAX operations on the value of one site, for tests of the static analysis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def _ranked(x, n):
    return x if x.ndim >= n else x.reshape((1,) * (n - x.ndim) + x.shape)


def _scan_rows(x, reverse=False, keep=True):
    """A raw loop over the leading axis; the carry is elementwise in the other axes."""

    def step(carry, row):
        carry = 0.5 * carry + row if keep else row
        return carry, carry * row + 1.0

    carry, ys = jax.lax.scan(step, jnp.zeros(x.shape[1:]), x, reverse=reverse)
    return ys + carry * 0.0 if not keep else ys


def _scan_mixing(x):
    """The carry mixes the rows of one step."""

    def step(carry, row):
        carry = carry + row.sum()
        return carry, row * carry

    return jax.lax.scan(step, jnp.zeros(()), x)[1]


def _last_carry(x):
    return jax.lax.scan(lambda c, row: (c * 0.5 + row, None), jnp.zeros(x.shape[1:]), x)[0]


def _delayed(x):
    """Each step sees the step before only."""
    return jax.lax.scan(lambda c, row: (row, c), jnp.zeros(x.shape[1:]), x)[1]


def _scan_both(x, y):
    return jax.lax.scan(lambda c, r: (c + r[0], c * r[1]), 0 * x[0], (x, y))[1]


def _table_by_row(x):
    rows = _ranked(x, 1)
    columns = jnp.clip(jnp.round(rows.reshape(rows.shape[0], -1)[:, 0]), 0, 2).astype(int)
    return jnp.arange(60.0).reshape(20, 3)[jnp.arange(rows.shape[0]), columns]


def _pool(x):
    x = _ranked(x, 1)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (2,) + (1,) * (x.ndim - 1), (1,) * x.ndim, "SAME"
    )


UNARY = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "square": jnp.square,
    "power": lambda x: jnp.abs(x) ** 1.5,
    "sign": lambda x: jnp.sign(x) + x,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5) + x,
    "where": lambda x: jnp.where(x > 0, x, 2.0),
    "isfinite": lambda x: jnp.nan_to_num(x / jnp.abs(x)) + x,
    "jit": lambda x: jax.jit(lambda y: jnp.sin(y) * y)(x),
    "checkpoint": lambda x: jax.checkpoint(jnp.sin)(x),
    "custom jvp": lambda x: jax.nn.silu(x) + jax.numpy.logaddexp(x, 0.0),
    "softmax last": lambda x: jax.nn.softmax(_ranked(x, 1), -1),
    "softmax first": lambda x: jax.nn.softmax(_ranked(x, 1), 0),
    "logsumexp": lambda x: jax.nn.logsumexp(_ranked(x, 1), -1),
    "sum first": lambda x: _ranked(x, 1).sum(0),
    "sum last": lambda x: _ranked(x, 1).sum(-1),
    "sum kept": lambda x: _ranked(x, 1).sum(-1, keepdims=True),
    "max": lambda x: _ranked(x, 1).max(0),
    "prod": lambda x: _ranked(x, 1).prod(-1),
    "mean": lambda x: _ranked(x, 1).mean(0) if x.size else x,
    "cumsum": lambda x: jnp.cumsum(_ranked(x, 1), 0),
    "cumsum last": lambda x: jnp.cumsum(_ranked(x, 1), -1),
    "cumsum reversed": lambda x: jax.lax.cumsum(_ranked(x, 1), 0, reverse=True),
    "cumprod": lambda x: jnp.cumprod(_ranked(x, 1), -1),
    "cummax": lambda x: jax.lax.cummax(_ranked(x, 1), 0),
    "cumlogsumexp": lambda x: jax.lax.cumlogsumexp(_ranked(x, 1), 0),
    "associative scan": lambda x: jax.lax.associative_scan(jnp.add, _ranked(x, 1)),
    "scan": lambda x: _scan_rows(_ranked(x, 1)),
    "scan reversed": lambda x: _scan_rows(_ranked(x, 1), reverse=True),
    "scan without memory": lambda x: _scan_rows(_ranked(x, 1), keep=False),
    "scan that mixes": lambda x: _scan_mixing(_ranked(x, 1)),
    "scan carry": lambda x: _last_carry(_ranked(x, 1)),
    "scan delayed": lambda x: _delayed(_ranked(x, 1)),
    "scan of scans": lambda x: jax.vmap(_scan_rows)(_ranked(x, 2)),
    "map": lambda x: jax.lax.map(lambda r: r * r.sum(), _ranked(x, 1)),
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * 0.5 + x, x),
    "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + x), (0, x))[1],
    "cond": lambda x: jax.lax.cond(x.ravel()[0] > 0, jnp.sin, lambda y: y * 2, x),
    "switch": lambda x: jax.lax.switch(1, [jnp.sin, jnp.cos], x),
    "transpose": lambda x: x.T,
    "swapaxes": lambda x: jnp.swapaxes(_ranked(x, 2), 0, 1),
    "flatten": lambda x: x.reshape(-1),
    "split axis": lambda x: x.reshape(-1, 2) if x.size % 2 == 0 else x,
    "merge": lambda x: x.reshape(x.shape[0], -1) if x.ndim else x,
    "new axis": lambda x: x[..., None],
    "new first axis": lambda x: x[None],
    "squeeze": jnp.squeeze,
    "broadcast": lambda x: jnp.broadcast_to(x, (2, *x.shape)),
    "broadcast inner": lambda x: jnp.broadcast_to(x[..., None], (*x.shape, 3)),
    "repeat": lambda x: jnp.repeat(_ranked(x, 1), 2, 0),
    "tile": lambda x: jnp.tile(_ranked(x, 1), 2),
    "tile last": lambda x: jnp.tile(_ranked(x, 2), (1, 2)),
    "unstack": lambda x: jnp.unstack(_ranked(x, 1))[0],
    "unstack last": lambda x: jnp.unstack(_ranked(x, 1), axis=-1)[-1],
    "flip": lambda x: _ranked(x, 1)[::-1],
    "flip last": lambda x: _ranked(x, 1)[..., ::-1],
    "roll": lambda x: jnp.roll(_ranked(x, 1), 1, 0),
    "shift": lambda x: jnp.concatenate([jnp.zeros_like(_ranked(x, 1)[:1]), _ranked(x, 1)[:-1]]),
    "difference": lambda x: jnp.diff(_ranked(x, 1), axis=0) if _ranked(x, 1).shape[0] > 1 else x,
    "pad": lambda x: jnp.pad(x, 1),
    "slice": lambda x: _ranked(x, 1)[1:] if _ranked(x, 1).shape[0] > 1 else x,
    "slice same": lambda x: _ranked(x, 1)[:],
    "stride": lambda x: _ranked(x, 1)[::2],
    "first": lambda x: _ranked(x, 1)[0],
    "dynamic slice": lambda x: jax.lax.dynamic_slice_in_dim(_ranked(x, 1), 0, 1, 0),
    "dynamic update": lambda x: jax.lax.dynamic_update_index_in_dim(_ranked(x, 1), 0 * _ranked(x, 1)[0], 0, 0),
    "take": lambda x: jnp.take(_ranked(x, 1), jnp.array([0, 0]), 0),
    "take last": lambda x: jnp.take(_ranked(x, 1), jnp.array([0, 0, 0]), -1),
    "along axis": lambda x: jnp.take_along_axis(_ranked(x, 1), jnp.argsort(_ranked(x, 1), 0), 0),
    "lookup": lambda x: jnp.array([0.3, -0.7, 1.1])[jnp.clip(jnp.round(x), 0, 2).astype(int)],
    "rows of a table": lambda x: jnp.arange(12.0).reshape(3, 4)[jnp.clip(jnp.round(x), 0, 2).astype(int)],
    "table by row": _table_by_row,
    "one hot": lambda x: jax.nn.one_hot(jnp.clip(jnp.round(x), 0, 2).astype(int), 3),
    "scatter": lambda x: jnp.zeros_like(_ranked(x, 1)).at[::-1].add(_ranked(x, 1)),
    "set": lambda x: _ranked(x, 1).at[0].set(1.0),
    "set column": lambda x: _ranked(x, 2).at[..., 0].set(_ranked(x, 2)[..., -1]),
    "set row": lambda x: _ranked(x, 2).at[0].set(_ranked(x, 2)[-1]),
    "add by row": lambda x: jax.vmap(lambda r, i: r.at[i].add(2 * r[0]))(_ranked(x, 2), jnp.arange(len(_ranked(x, 2))) % 2),
    "segments": lambda x: jax.ops.segment_sum(_ranked(x, 1), jnp.zeros(_ranked(x, 1).shape[0], int), 2),
    "sort": lambda x: jnp.sort(_ranked(x, 1), 0),
    "sort last": lambda x: jnp.sort(_ranked(x, 1), -1),
    "argsort": lambda x: jnp.argsort(_ranked(x, 1), -1) * 1.0,
    "argmax": lambda x: jnp.argmax(_ranked(x, 1), 0) * 1.0,
    "top k": lambda x: jax.lax.top_k(_ranked(x, 1), 1)[0],
    "median": lambda x: jnp.median(_ranked(x, 1), 0),
    "searchsorted": lambda x: jnp.searchsorted(jnp.array([-0.5, 0.5]), x) * 1.0,
    "searchsorted by row": lambda x: jax.vmap(lambda r: jnp.searchsorted(jnp.cumsum(r**2), r[::-1]))(_ranked(x, 2)) * 1.0,
    "interp": lambda x: jnp.interp(x, jnp.array([-1.0, 0.0, 1.0]), jnp.array([0.0, 2.0, 1.0])),
    "matrix product": lambda x: _ranked(x, 1) @ jnp.ones((_ranked(x, 1).shape[-1], 2)) if x.ndim < 3 else x,
    "gram": lambda x: _ranked(x, 2) @ jnp.swapaxes(_ranked(x, 2), -1, -2),
    "einsum": lambda x: jnp.einsum("...i,...i->...", _ranked(x, 1), _ranked(x, 1)),
    "outer": lambda x: jnp.einsum("i...,j->ij...", _ranked(x, 1), jnp.arange(2.0)),
    "trace": lambda x: jnp.trace(_ranked(x, 2)),
    "diagonal": lambda x: jnp.diagonal(_ranked(x, 2)),
    "tril": lambda x: jnp.tril(_ranked(x, 2)),
    "solve": lambda x: jnp.linalg.solve(2 * jnp.eye(_ranked(x, 1).shape[0]) + 0.1, _ranked(x, 1)) if x.ndim < 3 else x,
    "cholesky": lambda x: jnp.linalg.cholesky(_ranked(x, 1)[..., None, None] ** 2 + jnp.eye(2)),
    "inverse": lambda x: jnp.linalg.inv(_ranked(x, 1)[..., None, None] + 3 * jnp.eye(2) + 0.1),
    "convolve": lambda x: jnp.convolve(x.ravel(), jnp.array([1.0, 0.5]), mode="same"),
    "image": lambda x: jax.lax.conv(_ranked(x, 4), jnp.ones((1, _ranked(x, 4).shape[1], 1, 1)), (1, 1), "SAME"),
    "pool": _pool,
    "pool last": lambda x: jnp.moveaxis(_pool(jnp.moveaxis(_ranked(x, 2), -1, 0)), 0, -1),
    "fft": lambda x: jnp.abs(jnp.fft.fft(_ranked(x, 1))),
    "vmap": lambda x: jax.vmap(lambda r: r / (1 + jnp.sum(r**2)))(_ranked(x, 1)),
    "vmap of cond": lambda x: jax.vmap(lambda r: jax.lax.cond(r.sum() > 0, jnp.sin, jnp.cos, r))(_ranked(x, 1)),
    "grad": lambda x: jax.grad(lambda y: jnp.sum(jnp.sin(y) * y))(x),
    "grad of a sum": lambda x: jax.grad(lambda y: jnp.sum(y) ** 2)(x),
    "stop": jax.lax.stop_gradient,
    "random": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "log prob": lambda x: -0.5 * (x - jnp.arange(float(x.shape[-1] if x.ndim else 1))) ** 2 if x.ndim else x,
    "erf": jax.scipy.special.erf,
    "gammaln": lambda x: jax.scipy.special.gammaln(jnp.abs(x) + 1),
    "cast": lambda x: x.astype(jnp.bfloat16).astype(float),
    "ints": lambda x: jnp.floor(3 * x).astype(int) % 3 + 0.0,
    "logical": lambda x: jnp.logical_and(x > 0, ~(x > 1)) * 1.0,
}  # fmt: skip

BINARY = {
    "add": jnp.add,
    "multiply": jnp.multiply,
    "maximum": jnp.maximum,
    "atan2": jnp.arctan2,
    "choose": lambda x, y: jnp.where(x > 0, x, y),
    "compare": lambda x, y: (x > y) * 1.0,
    "outer sum": lambda x, y: x[..., None] + y.ravel(),
    "concatenate": lambda x, y: jnp.concatenate([x.ravel(), y.ravel()]),
    "stack": lambda x, y: jnp.stack([x, y]) if x.shape == y.shape else x,
    "stack last": lambda x, y: jnp.stack([x, y], -1) if x.shape == y.shape else x,
    "join rows": lambda x, y: jnp.concatenate([x, y], 0) if x.ndim and x.shape == y.shape else x,
    "dot": lambda x, y: jnp.tensordot(x, y, 0) if x.size * y.size < 100 else x,
    "scan both": lambda x, y: _scan_both(x, y) if x.ndim and x.shape == y.shape else y,
    "select row": lambda x, y: jax.lax.dynamic_index_in_dim(_ranked(x, 1), jnp.int32(y.ravel()[0] > 0), 0, False),
    "sort by": lambda x, y: jax.lax.sort((x, y), num_keys=1)[1] if x.ndim and x.shape == y.shape else x,
}  # fmt: skip


def broadcastable(x, y):
    try:
        np.broadcast_shapes(x, y)
    except ValueError:
        return False
    return True


NEEDS_BROADCAST = {"add", "multiply", "maximum", "atan2", "choose", "compare"}


def compose(seed, num_ops):
    """(description, function) of a random composition; the function keeps its intermediate arrays within 200 elements."""
    rng = np.random.default_rng(seed)
    plan = []
    for _ in range(num_ops):
        if rng.random() < 0.25:
            plan.append((rng.choice(list(BINARY)), int(rng.integers(100)), int(rng.integers(100))))
        else:
            plan.append((rng.choice(list(UNARY)), int(rng.integers(100)), None))

    def run(z):
        arrays, done = [z], []
        for name, i, j in plan:
            # Mostly the newest array, sometimes an older one.
            x = arrays[-1] if i < 70 else arrays[i % len(arrays)]
            if j is None:
                out = UNARY[name](x)
            else:
                y = arrays[j % len(arrays)]
                if name in NEEDS_BROADCAST and not broadcastable(x.shape, y.shape):
                    continue
                out = BINARY[name](x, y)
            if 0 < out.size <= 200:
                arrays.append(out)
                done.append(name)
        run.text = " > ".join(done)
        return arrays[-1]

    return run
