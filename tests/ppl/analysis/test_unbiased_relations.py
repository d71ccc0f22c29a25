"""The static analysis tells the truth: an element that changes with an element of the site is never said not to.

What the analysis claims of an array (aligned, causal, absent: `ppl/jaxprs/_relation.py`) is compared with the array itself: each
element of the site is moved, and only the elements that the claimed links allow may change. Wrong claims here are what
makes estimates silently biased. No gradient, no statistics.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _random_arrays import UNARY, compose

from lapilli.ppl.evaluation._evaluate import Forced, evaluate
from lapilli.ppl.jaxprs._dependence import Analysis
from lapilli.ppl.jaxprs._primitive import mark

pytestmark = pytest.mark.one_in(2)

NUM_POINTS = 4


def site(x):
    """A marked array of known values, as if drawn."""
    return mark(x, (), (), index=0)


def claims(fn, value):
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(value)
    facts = Analysis(closed, [False])
    return (
        closed,
        [facts[v].relations.get(0) for v in closed.jaxpr.outvars],
        jax.tree.leaves(shapes),
    )


def assert_claims_hold(fn, site_shape, value_shape=None, about=""):
    """`fn(value) -> array(s)` marks its value as site 0, of shape `site_shape` in the marker's layout."""
    value = jnp.zeros(value_shape or site_shape)
    closed, relations, _ = claims(fn, value)
    rng = np.random.default_rng(0)
    count = int(np.prod(site_shape))

    def outputs(z):
        return evaluate(closed, [value], {0: Forced(z)})

    points = jnp.asarray(rng.normal(size=(NUM_POINTS, *site_shape)), float)
    others = jnp.asarray(rng.normal(size=(NUM_POINTS, *site_shape)), float)
    moved = jnp.where(jnp.eye(count, dtype=bool).reshape(count, 1, *site_shape), others, points)
    base, after = jax.jit(lambda a, b: (jax.vmap(outputs)(a), jax.vmap(jax.vmap(outputs))(b)))(
        points, moved
    )
    for place, (relation, before, now) in enumerate(zip(relations, base, after, strict=True)):
        text = f"output {place} of {about}"
        same = jnp.asarray(now == before) | (jnp.isnan(now) & jnp.isnan(before))
        changed = np.asarray(~same).any(1)  # (element of the site, *element of the array)
        if relation is None:
            assert not changed.any(), f"{text}: said not to depend on the site"
            continue
        assert len(relation) == len(site_shape), (
            f"{text}: {relation} for a site of shape {site_shape}"
        )
        for number, element in enumerate(np.ndindex(*site_shape)):
            for where in np.argwhere(changed[number]):
                for position, link in enumerate(relation):
                    at = None if link.axis is None else where[link.axis]
                    if link.kind == "aligned":
                        assert at == element[position], (
                            f"{text}: {relation}, element {element} moves {tuple(where)}"
                        )
                    if link.kind == "causal":
                        assert at >= element[position], (
                            f"{text}: {relation}, element {element} moves {tuple(where)}"
                        )
                        assert link.lag is None or at <= element[position] + link.lag, (
                            f"{text}: {relation}, element {element} moves {tuple(where)}"
                        )


SHAPES = [(3,), (2, 3), (3, 1), (1, 3), (3, 3), (2, 1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", range(0, len(UNARY), 10), ids=lambda i: list(UNARY)[i].replace(" ", "-")
)
@pytest.mark.parametrize(
    "shape",
    [(2, 3), *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[:1] + SHAPES[2:])],
    ids=str,
)
def test_claims_of_single_operations_hold(group, shape):
    """Ten operations in one program, each with claims of its own (slow: the other shapes)."""
    names = list(UNARY)[group : group + 10]

    def fn(x):
        z = site(x)
        return [jnp.asarray(UNARY[name](z)) for name in names]

    assert_claims_hold(fn, shape, about=f"{names} of {shape}")


