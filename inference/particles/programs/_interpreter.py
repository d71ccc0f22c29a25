"""Run one traced function for many particles with one stream of random numbers.

`jax.vmap` over split keys hashes once per particle to make the keys and again to use them. Here a random key that all particles
share stays one key, a *stream*, as long as it is only folded, split and indexed; where bits are drawn, the bits of all are drawn
at once with a leading particle axis. Where anything else happens to a key (a loop over keys, an operation with a particle's own
number) each particle gets a key derived from the stream and its number. Particles are independent either way.

Terms: a value is *shared* (equal for all), of each *particle* (leading particle axis) or a *stream* (a key, no particle axis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ....ppl._compat import CALLS, JITS, ClosedJaxpr, Jaxpr, Literal, bind
from ....ppl.jaxprs import inner_jaxpr
from ....ppl.traces import FOLD_ADDRESS
from ..population import Batch, in_batches

Array = jax.Array
SHARED, PARTICLE, STREAM = "shared", "particle", "stream"
# Operations on keys that move keys without looking into them.
SHAPES = frozenset(
    "slice squeeze reshape broadcast_in_dim transpose concatenate dynamic_slice gather rev copy expand_dims".split()
)
SALT = 0x6C616E65
OPENED = JITS | {"closed_call", "core_call"}


class Values:
    """Variables of a jaxpr with their values and kinds."""

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles
        self.of: dict[Any, Any] = {}
        self.kinds: dict[Any, str] = {}

    @classmethod
    def of_inputs(
        cls, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], kinds: Sequence[str], num_particles: int
    ) -> Values:  # fmt: skip
        """What a jaxpr starts with; inputs beyond `inputs` are not known yet."""
        values = cls(num_particles)
        values.set(jaxpr.constvars, consts, [SHARED] * len(consts))
        values.set(jaxpr.invars[: len(inputs)], inputs, kinds)
        return values

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

    def per_particle(self, atom: Any) -> Any:
        """The value with a particle axis."""
        value, kind = self.value(atom), self.kind(atom)
        if kind == PARTICLE:
            return value
        if kind == STREAM:
            return own_keys(value, self.num_particles)
        return jnp.broadcast_to(value, (self.num_particles, *jnp.shape(value)))


def own_keys(stream: Array, num_particles: int) -> Array:
    """A key per particle, [particles, *stream.shape]."""
    # Salted: fold_in(key, k) may equal split(key)[k], which a program may use itself.
    over_shape = lambda key, k: jax.random.fold_in(jax.random.fold_in(key, SALT), k)
    for _ in range(stream.ndim):
        over_shape = jax.vmap(over_shape, (0, None))
    return jax.vmap(over_shape, (None, 0))(stream, jnp.arange(num_particles))


def run(eqns: Sequence[Any], values: Values) -> None:
    """Run equations; `values` gains their results."""
    waiting: list[Any] = []
    held: set[Any] = set()

    def flush() -> None:
        if waiting:
            _run_particles(list(waiting), values)
            waiting.clear()
            held.clear()

    for eqn in eqns:
        names = [v for v in eqn.invars if not isinstance(v, Literal)]
        if any(v not in held and values.kinds[v] == STREAM for v in names):
            flush()
            _run_stream(eqn, values)
        elif any(v in held or values.kinds[v] == PARTICLE for v in names):
            waiting.append(eqn)  # runs of such equations are mapped as one function
            held.update(eqn.outvars)
        else:
            outs = bind(eqn, [values.value(v) for v in eqn.invars])
            values.set(eqn.outvars, outs, [SHARED] * len(outs))
    flush()


def _run_particles(eqns: list[Any], values: Values) -> None:
    defined = [v for eqn in eqns for v in eqn.outvars]
    inner = set(defined)
    inputs = list(
        dict.fromkeys(
            v
            for eqn in eqns
            for v in eqn.invars
            if not isinstance(v, Literal) and v not in inner and values.kinds[v] == PARTICLE
        )
    )

    def particle(own: list[Any]) -> list[Any]:
        env = dict(zip(inputs, own, strict=True))
        for eqn in eqns:
            args = [
                v.val if isinstance(v, Literal) else env[v] if v in env else values.of[v]
                for v in eqn.invars
            ]
            env.update(zip(eqn.outvars, bind(eqn, args), strict=True))
        return [env[v] for v in defined]

    outs = jax.vmap(particle)([values.of[v] for v in inputs])
    values.set(defined, outs, [PARTICLE] * len(defined))


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
        bits = eqn.primitive.bind(
            args[0], **{**eqn.params, "shape": (values.num_particles, *shape)}
        )
        values.set(eqn.outvars, [jnp.moveaxis(bits, args[0].ndim, 0)], [PARTICLE])
    elif _moves_keys(eqn) and PARTICLE not in kinds:
        values.set(eqn.outvars, bind(eqn, args), [STREAM] * len(eqn.outvars))
    elif name in OPENED:
        inner = eqn.params[CALLS[name]]
        jaxpr = inner_jaxpr(inner)
        assert jaxpr is not None
        consts = inner.consts if isinstance(inner, ClosedJaxpr) else []
        below = Values.of_inputs(jaxpr, consts, args, kinds, values.num_particles)
        run(jaxpr.eqns, below)
        outs = [below.value(v) for v in jaxpr.outvars]
        values.set(eqn.outvars, outs, [below.kind(v) for v in jaxpr.outvars])
    else:
        keyed = [
            values.per_particle(v) if k == STREAM else a
            for v, k, a in zip(eqn.invars, kinds, args, strict=True)
        ]
        axes = [None if k == SHARED else 0 for k in kinds]
        outs = jax.vmap(lambda *own: bind(eqn, list(own)), axes)(*keyed)
        values.set(eqn.outvars, outs, [PARTICLE] * len(outs))


def map_particles(
    fn: Callable[..., Any], num_particles: int, batch_size: int | None = None
) -> Callable[..., Any]:
    """`fn(key, *args)` for every particle: arguments and results have a leading particle axis, `key` is one key for all.

    Args:
        fn: function of one particle; shared values it closes over.
        num_particles: how many.
        batch_size: particles run at once, the batches one after the other; None for all.
    """

    def together(args: Any, batch: Batch, key: Array) -> Any:
        shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x))
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(key, *jax.tree.map(shape, args))
        leaves = jax.tree.leaves(args)
        kinds = [STREAM, *[PARTICLE] * len(leaves)]
        outs = run_closed(closed, [batch.stream(key), *leaves], kinds, batch.size)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    if not batch_size:
        return lambda key, *args: together(args, Batch(num_particles, None), key)
    batched = in_batches(together, num_particles, batch_size)
    return lambda key, *args: batched(args, key)


def run_closed(
    closed: ClosedJaxpr, inputs: Sequence[Any], kinds: Sequence[str], num_particles: int
) -> list[Any]:
    """Results of a closed jaxpr, all with a particle axis."""
    values = Values.of_inputs(closed.jaxpr, closed.consts, inputs, kinds, num_particles)
    run(closed.jaxpr.eqns, values)
    return [values.per_particle(v) for v in closed.jaxpr.outvars]
