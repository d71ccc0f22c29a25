"""Run one traced function for many particles with one stream of random numbers.

`jax.vmap` over split keys hashes once per particle to make the keys and again to use them. Here a random key that all particles
share stays one key, a *stream*, as long as it is only folded, split and indexed; where bits are drawn, the bits of all are drawn
at once with a leading particle axis. Where anything else happens to a key (a loop over keys, an operation with a particle's own
number) each particle gets a key derived from the stream and its number. Particles are independent either way.

Terms: a value is *shared* (equal for all), of each *particle* (leading particle axis) or a *stream* (a key, no particle axis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import JITS, Atom, ClosedJaxpr, Equation, Literal, Var, bind
from ....ppl._types import Key
from ....ppl.jaxprs import Interpreter, called
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


def own_keys(stream: Array, num_particles: int) -> Array:
    """A key per particle, [particles, *stream.shape]."""
    # Salted: fold_in(key, k) may equal split(key)[k], which a program may use itself.
    over_shape = lambda key, k: jax.random.fold_in(jax.random.fold_in(key, SALT), k)
    for _ in range(stream.ndim):
        over_shape = jax.vmap(over_shape, (0, None))
    return jax.vmap(over_shape, (None, 0))(stream, jnp.arange(num_particles))


class Value(NamedTuple):
    """A value and its kind."""

    kind: str
    array: Any


AHEAD = Value(PARTICLE, None)  # of particles, and not computed yet


class Particles(Interpreter):
    """A program run for all particles at once; the values in its environment are `Value`s.

    Args:
        closed: the program.
        inputs: values of its inputs; those beyond are not known yet.
        kinds: theirs.
        num_particles: how many.
    """

    def __init__(
        self,
        closed: ClosedJaxpr,
        inputs: Sequence[PyTree],
        kinds: Sequence[str],
        num_particles: int,
    ) -> None:
        super().__init__(closed, {})
        self.num_particles = num_particles
        self.set(closed.jaxpr.constvars, closed.consts, [SHARED] * len(closed.consts))
        self.set(closed.jaxpr.invars[: len(inputs)], inputs, kinds)

    def set(self, variables: Sequence[Var], values: Sequence[PyTree], kinds: Sequence[str]) -> None:
        """Give variables their values and kinds."""
        for variable, value, kind in zip(variables, values, kinds, strict=True):
            self.env[variable] = Value(kind, value)

    def read(self, atom: Atom) -> Value:
        return Value(SHARED, atom.val) if isinstance(atom, Literal) else self.env[atom]

    def value(self, atom: PyTree) -> PyTree:
        """The value of a variable or literal, with a particle axis if it is of particles."""
        return self.read(atom).array

    def kind(self, atom: Atom) -> str:
        """The kind of a variable or literal."""
        return self.read(atom).kind

    def per_particle(self, atom: Atom) -> Array:
        """The value with a particle axis."""
        kind, array = self.read(atom)
        if kind == PARTICLE:
            return array
        if kind == STREAM:
            return own_keys(array, self.num_particles)
        return jnp.broadcast_to(array, (self.num_particles, *jnp.shape(array)))

    def run(self, eqns: Sequence[Equation]) -> None:
        # Equations of particles wait, to be mapped as one function: mapped one by one, each would move the particle axis of its
        # results to the front.
        waiting: list[Any] = []
        for eqn in eqns:
            kinds = {self.kind(v) for v in eqn.invars}
            if kinds <= {SHARED, PARTICLE} and PARTICLE in kinds:
                waiting.append(eqn)
                self.env.update(dict.fromkeys(eqn.outvars, AHEAD))
                continue
            if STREAM in kinds:
                self._run_particles(waiting)
                waiting = []
            super().run([eqn])
        self._run_particles(waiting)

    def _run_particles(self, eqns: list[Equation]) -> None:
        defined = [v for eqn in eqns for v in eqn.outvars]
        met = {v: self.env[v] for e in eqns for v in e.invars if not isinstance(v, Literal)}
        shared = {v: x.array for v, x in met.items() if x.kind == SHARED}
        own = {v: x.array for v, x in met.items() if x.kind == PARTICLE and x is not AHEAD}

        def particle(own: list[Array]) -> list[PyTree]:
            one = Interpreter(self.closed, shared | dict(zip(names, own, strict=True)))
            one.run(eqns)
            return [one.env[v] for v in defined]

        names = list(own)
        outs = jax.vmap(particle)(list(own.values())) if eqns else []
        self.set(defined, outs, [PARTICLE] * len(defined))

    def results(self, eqn: Equation, args: list[Value]) -> list[Value]:
        """What an equation makes of shared values and streams."""
        name, kinds = eqn.primitive.name, [x.kind for x in args]
        arrays = [x.array for x in args]
        if STREAM not in kinds:
            return [Value(SHARED, x) for x in bind(eqn, arrays)]
        if name == "random_bits":
            shape = (self.num_particles, *eqn.params["shape"])
            bits = eqn.primitive.bind(arrays[0], **{**eqn.params, "shape": shape})
            return [Value(PARTICLE, jnp.moveaxis(bits, arrays[0].ndim, 0))]
        if _moves_keys(eqn) and PARTICLE not in kinds:
            return [Value(STREAM, x) for x in bind(eqn, arrays)]
        if name in OPENED:
            return Particles(called(eqn), arrays, kinds, self.num_particles).outputs()
        streams = zip(eqn.invars, args, strict=True)
        keyed = [self.per_particle(v) if x.kind == STREAM else x.array for v, x in streams]
        axes = [None if kind == SHARED else 0 for kind in kinds]
        outs = jax.vmap(lambda *own: bind(eqn, list(own)), axes)(*keyed)
        return [Value(PARTICLE, x) for x in outs]


def _moves_keys(eqn: Equation) -> bool:
    """Whether an equation makes keys of keys."""
    name = eqn.primitive.name
    return name in ("random_split", "random_fold_in", *SHAPES) or (
        name in OPENED and eqn.params.get("name") == FOLD_ADDRESS
    )


def map_particles(
    fn: Callable[..., PyTree], num_particles: int, batch_size: int | None = None
) -> Callable[..., PyTree]:
    """`fn(key, *args)` for every particle: arguments and results have a leading particle axis, `key` is one key for all.

    Args:
        fn: function of one particle; shared values it closes over.
        num_particles: how many.
        batch_size: particles run at once, the batches one after the other; None for all.
    """

    def together(args: tuple[PyTree, ...], batch: Batch, key: Array) -> PyTree:
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
    closed: ClosedJaxpr, inputs: Sequence[Key], kinds: Sequence[str], num_particles: int
) -> list[Array]:
    """Results of a closed jaxpr, all with a particle axis."""
    run = Particles(closed, inputs, kinds, num_particles)
    run.outputs()
    return [run.per_particle(v) for v in closed.jaxpr.outvars]