def random_case(seed):
    shape = SHAPES[seed % len(SHAPES)]
    run = compose(seed, 2 + seed % 4)

    def fn(x):
        return run(site(x))

    jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert_claims_hold(fn, shape, about=f"seed {seed}, {shape}: {run.text}")


@pytest.mark.slow  # forty programs a block
@pytest.mark.parametrize("block", range(10))
def test_claims_of_random_compositions_hold(block, request):
    for seed in range(40 * block, 40 * (block + 1)):
        random_case(seed + 10_000 * request.config.getoption("--seed-shift"))


# Sites inside loops: their markers have time axes in front.

CARRIES = {
    "none": lambda c, z: c,
    "rows": lambda c, z: 0.5 * c + z,
    "replaced": lambda c, z: z,
    "mixing": lambda c, z: 0.5 * c + z.sum(),
    "swapped": lambda c, z: c[::-1] + z,
    "shifted": lambda c, z: jnp.concatenate([z[:1], c[:-1]]),
    "blocked": lambda c, z: jax.lax.stop_gradient(c) * 0.9 + jnp.where(z > 0, z, c),
}
OUTPUTS = {
    "own": lambda c, z, x: z * x,
    "before": lambda c, z, x: c,
    "both": lambda c, z, x: c * z,
    "sum": lambda c, z, x: (c + z).sum(),
    "reversed": lambda c, z, x: z[::-1] * x,
    "nothing": lambda c, z, x: x,
}
AFTER = {
    "plain": lambda ys, c: ys,
    "cumulative": lambda ys, c: jnp.cumsum(ys, 0),
    "flipped": lambda ys, c: ys[::-1],
    "transposed": lambda ys, c: ys.T,
    "carry": lambda ys, c: c,
    "with carry": lambda ys, c: ys + c if ys.ndim == 2 else ys * c.sum(),
    "second loop": lambda ys, c: jax.lax.scan(lambda c, y: (c + y, c), 0.0 * ys[0], ys)[1],
    "backwards": lambda ys, c: jax.lax.scan(lambda c, y: (c + y, c), 0.0 * ys[0], ys, reverse=True)[
        1
    ],
}
STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("carry", CARRIES)
def test_claims_of_sites_in_a_loop_hold(carry, reverse):
    """Every output of the step, in every use after the loop."""

    def fn(values):
        def step(c, x):
            z = site(x)
            return CARRIES[carry](c, z), [f(c, z, 1.5) * jnp.ones(()) for f in OUTPUTS.values()]

        c, ys = jax.lax.scan(step, jnp.ones(2), values, reverse=reverse)
        return [after(y, c) for y in ys for after in AFTER.values()]

    assert_claims_hold(
        fn,
        (STEPS, 2),
        about=f"{carry}, reverse {reverse}: {[(o, a) for o in OUTPUTS for a in AFTER]}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["outer", "inner", "both rows"])
def test_claims_of_sites_in_nested_loops_hold(where):
    """(outer time, inner time, rows) for a site of the inner loop, (outer time, rows) for one of the outer."""

    def fn(values):
        def outer(c, x):
            if where == "outer":
                x = site(x)

            def inner(d, y):
                if where != "outer":
                    y = site(y)
                mixed = y.sum() if where == "both rows" else y
                return 0.5 * d + mixed, d * y

            rows = jnp.stack([x, 2 * x]) if where == "outer" else x
            d, ys = jax.lax.scan(inner, c, rows)
            return d, (ys, d + c)

        c, (ys, ds) = jax.lax.scan(outer, jnp.ones(2), values)
        return ys, ds, c, jnp.cumsum(ds, 0), ys.sum(1), ys.sum(2)

    shape = (STEPS, 2) if where == "outer" else (STEPS, 2, 2)
    assert_claims_hold(fn, shape, about=where)


@pytest.mark.slow
def test_claims_of_sites_in_lanes_of_a_loop_hold():
    """Vmap around the loop (`ppl.particles` around `ppl.scan`): times first, then lanes, then rows."""

    def fn(values):
        def lane(v):
            return jax.lax.scan(lambda c, x: (c + site(x), c * 2), jnp.ones(2), v)

        c, ys = jax.vmap(lane)(values)
        return c, ys, ys.sum(1), jnp.swapaxes(ys, 0, 1)

    assert_claims_hold(fn, (STEPS, 4, 2), value_shape=(4, STEPS, 2), about="lanes of a loop")


def test_claims_of_sites_in_branches_hold():
    def fn(values):
        def branch(v):
            return jnp.tanh(site(v)) * 2

        out = jax.lax.cond(values.sum() >= 0, branch, lambda v: v, values)
        return out, out.sum(0), jnp.cumsum(out, 1)

    assert_claims_hold(fn, (2, 3), about="branch")


BY_ROW = {
    "unstack": lambda z: sum(jnp.unstack(z, axis=1)),
    "columns in turn": lambda z: [jnp.sin(column) for column in z.T][1],
    "stacked and taken apart": lambda z: tuple(jax.nn.softplus(jnp.stack([z, 2 * z])))[1],
    "tile": lambda z: jnp.tile(z, (1, 2)),
    "repeat": lambda z: jnp.repeat(z, 2, axis=1),
    "set": lambda z: z.at[:, 0].set(z[:, 1]),
    "add": lambda z: z.at[:, jnp.array([0, 2])].add(z[:, :2]),
    "largest": lambda z: z.at[..., 1:].max(0.5),
    "set by row": lambda z: jax.vmap(lambda r, i: r.at[i].set(r[0]))(z, jnp.arange(4) % 3),
    "pool": lambda z: jax.lax.reduce_window(z, 0.0, jax.lax.add, (1, 2), (1, 1), "VALID"),
    "fft": lambda z: jnp.fft.rfft(z, axis=1).real,
    "log2": lambda z: jnp.log2(jnp.exp2(z)),
    "lookup": lambda z: jnp.take_along_axis(z, (jnp.arange(4) % 3)[:, None], axis=1),
    "interp": lambda z: jnp.interp(z, jnp.arange(3.0), jnp.arange(3.0) ** 2),
    "digitize": lambda z: jnp.digitize(z, jnp.arange(3.0)) + 0 * z[..., :1].astype(int),
    "outer": lambda z: jax.vmap(jnp.outer)(z, z),
    "one hot": lambda z: jax.nn.one_hot(z[:, 0].astype(int), 3),
    "pieces": lambda z: jnp.piecewise(z, [z > 0], [jnp.sin, jnp.cos]),
    "select": lambda z: jnp.select([z > 1, z > 0], [z, 2 * z], 0.0),
    "columns of a loop": lambda z: jax.lax.fori_loop(0, 3, lambda i, a: a + z[:, i], jnp.zeros(4)),
    "quantile": lambda z: jnp.quantile(z, 0.3, axis=1),
}


def test_what_is_done_row_by_row_keeps_rows_apart():
    """The other side: no operation within a row makes rows meet, so that they are summed one by one."""
    _, relations, shapes = claims(
        lambda x: [f(site(x)) for f in BY_ROW.values()], jnp.zeros((4, 3))
    )
    by_name = zip(BY_ROW, relations, shapes, strict=True)
    joined = [f"{n}: {r[0].why}" for n, r, _ in by_name if r[0].kind != "aligned"]
    assert not joined


def test_the_check_finds_a_wrong_claim(monkeypatch):
    """Broken on purpose: a rule that keeps rows in place under a flip."""
    from lapilli.ppl.jaxprs import _axis_rules

    monkeypatch.setitem(_axis_rules.RULES, "rev", lambda eqn, operands: [operands[0]])
    with pytest.raises(AssertionError, match="moves"):
        assert_claims_hold(lambda x: site(x)[::-1] * 2, (3,), about="flip")
