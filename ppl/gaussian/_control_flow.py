"""Scans and branches of a lifted program, with the belief carried along.

A scan whose steps add to the basis or condition it hands on the belief of the values that the next step, or what follows the
scan, reads. One that does not hands on the coefficients of its values in the basis as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .._compat import no_handlers, scan_counts
from ..traces import cond, scan
from ._arranged import Shaped, unit_forms
from ._belief import Belief, known, no_belief
from ._forms import Beyond, Form, RowsMeet, is_certain
from ._lift import holds_statement

if TYPE_CHECKING:
    from ._integrator import Integrator

Array = jax.Array
Kind = Any  # of a value: None (certain), the axes of its rows (a form), or Beyond


def _kind(value: Any) -> Kind:
    return value.rows if isinstance(value, Form) else value if isinstance(value, Beyond) else None


def _joined(a: Kind, b: Kind) -> Kind:
    """What a value is that may be either."""
    if a is None or a == b:
        return b
    if b is None:
        return a
    return a if isinstance(a, Beyond) else b if isinstance(b, Beyond) else Beyond("different rows")


class _Scan:
    """One scan of a lifted program."""

    def __init__(self, outer: Integrator, eqn: Any, args: list[Any]) -> None:
        self.outer, self.eqn, self.body = outer, eqn, eqn.params["jaxpr"]
        num_consts, num_carry = scan_counts(eqn.params)
        self.consts, self.init = args[:num_consts], args[num_consts : num_consts + num_carry]
        self.xs = args[num_consts + num_carry :]
        self.has_statements = holds_statement(eqn)
        self.has_slices = True  # as long as no step changes the basis
        # What later steps or later statements read besides the carry, by id.
        self.kept = dict(outer._live())
        self.kept.update({id(x): x for x in self.consts if isinstance(x, Form)})
        self.kinds = [_kind(x) for x in self.init]
        self.y_kinds: list[Kind] = []
        self.out_kinds: list[Kind] = []
        self.rows = tuple(() if outer.belief is None else outer.belief.mean.shape[:-1])
        self.is_changed = self._explore()
        if self.is_changed and any(isinstance(x, Form) for x in self.xs):
            self.has_slices = False
            self.kinds = [_kind(x) for x in self.init]
            self._explore()

    def _explore(self) -> bool:
        """Find which carried values are uncertain; whether the belief changes within the steps."""
        num_carry = len(self.init)
        while True:
            probe = self.outer.inner(is_dry=True)

            def run(probe: Integrator = probe) -> None:
                carry, kept = self._opened(probe)
                if probe.belief is None and self.outer.belief is not None:
                    probe.belief = no_belief(self.rows)  # of slices of what stands outside
                xs = [self._first(x) for x in self.xs]
                outs = self._step(probe, carry, kept, xs)
                self.out_kinds = [_kind(x) for x in outs]

            with no_handlers():
                jax.eval_shape(run)
            self.outer.rows = probe.rows
            if probe.belief is not None:
                self.rows = tuple(probe.belief.mean.shape[:-1])
            found = self.out_kinds
            joined = [_joined(a, b) for a, b in zip(self.kinds, found[:num_carry], strict=True)]
            if joined == self.kinds:
                self.y_kinds = found[num_carry:]
                return probe.has_changed
            self.kinds = joined

    def _first(self, x: Any) -> Any:
        if isinstance(x, Beyond):
            return x
        if isinstance(x, Form) and self.has_slices:
            return Form(x.const[0], x.coefs[:0, 0], _rows_of_step(x.rows))
        if isinstance(x, Form):
            return Beyond(
                "a scan over sites outside of it", "Draw the site of each step inside of the step."
            )
        return x[0]

    def _step(
        self, inner: Integrator, carry: list[Any], kept: dict[int, Form], xs: list[Any]
    ) -> list[Any]:
        consts = [kept.get(id(x), x) for x in self.consts]
        inner.open.append((kept, set(kept)))
        return inner.settled(inner.run(self.body, [*consts, *carry, *xs]))

    def _handed_on(self) -> list[Shaped]:
        """The uncertain values that are handed on."""
        invars = self.body.jaxpr.invars[len(self.consts) :]
        carried = [
            Shaped(v.aval.shape, v.aval.dtype, kind)
            for v, kind in zip(invars, self.kinds, strict=False)
            if isinstance(kind, tuple)
        ]
        return [*carried, *map(Shaped.of, self.kept.values())]

    def _opened(
        self, inner: Integrator, carry: Sequence[Any] | None = None, belief: Belief | None = None
    ) -> tuple[list[Any], dict[int, Form]]:
        """The carried values and those kept, in a step; the belief of the step is that of them all."""
        forms = unit_forms(self._handed_on())
        if forms:
            size = forms[0].coefs.shape[0]
            inner.belief = known(jnp.zeros((*self.rows, size))) if belief is None else belief
        certain = iter(self._certain(self.init) if carry is None else carry)
        uncertain = iter(forms)
        values = [
            next(uncertain)
            if isinstance(k, tuple)
            else k
            if isinstance(k, Beyond)
            else next(certain)
            for k in self.kinds
        ]
        return values, dict(zip(self.kept, uncertain, strict=True))

    def _certain(self, values: Sequence[Any]) -> list[Any]:
        return [x for x, k in zip(values, self.kinds, strict=False) if k is None]

    def run(self) -> list[Any]:
        """The results of the scan."""
        return self._filtered() if self.is_changed else self._pushed()

    def _filtered(self) -> list[Any]:
        """With the belief carried: of what is handed on, in one vector."""
        outer, num_carry = self.outer, len(self.init)
        start = self._closed(outer, self.init, self.kept) if self._handed_on() else None
        xs = [None if not is_certain(x) else x for x in self.xs]

        def step(carry: Any, x: Any) -> Any:
            certain, belief = carry
            inner = outer.inner()
            values, kept = self._opened(inner, certain, belief)
            given = [
                self._first(old) if new is None else new
                for old, new in zip(self.xs, x, strict=True)
            ]
            outs = self._step(inner, values, kept, given)
            belief = self._closed(inner, outs[:num_carry], kept) if self._handed_on() else None
            ys = [y for y in outs[num_carry:] if is_certain(y)]
            return (self._certain(outs[:num_carry]), belief), ys

        init = [jnp.asarray(x) for x in self._certain(self.init)]
        (certain, belief), ys = scan(step, (init, start), xs, self.eqn.params["length"])
        outer.has_changed, outer.belief = True, belief
        values, kept = self._opened(outer, certain, belief)
        outer._replace(kept)
        return [*values, *self._stacked(ys)]

    def _closed(self, inner: Integrator, values: Sequence[Any], kept: dict[int, Form]) -> Belief:
        """The belief of what is handed on."""
        carried = [x for x, k in zip(values, self.kinds, strict=False) if isinstance(k, tuple)]
        forms = []
        for value, (shape, dtype, rows) in zip(
            [*carried, *kept.values()], self._handed_on(), strict=True
        ):
            if is_certain(value):  # at the start, or set anew
                value = Form(jnp.asarray(value, dtype), jnp.zeros((0, *shape), dtype), rows)
            forms.append(value)
        if inner.belief is None:
            inner.belief = no_belief(self.rows)
        return inner._law_of(forms, is_square=True)

    def _stacked(self, ys: Sequence[Any]) -> list[Any]:
        found = iter(ys)
        lost = Beyond(
            "a scan, whose steps are put together",
            "Make the statement inside of the step, one for each (ppl.scan over the data).",
        )
        return [
            next(found) if k is None else k if isinstance(k, Beyond) else lost for k in self.y_kinds
        ]

    def _pushed(self) -> list[Any]:
        """With the basis as it is: the steps are affine maps of it."""
        outer, num_carry = self.outer, len(self.init)
        columns = outer._size()
        kinds = [*self.kinds, *self.y_kinds]

        def arrays(values: Sequence[Any], kinds: Sequence[Kind]) -> list[Any]:
            return [
                _pair(x, columns) if isinstance(k, tuple) else None if isinstance(k, Beyond) else x
                for x, k in zip(values, kinds, strict=True)
            ]

        def values(arrays: Sequence[Any], kinds: Sequence[Kind]) -> list[Any]:
            return [
                Form(x[0], x[1], k) if isinstance(k, tuple) else k if isinstance(k, Beyond) else x
                for x, k in zip(arrays, kinds, strict=True)
            ]

        def step(carry: Any, x: Any) -> Any:
            inner = outer.inner()
            inner.belief = outer.belief
            given = []
            for old, new in zip(self.xs, x, strict=True):
                is_form = isinstance(old, Form)
                given.append(
                    Form(new[0], new[1], _rows_of_step(old.rows))
                    if is_form
                    else old
                    if new is None
                    else new
                )
            outs = inner.run(self.body, [*self.consts, *values(carry, self.kinds), *given])
            made = arrays(outs, kinds)
            return made[:num_carry], made[num_carry:]

        init = arrays(self.init, self.kinds)
        in_steps = lambda x: (x.const, jnp.moveaxis(x.coefs, 1, 0)) if isinstance(x, Form) else x
        xs = [None if isinstance(x, Beyond) else in_steps(x) for x in self.xs]
        if self.has_statements:
            carry, ys = scan(step, init, xs, self.eqn.params["length"])
        else:
            how = {name: self.eqn.params[name] for name in ("length", "reverse")}
            carry, ys = jax.lax.scan(step, init, xs, **how)
        found = []
        for y, kind in zip(ys, self.y_kinds, strict=True):
            if isinstance(kind, tuple):
                rows = tuple(a + 1 for a in kind)
                y = Form(y[0], jnp.moveaxis(y[1], 1, 0), rows)
            found.append(kind if isinstance(kind, Beyond) else y)
        return [*values(carry, self.kinds), *found]


def _rows_of_step(rows: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of rows in one step of what is scanned over."""
    for number, axis in enumerate(rows):
        if axis == 0:
            raise RowsMeet.along(number)
    return tuple(axis - 1 for axis in rows)


