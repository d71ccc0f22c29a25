"""The latent sites of a program as coordinates of R^d, and its log-density there."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import biject_to

from .... import ppl
from ....ppl._precision import full_precision
from ....ppl._quiet import quiet
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from ....ppl.densities import lost_digits
from ....ppl.evaluation import stacked
from ....ppl.jaxprs import work_of
from ....ppl.language import what_is_not_finite
from ....ppl.traces import stand_ins
from ..._arguments import Arguments, simulated
from ..._supports import supports_of
from ..data import RowBlocks

Array = jax.Array
_STEP = 5e-3  # of differences
_MOST_LABELS = 5  # that are permuted
_MANY = 1000  # points whose values are taken at once
_SMALL = 30_000  # numbers of data times points: of fewer, all calls together take less time than compiling well
_AT_ONCE = 8_000_000  # numbers of data times points that a compiled call holds
_WORK = 3e7  # numbers that the Hessians of all paths may touch at once
_USUAL = 30  # numbers that a density computes of each of its data, at most; programs that compute more count by what they do


class SiteLaw(NamedTuple):
    """What a guide needs of a site's law."""

    support: Constraint
    event_dim: int


class Space:
    """Unconstrained coordinates u [d] of the continuous latent sites of `program(*args)`, and log p(u, data).

    Args:
        program: its discrete sites summed out.
        args: its arguments; later ones must make sites of the same shapes.
        hidden: continuous sites that stay the model's own (missing cells): they have no coordinates, and cancel from the density.
        method: who asks, for messages.

    Attributes:
        shapes: latent site -> shape of its unconstrained value, by name, as in u.
        laws: latent site -> its support, and how many of its axes are of one event.
        transforms: latent site -> transform from there to its support.
        dimension: d.

    Raises:
        ValueError: a discrete latent site, or a support that depends on another draw.
    """

    def __init__(
        self, program: ppl.Program, args: tuple, hidden: tuple[str, ...] = (), method: str = "fit"
    ) -> None:
        self.program, self.method = program, method
        trace = simulated(program, args)
        values = {n: trace.choices[n] for n in sorted(trace.choices) if n not in hidden}
        discrete = [n for n, x in values.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
        if discrete:
            raise ValueError(
                f"{method}: sites {discrete} are discrete, and have no coordinates in R^d. Sum them out: "
                f"ppl.eliminate(model, {discrete})."
            )
        template: PyTree = {n: np.zeros(x.shape, x.dtype) for n, x in values.items()}
        supports = supports_of(method, program, args, template)
        self.laws = {n: SiteLaw(supports[n], len(trace.sites[n].event_shape)) for n in template}
        self.transforms = {n: biject_to(supports[n]) for n in template}
        self.shapes = {
            n: jax.eval_shape(self.transforms[n].inv, x).shape for n, x in template.items()
        }
        self.dimension = sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def names(self) -> list[str]:
        """A name for each coordinate, e.g. "beta[1]"."""
        return [
            f"{name}{list(at) if at else ''}"
            for name, shape in self.shapes.items()
            for at in np.ndindex(shape)
        ]

    def unravel(self, u: Array) -> dict[str, Array]:
        """The unconstrained values of the sites, of u [d]."""
        parts, begin = {}, 0
        for name, shape in self.shapes.items():
            end = begin + math.prod(shape)
            parts[name] = u[begin:end].reshape(shape)
            begin = end
        return parts

    def ravel(self, parts: Mapping[str, Array]) -> Array:
        """Its inverse."""
        return jnp.concatenate([jnp.ravel(parts[name]) for name in self.shapes])

    def choices(self, u: Array) -> dict[str, Array]:
        """The values of the sites, of u [d]."""
        return {name: self.transforms[name](x) for name, x in self.unravel(u).items()}

    def point(self, choices: Mapping[str, Array]) -> Array:
        """Its inverse."""
        return self.ravel({name: t.inv(choices[name]) for name, t in self.transforms.items()})

    def log_prob(self, u: Array, *args: PyTree) -> Array:
        """The log-density of u and the data, with the log-volume of the map to values, nats."""
        parts, choices = self.unravel(u), self.choices(u)
        # The key is of what stays the model's own, which has no share in the weight.
        _, total = self.program.generate(jax.random.key(0), choices, *args)
        for name, transform in self.transforms.items():
            total += jnp.sum(transform.log_abs_det_jacobian(parts[name], choices[name]))
        return total

    def draw(self, key: Array, *args: PyTree) -> Array:
        """A point to start from: a draw of the prior, whose laws without a sampler are uniform around 0."""
        with stand_ins():
            return self.point(self.program.simulate(key, *args).choices)

    def relabelled(self, u: np.ndarray, most: int = 6) -> list[np.ndarray]:
        """Points that differ by a permutation of labels, where sites have any: places to look for modes, and no more than that.

        Labels are places along axes of equal length K (means of a mixture), and sites whose names differ by their last number.
        """
        shapes = jax.eval_shape(self.choices, jax.ShapeDtypeStruct(u.shape, jnp.result_type(float)))
        families: dict[str, list[str]] = {}
        for name in sorted(shapes, key=lambda n: (len(n), n)):
            if (stem := name.rstrip("0123456789")) != name:
                families.setdefault(stem, []).append(name)
        sizes = {size for x in shapes.values() for size in x.shape}
        sizes |= {len(names) for names in families.values()}
        sizes = sorted(k for k in sizes if 2 <= k <= _MOST_LABELS)
        if not sizes:
            return []
        choices = {n: np.asarray(x) for n, x in self.choices(jnp.asarray(u, float)).items()}
        found = []
        for size in sizes:
            for order in list(itertools.permutations(range(size)))[1 : most + 1]:
                moved = {
                    n: x[np.ix_(*(order if k == size else range(k) for k in x.shape))]
                    for n, x in choices.items()
                }
                for names in families.values():
                    if len(names) == size:
                        values = [moved[n] for n in names]
                        if len({x.shape for x in values}) == 1:
                            moved |= {n: values[k] for n, k in zip(names, order, strict=True)}
                free = self.point({n: jnp.asarray(x) for n, x in moved.items()})
                if np.isfinite(free).all():
                    found.append(np.asarray(free, float))
        return found[:most]

    def what_breaks(self, u: np.ndarray, args: tuple) -> str | None:
        """The site whose log-density is not finite at u, and why, where that is known."""
        try:
            with quiet():  # NumPyro's, of what is said here
                choices = self.choices(jnp.asarray(u, float))
                trace, _ = self.program.generate(jax.random.key(0), choices, *args)
        except ValueError as err:
            return str(err)
        found = what_is_not_finite(trace, args)
        return found and found + lost_digits(self.program, choices, args, {})


class Landscape:
    """The log-density with its derivatives in compiled calls, in double precision outside of them; NaN counts as -inf.

    Args:
        space: the coordinates.
        args: the arguments.
        num_paths: points in a call of `derivatives`, at most; fewer where the Hessians of all would touch too many numbers.
        rows: of as many paths -> points in a call of `values`.
        size: numbers in the largest argument; of many, points come one after the other.
        blocks: of the rows that stand for all, if the arguments are not held as a whole: `args` are those of the first, and
            the space's program is scaled to all rows.
    """

    def __init__(
        self,
        space: Space,
        args: tuple,
        num_paths: int,
        rows: Callable[[int], int],
        size: int,
        blocks: RowBlocks | None = None,
    ) -> None:
        self.space, self._blocks = space, blocks
        split = Arguments(args)
        self._arrays = list(map(jax.device_put, split.arrays(args)))
        at_once = max(1, _AT_ONCE // max([100, *(x.size for x in self._arrays)]))
        template = np.zeros(space.dimension, jnp.result_type(float))

        def of_program(fn: Callable[..., Array]) -> Callable[..., Array]:
            short = stacked(lambda x, *arrays: [fn(x, *split.join(list(arrays)))])
            return lambda x, arrays: short(x, *arrays)[0]

        density, draw = of_program(space.log_prob), of_program(space.draw)
        work = work_of(jax.make_jaxpr(density)(template, self._arrays).jaxpr)
        blocks_of_rows = size / max([100, *(x.size for x in self._arrays)]) if blocks else 1
        # What is touched by a Hessian in each pair of coordinates.
        self.work = max(size, work * blocks_of_rows / _USUAL) * space.dimension**2
        self.num_paths = int(np.clip(_WORK / self.work, min(2, num_paths), num_paths))
        self.rows = rows(self.num_paths)
        is_small = self.rows * size <= _SMALL

        def derivatives(
            hessian: Callable[..., Array], center: Array, factor: Array, arrays: list[Array]
        ) -> tuple[Array, Array, Array]:
            @full_precision
            def moved(v: Array) -> Array:
                return center + factor @ v

            at = lambda v: density(moved(v), arrays)
            zero = jnp.zeros_like(center)
            value, gradient = jax.value_and_grad(at)(zero)
            return value, gradient, hessian(at, zero, at_once)

        def over(fn: Callable[..., PyTree], at_once: int) -> Callable[..., PyTree]:
            def run(points: PyTree, arrays: list[Array]) -> PyTree:
                if at_once >= len(jax.tree.leaves(points)[0]):
                    return jax.vmap(lambda point: fn(*point, arrays))(points)
                return jax.lax.map(lambda point: fn(*point, arrays), points, batch_size=at_once)

            return shared_jit(run, is_brief=is_small)

        self._value = over(density, at_once)
        flat = lambda u: [jnp.concatenate([jnp.ravel(x) for x in space.choices(u).values()])]
        self._choices = shared_jit(jax.vmap(stacked(flat)), is_brief=is_small)
        self._shapes = {n: x.shape for n, x in jax.eval_shape(space.choices, template).items()}
        few = max(1, at_once // space.dimension)
        self._derivatives = [
            over(functools.partial(derivatives, hessian), few)
            for hessian in (_hessian, _differences)
        ]
        self._draws = over(draw, at_once)

    @property
    def dtype(self) -> np.dtype:
        """The type in which values are computed: that of the program, or double where blocks of data are summed."""
        return np.dtype(float) if self._blocks else jnp.result_type(float)

    def values(self, u: np.ndarray, *, keep_nan: bool = False) -> np.ndarray:
        """Logarithms of p at points [n, d], nats."""
        (values,) = self._in_parts(lambda *x: (self._value(*x),), self.rows, u)
        return values if keep_nan else np.where(values < np.inf, values, -np.inf)

    def derivatives(self, center: np.ndarray, factor: np.ndarray) -> list[np.ndarray]:
        """Value [n], gradient [n, d] and Hessian [n, d, d] of v -> log p(center + factor v) at 0."""
        if len(self._derivatives) == 1:
            return self._in_parts(self._derivatives[0], self.num_paths, center, factor)
        try:
            found = self._in_parts(self._derivatives[0], self.num_paths, center, factor)
        except TypeError:  # a `jax.custom_vjp`, as of `odeint`, has no second derivative
            found = None
        if found is not None:
            is_known, is_whole = (np.isfinite(x).all(tuple(range(1, x.ndim))) for x in found[1:])
            # Second derivatives that do not exist, or are NaN where the first are not; at few points they overflow.
            if 4 * (is_known & ~is_whole).sum() <= len(center):
                return found
        del self._derivatives[0]
        return self.derivatives(center, factor)

    def _in_parts(
        self, fn: Callable[..., PyTree], rows: int, *inputs: np.ndarray, has_data: bool = True
    ) -> list[np.ndarray]:
        """`fn(inputs, arrays)` in calls of equally many rows, so that it is compiled once; its mean over blocks of data."""
        blocks = self._blocks if has_data and self._blocks else [(1.0, self._arrays)]
        parts = []
        for begin in range(0, len(inputs[0]), rows):
            part = [x[begin : begin + rows] for x in inputs]
            number = len(part[0])
            padded = [np.concatenate([x, np.repeat(x[:1], rows - number, 0)]) for x in part]
            parts.append((number, tuple(map(_single, padded))))
        total: list[np.ndarray] = []
        for share, arrays in blocks:  # each is read once, for all points
            outs = [
                [share * np.asarray(x)[:number].astype(float) for x in fn(points, arrays)]
                for number, points in parts
            ]
            whole = [np.concatenate(xs) for xs in zip(*outs, strict=True)]
            total = [t + x for t, x in zip(total, whole, strict=True)] if total else whole
        return total

    def choices(self, u: np.ndarray) -> dict[str, np.ndarray]:
        """The values of the sites at points [n, d]."""
        (flat,) = self._in_parts(lambda x, _: self._choices(*x), _MANY, u, has_data=False)
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(flat, ends[:-1], 1)
        return {
            name: x.reshape(len(u), *shape)
            for x, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    def draws(self, key: Key, number: int) -> np.ndarray:
        """Draws of the prior, [number, d]; those that are finite."""
        run = shared_jit(
            lambda key, arrays: self._draws((jax.random.split(key, number),), arrays), is_brief=True
        )
        u = np.asarray(run(key, self._arrays)).astype(float)
        return u[np.isfinite(u).all(1)]


def _single(x: np.ndarray) -> Array:
    with np.errstate(over="ignore"):  # a point that is too far has no density there
        return jax.device_put(np.asarray(x, jnp.result_type(float)))  # without a compiled program


def _hessian(fn: Callable[[Array], Array], x: Array, at_once: int) -> Array:
    """By forward over reverse mode; NaN where there is no forward mode (`custom_vjp`, of solvers of equations)."""
    gradient = jax.grad(fn)

    def column(direction: Array) -> Array:
        return jax.jvp(gradient, (x,), (direction,))[1]

    try:
        jax.eval_shape(column, x)
    except TypeError:
        return jnp.full((x.size, x.size), jnp.nan)
    if at_once >= x.size:
        return jax.vmap(column)(jnp.eye(x.size))
    return jax.lax.map(column, jnp.eye(x.size), batch_size=at_once)


def _differences(fn: Callable[[Array], Array], x: Array, at_once: int) -> Array:
    """The Hessian by central differences of the gradient."""
    gradient = jax.grad(fn)
    points = x + _STEP * jnp.concatenate([jnp.eye(x.size), -jnp.eye(x.size)])
    found = jax.lax.map(gradient, points, batch_size=min(at_once, len(points)))
    return (found[: x.size] - found[x.size :]) / (2 * _STEP)
