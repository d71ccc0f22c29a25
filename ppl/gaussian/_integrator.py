"""Running a lifted program with Gaussian sites integrated out.

Values stay affine in what is believed of the sites (`_forms.py`, `beliefs`). A site to be integrated adds noise to the basis;
a statement whose law depends on the sites is given its law under the belief, and its value conditions the belief: Kalman's
filter, in the order in which the program runs. All other statements are made as they stand. A `ppl.scan` carries the belief of
the values that its steps hand on.

    p(v) = prod_i p(v_i | v_<i),    v the statements that are left, in order
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree

from .._compat import CALLS, CUSTOM, ClosedJaxpr, Equation, bind, no_handlers
from .._precision import full_precision
from .._types import Key
from ..jaxprs import Interpreter, called, has_other_derivative, name_of
from ._approximate import at_points, is_smooth, linearised, mean_of
from ._arranged import flat, matrix_of, spread, unflat
from ._basis import Basis, PlateMeets
from ._forms import Beyond, Form, PointValues, RowsMeet, is_certain, propagate
from ._laws import JointNormal, made_plain
from ._lift import Statement, counting, holds_statement, last_reads, statement_p
from ._readings import Reading, loc_of, noise_of, reading_of
from ._refusals import check_scale, check_size, readable_loc
from .beliefs import Belief, Read, SmoothingRequest, no_belief
from .control_flow import run_cond, run_scan

Array = jax.Array
BESIDE, BESIDE_SCALE = " smoothed", " smoothed scale"  # names of sites beside others


class Emit(NamedTuple):
    """How statements are made.

    Attributes:
        is_dry: whether nothing is: values are zeros, to see which are uncertain.
        smoothing: what is asked for of the sites given everything, by sites beside them (`beliefs`); None: nothing.
        approximation: of means that are not affine, see `_approximate.py`; None: they are refused.
        parallel: whether all steps of a scan are filtered at once.
        collector: (integrator, how many numbers a step is handed, what the step has made or None) -> one that collects a step
            as affine maps (`_collector.py`).
    """

    is_dry: bool = False
    smoothing: SmoothingRequest | None = None
    approximation: str | None = None
    parallel: bool = False
    collector: Callable[[Integrator, int, dict[str, Array] | None], PyTree] | None = None


class Integrator(Basis):
    """One run of a lifted program.

    Attributes:
        has_changed: whether a statement added to the basis or conditioned it.
        made: the values of its statements, and what was made beside them, by name.
        is_read: of the equation that is run, which of its results a statement depends on.

    Args:
        label: for refusals.
        names: sites to integrate.
        joint: plates whose rows meet, so that they have one belief.
        emit: how statements are made.
    """

    def __init__(self, label: str, names: Sequence[str], joint: set[str], emit: Emit) -> None:
        super().__init__(joint)
        self.label, self.names, self.emit = label, names, emit
        self.has_changed = False
        self.found: set[str] = set()
        self.scales: dict[str, float | None] = {}
        self.numbers: dict[int, int] = {}  # of linearised equations, by id
        self.made: dict[str, PyTree] = {}
        self.is_read: Sequence[bool] = ()

    def inner(self, *, is_dry: bool = False) -> Integrator:
        """One that runs a body inside of this one's program, without a belief yet."""
        emit = self.emit._replace(is_dry=self.emit.is_dry or is_dry)
        inner = Integrator(self.label, self.names, self.joint, emit)
        inner.rows, inner.found, inner.scales = self.rows, self.found, self.scales
        inner.numbers = self.numbers
        return inner

    # Equations.

    def run(
        self, closed: ClosedJaxpr, args: Sequence[PyTree], is_read: Sequence[bool]
    ) -> list[PyTree]:
        """The values of a program's outputs.

        `is_read`: which of them a statement depends on afterwards.
        """
        body = _Body(self, closed, args, is_read)
        body.run(closed.jaxpr.eqns)  # all: statements count, whoever reads them
        return [body.read(v) for v in closed.jaxpr.outvars]

    def equation(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        """What an equation makes of values."""
        name, has_statements = eqn.primitive.name, holds_statement(eqn)
        try:
            if eqn.primitive is statement_p:
                args = self.settled(args)
                return [self._statement(*eqn.params["statement"].read(args[:-1]))]
            if not has_statements and all(map(is_certain, args)):
                return bind(eqn, args)
            if name == "scan" and (has_statements or not self.emit.approximation):
                return run_scan(self, eqn, self.settled(args))
            if name == "cond" and (has_statements or not self.emit.approximation):
                return run_cond(self, eqn, self.settled(args))
            if name in CUSTOM and has_other_derivative(eqn) and not self.emit.approximation:
                return [Beyond(name_of(eqn))] * len(eqn.outvars)
            is_whole = name in CUSTOM and self.emit.approximation and not has_other_derivative(eqn)
            if name in CALLS and not is_whole:
                return self.run(called(eqn), args, self.is_read)
            return self._propagated(eqn, args)
        except RowsMeet as met:
            raise self.meets(met.axis) from met

    def _propagated(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        """What an equation without statements makes of uncertain values."""
        is_free = not any(isinstance(x, PointValues | Beyond) for x in args)
        found = propagate(eqn, args) if is_free else []
        kind, belief = self.emit.approximation, self.belief
        if is_free and not (kind and any(isinstance(x, Beyond) for x in found)):
            return found
        beyond = next((x for x in args if isinstance(x, Beyond)), None)
        if beyond is not None or belief is None:
            return [beyond or Beyond(name_of(eqn))] * len(eqn.outvars)
        if kind == "ukf":
            self.belief = belief = belief.squared()
            return at_points(eqn, args, belief)
        if not is_smooth(eqn):
            return found
        forms = [x for x in args if isinstance(x, Form)]
        return linearised(eqn, args, belief, [self._point(eqn, i, x) for i, x in enumerate(forms)])

    def _point(self, eqn: Equation, operand: int, form: Form) -> Array:
        """Around which value of an operand an equation is linearised."""
        number = self.numbers.setdefault(id(eqn), len(self.numbers))
        return self._at_mean(f"{number} {operand} linearised", form)

    def _at_mean(self, name: str, form: Form) -> Array:
        """What a value is where the sites are believed to be."""
        assert self.belief is not None
        self.made[name] = mean = mean_of(form, self.belief)
        return mean

    # Statements.

    def _statement(self, statement: Statement, args: list[PyTree]) -> PyTree:
        if statement.treedef is None:
            if is_certain(args[0]) and not self.emit.is_dry:
                with statement.around(None):
                    numpyro.deterministic(statement.name, args[0])
            return args[0]
        count = statement.treedef.num_leaves
        leaves, rest = args[:count], args[count:]
        scale = rest.pop() if statement.has_scale else statement.scale
        obs = rest.pop() if statement.is_observed else None
        is_own = statement.name in self.names and not statement.is_observed
        is_touched = not all(map(is_certain, [*leaves, obs, scale]))
        if not (is_own or is_touched):
            fn = statement.law(leaves)
            with statement.around(scale):
                return self._made(statement, fn, obs)
        is_extended = self.emit.approximation == "ekf"
        loc = loc_of(statement.treedef)
        if is_extended and loc is not None and isinstance(leaves[loc], Form):
            leaves = [
                self._at_mean(f"{statement.name} {i} linearised", x)
                if isinstance(x, Form) and i != loc
                else x
                for i, x in enumerate(leaves)
            ]
        loc = readable_loc(self.label, statement, leaves, obs, scale, is_own, is_extended)
        fn = statement.law([x.const if isinstance(x, Form) else x for x in leaves])
        mean = spread(leaves[loc], fn.shape())
        # Missing cells go with what they depend on.
        is_imputed = bool(statement.infer.get("imputed")) and not statement.is_observed
        if is_own or is_imputed:
            value = self._integrated(statement, fn, mean)
        else:
            value = self._conditioned(statement, fn, mean, obs)
        check_scale(self.label, statement, self.scales, self.rows or ())
        return value

    def _made(self, statement: Statement, fn: PyTree, obs: PyTree) -> Array:
        if self.emit.is_dry:
            value = jnp.zeros(statement.aval.shape, statement.aval.dtype)
        else:
            value = jnp.asarray(numpyro.sample(statement.name, fn, obs=obs, infer=statement.infer))
        self.made[statement.name] = value
        return value

    @full_precision
    def _integrated(self, statement: Statement, fn: dist.Distribution, mean: ArrayLike) -> Form:
        """The value of a site that is integrated out: its mean and noise of its own."""
        self.found.add(statement.name)
        self.has_changed = True
        rows = self.rows_of(statement, fn)
        if isinstance(mean, Form) and mean.rows != rows:
            raise self.meets(0)
        dtype = statement.aval.dtype
        const = jnp.asarray(mean.const if isinstance(mean, Form) else mean, dtype)
        noise = noise_of(self._reading(fn), rows).root.astype(dtype)
        # x = mean + L u with u ~ N(0, 1) new numbers of the basis: the coefficients of the mean for the n old columns, and behind
        # them those of L, [size, *shape].
        start, size = self.size, noise.shape[-1]
        check_size(self.label, statement, start + size)
        if self.belief is None:
            self.belief = self.nothing(noise.shape[:-2])
        self.belief = self.belief.with_noise(size)
        own = unflat(jnp.moveaxis(noise, -1, 0), rows, const.shape)
        old = mean.wide(start) if isinstance(mean, Form) else jnp.zeros((start, *const.shape))
        value = Form(const, jnp.concatenate([old.astype(dtype), own]), rows)
        self._asked(statement, value)
        return self.rebased(value)

    @full_precision
    def _conditioned(
        self, statement: Statement, fn: dist.Distribution, mean: Form, obs: PyTree
    ) -> PyTree:
        """A statement whose mean is uncertain: its law given all before, and the belief given its value."""
        self.has_changed = True
        belief, rows, reading = self.belief, mean.rows, self._reading(fn)
        assert belief is not None
        # The observation x = c + A basis + noise: its law given all before is N(c + A m, seen seen' + noise noise'), where
        # seen = A root, [*rows, m, k]; NaN where rounding may have moved its mean by more than a part of its scale.
        noise, matrix = noise_of(reading, rows), matrix_of(mean, belief.size)
        belief = belief.whole()
        seen = belief.seen(matrix)
        loc = unflat(belief.at(flat(mean.const, rows), matrix), rows, mean.const.shape)
        law = JointNormal(loc, seen, noise, reading.cells, rows, belief.moved)
        is_known = belief.tells(law.meeting, matrix, noise)
        law.loc = jnp.where(unflat(is_known, rows, loc.shape), loc, jnp.nan)
        if self.emit.is_dry:
            value = self._made(statement, fn, obs)
        else:
            plain, dropped = made_plain(law, fn)
            with statement.around(statement.scale, dropped):
                value = self._made(statement, plain, obs)
        self.belief = belief.given(law.meeting, matrix, law.away(value - law.loc))
        return value

    def _reading(self, fn: PyTree) -> Reading:
        """The noise of a normal law; NaN where an expansion has made a scale negative."""
        reading = reading_of(fn)
        if self.emit.approximation is None or reading.joint is not None:
            return reading
        blocks = reading.blocks
        scales = blocks if reading.is_scale else jnp.diagonal(blocks, axis1=-2, axis2=-1)[..., None]
        return reading._replace(blocks=jnp.where(scales > 0, blocks, jnp.nan))

    def nothing(self, rows: tuple[int, ...]) -> Belief:
        """The belief of an empty basis."""
        smoothing = self.emit.smoothing
        later = None if smoothing is None else smoothing.start(rows)
        return dataclasses.replace(no_belief(rows), later=later)

    def _beside(self, statement: Statement, like: Array) -> Read | None:
        """The values of the sites that stand beside a statement, without density; None where there are none."""
        if self.emit.smoothing is None:
            return None
        names = [f"{statement.name}{BESIDE}", f"{statement.name}{BESIDE_SCALE}"]
        make = (
            (lambda _: jnp.zeros_like(like))
            if self.emit.is_dry
            else lambda name: _without_density(name, like)
        )
        found = Read(*map(make, names))
        self.made[names[0]] = found
        return found

    def _asked(self, statement: Statement, value: Form) -> None:
        """Let a site that is integrated be read by what stands beside it, once nothing else reads it."""
        beside = self._beside(statement, value.const)
        if beside is not None:
            self.asked.append((value, beside))


def _without_density(name: str, like: Array) -> Array:
    """A site that is given, of the shape of an array, and has no part in the density."""
    law = dist.Normal(jnp.zeros_like(like), 1.0).to_event(like.ndim).mask(False)
    return jnp.asarray(numpyro.sample(name, law))


def tried(
    make: Callable[[set[str]], Integrator], closed: ClosedJaxpr, args: Sequence[int]
) -> tuple[set[str], set[str]]:
    """The sites that a dry run of a program has met, and the plates whose rows meet in it.

    `make`: an integrator that makes nothing, given such plates.
    """
    joint: set[str] = set()
    found: set[str] = set()
    is_read = [False] * len(closed.jaxpr.outvars)

    def run() -> None:
        probe = make(joint)  # and its numbers stay inside
        probe.run(closed, args, is_read)
        found.update(probe.found)

    while True:
        try:
            with no_handlers():
                jax.eval_shape(lambda: run())  # of no cache
            return found, joint
        except PlateMeets as met:
            joint = joint | {met.name}


class _Body(Interpreter):
    """One program that an integrator runs: the whole, the body of a scan, a function called."""

    def __init__(
        self,
        integrator: Integrator,
        closed: ClosedJaxpr,
        args: Sequence[PyTree],
        is_read: Sequence[bool],
    ) -> None:
        super().__init__(closed, args)
        self.integrator, self.last, self.number = integrator, last_reads(closed.jaxpr), 0
        self.counts = counting(closed.jaxpr, is_read)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[Array | Beyond | Form | Key]:
        live = {v for v, n in self.last.items() if n > self.number and v in self.env}
        self.number += 1
        self.integrator.is_read = [v in self.counts for v in eqn.outvars]
        self.integrator.open.append((self.env, live))
        try:
            return self.integrator.equation(eqn, args)
        finally:
            self.integrator.open.pop()
