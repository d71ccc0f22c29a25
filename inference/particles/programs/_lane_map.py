"""Run one traced function in many lanes with one stream of random numbers.

`jax.vmap` over split keys hashes once per lane to make the keys and again to use them. Here a random key that all lanes
share stays one key, a *stream*, as long as it is only folded, split and indexed; where bits are drawn, the bits of all lanes
are drawn at once with a leading lane axis. Where anything else happens to a key (a loop over keys, an operation with a
lane's own number) each lane gets a key derived from the stream and its number. Lanes are independent either way.

Terms: a value is *shared* (equal in all lanes), a *lane* value (leading lane axis) or a *stream* (a key, no lane axis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ....ppl._compat import CALLS, JITS, ClosedJaxpr, Literal, bind
from ....ppl._jaxprs import inner_jaxpr
from ....ppl._keys import FOLD_ADDRESS
from ..population import Batch, in_batches

Array = jax.Array
SHARED, LANE, STREAM = "shared", "lane", "stream"
# Operations on keys that move keys without looking into them.
SHAPES = frozenset(
    "slice squeeze reshape broadcast_in_dim transpose concatenate dynamic_slice gather rev copy expand_dims".split()
)
SALT = 0x6C616E65
OPENED = JITS | {"closed_call", "core_call"}


class Values:
    """Variables of a jaxpr with their values and kinds."""

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes = num_lanes
        self.of: dict[Any, Any] = {}
        self.kinds: dict[Any, str] = {}

    def set(self, variables: Sequence[Any], values: Sequence[Any], kinds: Sequence[str]) -> None:
        """Give variables their values and kinds."""
        self.of.update(zip(variables, values, strict=True))
        self.kinds.update(zip(variables, kinds, strict=True))

    def value(self, atom: Any) -> Any:
        """The value of a variable or literal."""
        return atom.val if isinstance(atom, Literal) else self.of[atom]

    def kind(self, atom: Any) -> str:
        """The kind of a variable or literal."""
        return SHARED if isinstance(atom, Literal) else self.kinds[atom]

    def as_lanes(self, atom: Any) -> Any:
        """The value with a lane axis."""
        value, kind = self.value(atom), self.kind(atom)
        if kind == LANE:
            return value
        if kind == STREAM:
            return own_keys(value, self.num_lanes)
        return jnp.broadcast_to(value, (self.num_lanes, *jnp.shape(value)))


def own_keys(stream: Array, num_lanes: int) -> Array:
    """A key per lane, [lanes, *stream.shape]."""
    # Salted: fold_in(key, lane) may equal split(key)[lane], which a program may use itself.
    over_shape = lambda key, lane: jax.random.fold_in(jax.random.fold_in(key, SALT), lane)
    for _ in range(stream.ndim):
        over_shape = jax.vmap(over_shape, (0, None))
    return jax.vmap(over_shape, (None, 0))(stream, jnp.arange(num_lanes))


def run(eqns: Sequence[Any], values: Values) -> None:
    """Run equations; `values` gains their results."""
    waiting: list[Any] = []
    held: set[Any] = set()

    def flush() -> None:
        if waiting:
            _run_lanes(list(waiting), values)
            waiting.clear()
            held.clear()

    for eqn in eqns:
        names = [v for v in eqn.invars if not isinstance(v, Literal)]
        if any(v not in held and values.kinds[v] == STREAM for v in names):
            flush()
            _run_stream(eqn, values)
        elif any(v in held or values.kinds[v] == LANE for v in names):
            waiting.append(eqn)  # runs of lane equations are mapped as one function
            held.update(eqn.outvars)
        else:
            outs = bind(eqn, [values.value(v) for v in eqn.invars])
            values.set(eqn.outvars, outs, [SHARED] * len(outs))
    flush()


def _run_lanes(eqns: list[Any], values: Values) -> None:
    defined = [v for eqn in eqns for v in eqn.outvars]
    inner = set(defined)
    inputs = list(
        dict.fromkeys(
            v
            for eqn in eqns
            for v in eqn.invars
            if not isinstance(v, Literal) and v not in inner and values.kinds[v] == LANE
        )
    )

    def lane(own: list[Any]) -> list[Any]:
        env = dict(zip(inputs, own, strict=True))
        for eqn in eqns:
            args = [
                v.val if isinstance(v, Literal) else env[v] if v in env else values.of[v]
                for v in eqn.invars
            ]
            env.update(zip(eqn.outvars, bind(eqn, args), strict=True))
        return [env[v] for v in defined]

    outs = jax.vmap(lane)([values.of[v] for v in inputs])
    values.set(defined, outs, [LANE] * len(defined))


def _moves_keys(eqn: Any) -> bool:
    """Whether an equation makes keys of keys."""
    name = eqn.primitive.name
    return name in ("random_split", "random_fold_in", *SHAPES) or (
        name in OPENED and eqn.params.get("name") == FOLD_ADDRESS
    )


def _run_stream(eqn: Any, values: Values) -> None:
    """One equation that meets a stream."""
    name = eqn.primitive.name
    kinds = [values.kind(v) for v in eqn.invars]
    args = [values.value(v) for v in eqn.invars]
    if name == "random_bits":
        shape = tuple(eqn.params["shape"])
        bits = eqn.primitive.bind(args[0], **{**eqn.params, "shape": (values.num_lanes, *shape)})
        values.set(eqn.outvars, [jnp.moveaxis(bits, args[0].ndim, 0)], [LANE])
    elif _moves_keys(eqn) and LANE not in kinds:
        values.set(eqn.outvars, bind(eqn, args), [STREAM] * len(eqn.outvars))
    elif name in OPENED:
        inner = eqn.params[CALLS[name]]
        jaxpr = inner_jaxpr(inner)
        assert jaxpr is not None
        below = Values(values.num_lanes)
        consts = inner.consts if isinstance(inner, ClosedJaxpr) else []
        below.set(jaxpr.constvars, consts, [SHARED] * len(consts))
        below.set(jaxpr.invars, args, kinds)
        run(jaxpr.eqns, below)
        outs = [below.value(v) for v in jaxpr.outvars]
        values.set(eqn.outvars, outs, [below.kind(v) for v in jaxpr.outvars])
    else:
        keyed = [
            values.as_lanes(v) if k == STREAM else a
            for v, k, a in zip(eqn.invars, kinds, args, strict=True)
        ]
        axes = [None if k == SHARED else 0 for k in kinds]
        outs = jax.vmap(lambda *own: bind(eqn, list(own)), axes)(*keyed)
        values.set(eqn.outvars, outs, [LANE] * len(outs))


def map_lanes(
    fn: Callable[..., Any], num_lanes: int, batch_size: int | None = None
) -> Callable[..., Any]:
    """`fn(key, *args)` in every lane: arguments and results have a leading lane axis, `key` is one key for all.

    Args:
        fn: function of one lane; shared values it closes over.
        num_lanes: number of lanes.
        batch_size: lanes run at once, the batches one after the other; None for all.
    """

    def together(args: Any, batch: Batch, key: Array) -> Any:
        shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x))
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(key, *jax.tree.map(shape, args))
        leaves = jax.tree.leaves(args)
        kinds = [STREAM, *[LANE] * len(leaves)]
        outs = run_closed(closed, [batch.stream(key), *leaves], kinds, batch.size)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    if not batch_size:
        return lambda key, *args: together(args, Batch(num_lanes, None), key)
    batched = in_batches(together, num_lanes, batch_size)
    return lambda key, *args: batched(args, key)


def run_closed(
    closed: ClosedJaxpr, inputs: Sequence[Any], kinds: Sequence[str], num_lanes: int
) -> list[Any]:
    """Results of a closed jaxpr, all with a lane axis."""
    values = Values(num_lanes)
    values.set(closed.jaxpr.constvars, closed.consts, [SHARED] * len(closed.consts))
    values.set(closed.jaxpr.invars, inputs, kinds)
    run(closed.jaxpr.eqns, values)
    return [values.as_lanes(v) for v in closed.jaxpr.outvars]