def _pair(value: Any, columns: int) -> tuple[Array, Array]:
    """Constant and coefficients of a value."""
    if isinstance(value, Form):
        return value.const, value.wide(columns)
    value = jnp.asarray(value)
    return value, jnp.zeros((columns, *value.shape), value.dtype)


def run_scan(outer: Integrator, eqn: Any, args: list[Any]) -> list[Any]:
    """The results of a scan."""
    return _Scan(outer, eqn, args).run()


def run_cond(outer: Integrator, eqn: Any, args: list[Any]) -> list[Any]:
    """The results of a choice between branches, which hold no statement that meets the sites.

    Raises:
        ValueError: one does.
    """
    which, operands = args[0], args[1:]
    branches, has_statements = eqn.params["branches"], holds_statement(eqn)
    kinds: list[Kind] = [None] * len(eqn.outvars)
    for branch in branches:
        probe = outer.inner(is_dry=True)
        probe.belief = outer.belief
        outs: list[Any] = []

        def run(branch: Any = branch, probe: Integrator = probe, outs: list[Any] = outs) -> None:
            outs.extend(_kind(x) for x in probe.run(branch, operands))

        with no_handlers():
            jax.eval_shape(run)
        if probe.has_changed or not is_certain(which) and has_statements:
            raise ValueError(
                f"{outer.label}: a statement in a branch of ppl.cond meets the sites {list(outer.names)}, or chooses the "
                "branch by them. Write it with jnp.where outside of the branches, or keep these sites as choices."
            )
        kinds = [_joined(a, b) for a, b in zip(kinds, outs, strict=True)]
    if not is_certain(which):
        return [Beyond("a branch chosen by it")] * len(kinds)
    columns = outer._size()

    def taken(branch: Any) -> Callable[[], Any]:
        def fn() -> list[Any]:
            inner = outer.inner()
            inner.belief = outer.belief
            outs = inner.run(branch, operands)
            return [
                _pair(x, columns) if isinstance(k, tuple) else None if isinstance(k, Beyond) else x
                for x, k in zip(outs, kinds, strict=True)
            ]

        return fn

    fns = [taken(b) for b in branches]
    if has_statements:
        outs = cond(jnp.asarray(which, bool), fns[1], fns[0])
    else:
        outs = jax.lax.switch(which, fns)
    return [
        Form(x[0], x[1], k) if isinstance(k, tuple) else k if isinstance(k, Beyond) else x
        for x, k in zip(outs, kinds, strict=True)
    ]
