"""Scans and branches of a lifted program, with the belief carried along.

A scan whose steps add to the basis or condition it hands on the belief of the values that the next step, or what follows the
scan, reads; or the beliefs are found in parallel, and then all steps run at once. Where a statement reads the stacked values of
the steps, the noise of all steps is the basis afterwards. A scan that leaves the basis as it is hands on the coefficients of its
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.handlers

from .._compat import handler_stack, no_handlers, scan_counts
from ..jaxprs import inner_jaxprs
from ..traces import Recorder, Runner, all_steps, cond, scan
from ._arranged import Shaped, unflat, unit_forms
from ._belief import Belief, known, no_belief
from ._chains import Affine, NotCollected, Step, filtered, joined
from ._forms import Beyond, Form, RowsMeet, is_certain
from ._lift import holds_statement
from ._refusals import MAX_NUMBERS

if TYPE_CHECKING:
    from ._integrator import Integrator

Array = jax.Array
PUT_TOGETHER = "a scan, whose steps are put together"
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
        self.reads = list(outer.is_read)  # of its results, which a statement depends on
        self.y_kinds: list[Kind] = []
        self.out_kinds: list[Kind] = []
        self.rows = tuple(() if outer.belief is None else outer.belief.mean.shape[:-1])
        self.is_changed = self._explore()
        if self.is_changed and any(isinstance(x, Form) for x in self.xs):
            self.has_slices = False
            self.kinds = [_kind(x) for x in self.init]
            self._explore()
        # What stands for stacked results that are read; None: they are known.
        self.lost = self._why_lost() if self.is_changed else None
        self.is_joined = self.is_changed and self.lost is None and bool(self._read())

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
        is_read = [True] * len(self.init) + self.reads[len(self.init) :]
        return inner.settled(inner.run(self.body, [*consts, *carry, *xs], is_read))

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
        return self._values(self._certain(self.init) if carry is None else carry, forms)

    def _values(
        self, certain: Sequence[Any], forms: Sequence[Form]
    ) -> tuple[list[Any], dict[int, Form]]:
        """The carried values and those kept."""
        sure, uncertain = iter(certain), iter(forms)
        values = [
            next(uncertain) if isinstance(k, tuple) else k if isinstance(k, Beyond) else next(sure)
            for k in self.kinds
        ]
        return values, dict(zip(self.kept, uncertain, strict=True))

    def _certain(self, values: Sequence[Any]) -> list[Any]:
        return [x for x, k in zip(values, self.kinds, strict=False) if k is None]

    def run(self) -> list[Any]:
        """The results of the scan."""
        if not self.is_changed:
            return self._pushed()
        return self._together() if self._is_parallel() else self._filtered()

    def _filtered(self) -> list[Any]:
        """With the belief carried: of what is handed on, in one vector."""
        outer, num_carry = self.outer, len(self.init)
        start = self._start()

        def step(carry: Any, x: Any) -> Any:
            certain, belief = carry
            inner = outer.inner()
            outs, belief = self._run(inner, certain, belief, x)
            maps = self._maps(certain, x, inner.made)[1] if self.is_joined else None
            ys = [y for y in outs[num_carry:] if is_certain(y)]
            return (self._certain(outs[:num_carry]), belief), (ys, maps)

        init = [jnp.asarray(x) for x in self._certain(self.init)]
        length = self.eqn.params["length"]
        (certain, belief), (ys, maps) = scan(step, (init, start), self._slices(), length)
        if self.is_joined:
            return self._joined(certain, maps, start, ys)
        return self._closing(certain, belief, ys)

    def _together(self) -> list[Any]:
        """With the beliefs of all steps found in parallel."""
        num_carry, start, xs = len(self.init), self._start(), self._slices()
        length = self.eqn.params["length"]

        def known(certain: Any, x: Any) -> Any:
            outs, _ = self._maps(certain, x, None)
            return self._certain(outs[:num_carry]), certain

        init = [jnp.asarray(x) for x in self._certain(self.init)]
        certain, before = jax.lax.scan(known, init, xs, length) if init else (init, init)
        maps = jax.vmap(lambda c, x: self._maps(c, x, None)[1], axis_size=length)(before, xs)
        beliefs = None if start is None else filtered(maps, start)
        at = lambda index: jax.tree.map(lambda x: x[index], beliefs)

        def step(now: Any) -> list[Any]:
            outs, _ = self._run(self.outer.inner(), *now)
            return [y for y in outs[num_carry:] if is_certain(y)]

        ys = _made_at_once(step, (before, at(slice(-1)), xs), length)
        if self.is_joined:
            return self._joined(certain, maps, start, ys)
        return self._closing(certain, at(-1), ys)

    def _start(self) -> Belief | None:
        return self._closed(self.outer, self.init, self.kept) if self._handed_on() else None

    def _slices(self) -> list[Any]:
        return [None if not is_certain(x) else x for x in self.xs]

    def _given(self, x: Sequence[Any]) -> list[Any]:
        """A slice of what is scanned over, with what of it is uncertain."""
        return [self._first(a) if b is None else b for a, b in zip(self.xs, x, strict=True)]

    def _run(
        self, inner: Integrator, certain: Sequence[Any], belief: Belief | None, x: Sequence[Any]
    ) -> tuple[list[Any], Belief | None]:
        """One step, and the belief of what it hands on."""
        values, kept = self._opened(inner, certain, belief)
        outs = self._step(inner, values, kept, self._given(x))
        carry = outs[: len(self.init)]
        return outs, self._closed(inner, carry, kept) if self._handed_on() else None

    def _closing(self, certain: Any, belief: Belief | None, ys: Sequence[Any]) -> list[Any]:
        """The results, in a basis of what is handed on."""
        outer = self.outer
        outer.has_changed, outer.belief = True, belief
        values, kept = self._opened(outer, certain, belief)
        outer._replace(kept)
        return [*values, *self._stacked(ys)]

    def _closed(self, inner: Integrator, values: Sequence[Any], kept: dict[int, Form]) -> Belief:
        """The belief of what is handed on."""
        if inner.belief is None:
            inner.belief = no_belief(self.rows)
        return inner._law_of(self._forms(values, kept), is_square=True)

    def _forms(self, values: Sequence[Any], kept: dict[int, Form]) -> list[Form]:
        """What is handed on."""
        carried = [x for x, k in zip(values, self.kinds, strict=False) if isinstance(k, tuple)]
        forms = []
        for value, (shape, dtype, rows) in zip(
            [*carried, *kept.values()], self._handed_on(), strict=True
        ):
            if is_certain(value):  # at the start, or set anew
                value = Form(jnp.asarray(value, dtype), jnp.zeros((0, *shape), dtype), rows)
            forms.append(value)
        return forms

    def _stacked(self, ys: Sequence[Any], forms: Sequence[Form] = ()) -> list[Any]:
        """The stacked results: certain ones, and those that are read."""
        found, read = iter(ys), iter(forms)
        return [
            next(found)
            if k is None
            else k
            if isinstance(k, Beyond)
            else self.lost or (next(read) if is_read else Beyond(PUT_TOGETHER))
            for k, is_read in zip(self.y_kinds, self.reads[len(self.init) :], strict=True)
        ]

    # Steps as maps.

    def _maps(
        self, certain: Sequence[Any], x: Sequence[Any], made: dict[str, Array] | None
    ) -> tuple[list[Any], Step]:
        """A step as affine maps of what is handed to it."""
        collector = self.outer.collector(sum(v.size for v in self._handed_on()), made)
        values, kept = self._opened(collector, certain)
        if collector.belief is None:
            collector.belief = no_belief(self.rows)
        outs = self._step(collector, values, kept, self._given(x))
        num_carry = len(self.init)
        read = [outs[num_carry + i] for i, _ in self._read()]
        return outs, collector.step(self._forms(outs[:num_carry], kept), read)

    def _read(self) -> list[tuple[int, Shaped]]:
        """The uncertain stacked results that a statement reads: their number, and what they are in a step."""
        num_carry = len(self.init)
        avals = [v.aval for v in self.body.jaxpr.outvars[num_carry:]]
        each = zip(avals, self.y_kinds, self.reads[num_carry:], strict=True)
        return [
            (i, Shaped(aval.shape, aval.dtype, kind))
            for i, (aval, kind, is_read) in enumerate(each)
            if is_read and isinstance(kind, tuple)
        ]

    def _probed(self, *, is_made: bool) -> Step:
        """The shapes of a step's maps.

        Raises:
            NotCollected: there are none.
        """

        def run() -> Step:
            certain, x = self._certain(self.init), [self._first(x) for x in self.xs]
            x = [a if is_certain(b) else None for a, b in zip(x, self.xs, strict=True)]
            inner = self.outer.inner(is_dry=True)
            if is_made:
                self._run(inner, certain, None, x)
            return self._maps(certain, x, inner.made if is_made else None)[1]

        with no_handlers():
            return jax.eval_shape(run)

    def _why_lost(self) -> Beyond | None:
        """Why stacked results cannot be read; None: they can, or are not."""
        if not self._read():
            return None
        remedy = "Make the statement inside of the step, one for each (ppl.scan over the data)"
        if self.outer.emit.approximation == "ukf":
            return Beyond(PUT_TOGETHER, f"{remedy}.")
        try:
            maps = self._probed(is_made=True)
        except NotCollected as err:
            return Beyond(f"{PUT_TOGETHER}, with {err}", f"{remedy}.")
        handed, columns = maps.new.matrix.shape[-2:]
        length = self.eqn.params["length"]
        number = handed + length * (columns - handed)
        if number <= MAX_NUMBERS:
            return None
        return Beyond(
            PUT_TOGETHER,
            f"{remedy}: read afterwards, {number} numbers are believed jointly, and at most {MAX_NUMBERS} can be.",
        )

    def _joined(
        self, certain: Any, maps: Step, start: Belief | None, ys: Sequence[Any]
    ) -> list[Any]:
        """The results, in a basis of what is handed to the first step and of the noise of all."""
        outer = self.outer
        start = no_belief(self.rows) if start is None else start
        belief, last, read = joined(maps, start, outer.emit.is_centred)
        outer.has_changed, outer.belief = True, belief
        values, kept = self._values(certain, _forms_of(last, self._handed_on()))
        outer._replace(kept)
        forms = _forms_of(read, [shaped for _, shaped in self._read()], num_lead=1)
        return [*values, *self._stacked(ys, forms)]

    def _is_parallel(self) -> bool:
        """Whether all steps are filtered at once.

        Raises:
            ValueError: that is asked for, and impossible.
        """
        emit = self.outer.emit
        if not emit.parallel or emit.is_dry or emit.has_tilts:
            return False
        recorders = [h for h in handler_stack() if isinstance(h, Recorder)]
        is_kept = _is_data_kept(_observed(self.body.jaxpr))
        if not is_kept or any(r.continues for r in recorders):  # later ones are drawn
            return False
        obstacle = "particles, which are weighed after each step"
        if not any(r.is_stepped for r in recorders):
            try:
                self._probed(is_made=False)
            except NotCollected as err:
                obstacle = str(err)
            else:
                return True
        raise ValueError(
            f"{self.outer.label}: parallel=True filters all steps of a ppl.scan at once, which does not go with {obstacle}: a "
            "step is to be an affine map of the state before, by data and parameters alone. Leave parallel=True out: the steps "
            "are then filtered one after the other, with the same result."
        )

    # A basis that stays as it is.

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
            outs = inner.run(
                self.body, [*self.consts, *values(carry, self.kinds), *given], self.reads
            )
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


def _forms_of(numbers: Affine, values: Sequence[Shaped], num_lead: int = 0) -> list[Form]:
    """The forms of values that, one after the other, are these numbers; `num_lead`: axes in front of the rows."""
    coefs, start, found = jnp.moveaxis(numbers.matrix, -1, 0), 0, []
    for value in values:
        stop = start + value.size
        const = unflat(numbers.const[..., start:stop], value.rows, value.shape)
        slope = unflat(coefs[..., start:stop], value.rows, value.shape)
        rows = tuple(a + num_lead for a in value.rows)
        found.append(Form(const.astype(value.dtype), slope.astype(value.dtype), rows))
        start = stop
    return found


def _observed(jaxpr: Any) -> Iterator[str]:
    """The names of observed statements."""
    for eqn in jaxpr.eqns:
        statement = eqn.params.get("statement")
        if statement is not None and statement.is_observed:
            yield statement.name
        for inner in inner_jaxprs(eqn):
            yield from _observed(inner)


def _is_data_kept(names: Iterable[str]) -> bool:
    """Whether the handlers on the stack leave observations their values."""
    stack, names = handler_stack(), set(names)
    is_recorded = any(isinstance(h, Recorder) for h in stack)
    given = [h for h in stack if isinstance(h, numpyro.handlers.substitute)]
    is_given = any(names & (h.data or {}).keys() for h in given)
    is_unknown = is_recorded and any(h.substitute_fn is not None for h in given)
    is_drawn = any(getattr(h, "redraw_observed", False) for h in stack)
    return not (is_given or is_unknown or is_drawn)


def _made_at_once(step: Callable[[Any], Any], xs: Any, length: int) -> Any:
    """The results of a step for all steps, and their statements."""
    stack = handler_stack()
    if not stack or any(isinstance(h, Recorder) for h in stack):
        return all_steps(step, xs, length)
    # NumPyro has no statement for steps at once: their log-probs are one factor.
    with no_handlers(), Runner(None) as runner:
        ys = all_steps(step, xs, length)
    numbers = runner.frame.numbers
    log_probs = {n: x["log_prob"].sum() for n, x in numbers.items() if "log_prob" in x}
    numpyro.factor(f"{', '.join(log_probs)}: all steps", sum(log_probs.values()))
    return ys


def run_scan(outer: Integrator, eqn: Any, args: list[Any]) -> list[Any]:
    """The results of a scan."""
    return _Scan(outer, eqn, args).run()


def run_cond(outer: Integrator, eqn: Any, args: list[Any]) -> list[Any]:
    """The results of a choice between branches, which hold no statement that meets the sites.

    Raises:
        ValueError: one does.
    """
    which, operands, is_read = args[0], args[1:], outer.is_read
    branches, has_statements = eqn.params["branches"], holds_statement(eqn)
    kinds: list[Kind] = [None] * len(eqn.outvars)
    for branch in branches:
        probe = outer.inner(is_dry=True)
        probe.belief = outer.belief
        outs: list[Any] = []

        def run(branch: Any = branch, probe: Integrator = probe, outs: list[Any] = outs) -> None:
            outs.extend(_kind(x) for x in probe.run(branch, operands, is_read))

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
            outs = inner.run(branch, operands, is_read)
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
