"""Running one program: simulate it, score given values, find initial parameters, or watch it run under a gradient engine."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions import biject_to, constraints

from .._compat import is_concrete, mask_of, own_caches, typed_key
from .._foreign import kind_of
from .._shared_jit import shared_jit
from .._types import Key, Message
from ..distributions import is_boolean, is_masked, is_one_way, is_unbounded
from ..evaluation import evaluate
from ._keys import fold_name
from ._params import ParamCollector, Params, check_initial
from ._reach import penalty_of_reach, reach_of
from ._recorder import Begun, Recorder
from ._running import running_engine
from ._sites import PROPOSED, log_prob_of

Array = jax.Array


class StatementLook(NamedTuple):
    """Who looks at the sample statements of a run.

    Attributes:
        met: of a statement, before it has its value -> numbers to keep of it (`Trace.seen`), or None.
        drawn: of a statement and its draw -> the draw.
    """

    met: Callable[[Message], PyTree | None]
    drawn: Callable[[Message, Array], Array] = lambda _, value: value


LOOK: contextvars.ContextVar[StatementLook | None] = contextvars.ContextVar("look", default=None)


class Runner(Recorder):
    """Run a program by itself: forced values where given, draws from the prior elsewhere.

    Args:
        key: random key; None when every latent site is forced.
        forced: site values (stacked along time and particle axes for sites in regions).
        redraw_observed: draw observed sites too (posterior prediction).
        defer_imputed: leave imputed sites (missing cells) to the handler outside, which draws them from their
            prior.
        exploring: meet the parameters inside regions as plain arrays.
        keep: boolean scalar; where it is false, forced values give way to draws. None: they always hold.
        draw: `(message, key) -> value`, draws a site; None: the distribution's sampler.
        continues: take forced values of a shorter scan for its first steps, with the observations there, and draw the rest.
        num_seen: steps of a scan whose observations hold; None: those with a forced value of a shorter scan.
    """

    def __init__(
        self,
        key: Array | None,
        forced: dict[str, Array] | None = None,
        *,
        keep: Array | None = None,
        redraw_observed: bool = False,
        defer_imputed: bool = False,
        exploring: bool = False,
        draw: Callable[[dict[str, PyTree], Array], Array] | None = None,
        continues: bool = False,
        num_seen: int | None = None,
    ) -> None:
        super().__init__(key, forced)
        self.keep, self.draw = keep, draw
        self.continues, self.num_seen = continues, num_seen
        self.redraw_observed = redraw_observed
        self.defer_imputed = defer_imputed
        self.is_exploring = exploring
        self.missing: list[str] = []
        self.placed: list[str] = []  # latent sites whose value is a handler's inside of the program

    def visit(self, msg: Message) -> None:
        if (look := LOOK.get()) is not None:
            msg["_seen"] = look.met(msg)
        # No handler outside of the run gives this site a value.
        msg["stop"] = True
        name = msg["name"]
        given = None if msg["is_observed"] else self.given(name)
        if given is not None:
            keep = self.keep
            # Of a shorter scan: the value, and in which steps it holds.
            if isinstance(given, Begun):
                given, keep = given
            msg["value"] = given if keep is None else jnp.where(keep, given, self._draw(msg))
            msg["_forced"] = True
            self.frame.used.add(name)
        elif msg["is_observed"] and (
            not self.redraw_observed or msg.get("is_set") or msg["fn"].event_shape is None
        ):
            return
        # A handler inside of the program was first.
        elif msg["value"] is not None and not msg["is_observed"]:
            self.placed.append(name)
        # Missing cells go on to the handler outside, which draws them.
        elif self.defer_imputed and msg["infer"].get("imputed"):
            msg["stop"] = False
            msg["_imputed"] = True
        elif self.frame.key is not None:
            if not (msg["is_observed"] and _is_unit(msg["fn"])):
                msg["intermediates"] = []
                drawn = self._draw(msg)
                msg["value"] = self._held(msg, drawn if look is None else look.drawn(msg, drawn))
        else:
            # Scored without a value: one of the support stands in until `missing` is reported, all names at once.
            self.missing.append(name)
            dtype = int if msg["fn"].support.is_discrete else float
            msg["value"] = jnp.zeros(msg["fn"].shape(), dtype)
            with contextlib.suppress(NotImplementedError):
                msg["value"] = msg["fn"].support.feasible_like(msg["value"])

    def check_drawn(self) -> None:
        """Refuse weights of draws that are none.

        Raises:
            ValueError: a handler inside of the program has put a value in the place of a draw.
        """
        if self.placed:
            raise ValueError(
                f"Site '{self.placed[0]}' got its value from a handler inside the program (substitute or replay), which is no "
                "draw from its law, so that a weight would be wrong. Use ppl.condition or ppl.intervene, or "
                "numpyro.handlers.condition or do."
            )

    def _held(self, msg: Message, drawn: Array) -> Array:
        """The draw, or in a step that has been seen the observation."""
        forced = [x for frame in self.frames for x in frame.forced.values()]
        seen = [x.holds for x in forced if isinstance(x, Begun)]
        if not (msg["is_observed"] and seen):
            return drawn
        return jnp.where(jnp.any(jnp.stack(seen)), jnp.asarray(msg["value"]), drawn)

    def _draw(self, msg: Message) -> Array:
        assert self.frame.key is not None
        key = fold_name(self.frame.key, msg["name"])
        try:
            if self.draw is not None:
                return self.draw(msg, key)
            if not msg["is_observed"] and is_one_way(msg["fn"]):
                value, msg["intermediates"] = msg["fn"].sample_with_intermediates(key)
                return value
            return msg["fn"].sample(key)
        except NotImplementedError:
            if not _STAND_INS.get():
                raise
            return stand_in(msg["fn"], key)
        except (ValueError, TypeError) as err:
            raise kind_of(err)(
                f"Site '{msg['name']}': drawing from {type(msg['fn']).__name__} failed ({err}). "
                "Correct the law's arguments, or its sampler."
            ) from err

    def numbers_of(self, msg: dict[str, PyTree]) -> dict[str, PyTree]:
        if msg.get("_imputed"):
            log_prob = jnp.zeros(msg["fn"].batch_shape)
        else:
            log_prob = guarded_log_prob(msg) if msg.get("_forced") else log_prob_of(msg)
        numbers = numbers_for_trace(msg, log_prob)
        offered = self.limits(msg["name"]) if msg.get("_forced") else {}
        if offered and not is_masked(msg["fn"]):
            penalty = penalty_of_reach(msg["name"], numbers["reach"], offered, jnp.ndim(log_prob))
            numbers["log_prob"] = log_prob if penalty is None else log_prob + penalty
        return numbers


# Whether a law without a sampler is drawn from around its coordinates' zero.
_STAND_INS: contextvars.ContextVar[bool] = contextvars.ContextVar("stand_ins", default=False)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Runs inside draw a site whose law has no sampler (`ImproperUniform`) by `stand_in`.

    For runs that nothing is computed in, and for points to start from: what is drawn has not the site's law.
    """
    token = _STAND_INS.set(True)
    try:
        yield
    finally:
        _STAND_INS.reset(token)


def stand_in(law: dist.Distribution, key: Array) -> Array:
    """A value in the support of a law, uniform on (-2, 2) in unconstrained coordinates, where NumPyro's chains start."""
    transform = biject_to(law.support)
    shape = transform.inverse_shape(law.shape())
    return jnp.asarray(transform(jax.random.uniform(key, shape, minval=-2.0, maxval=2.0)))


class EngineRecorder(Recorder):
    """Keep values and log-probs of a program whose draws are made by the engine outside."""

    is_final = False

    def visit(self, msg: Message) -> None:
        # The engine may see a second run of the same program: it then gives the site a second address.
        msg["_collected"] = True

    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        return numbers_for_trace(msg, log_prob_of(msg))


def numbers_for_trace(msg: Message, log_prob: Array) -> dict[str, PyTree]:
    more = {"cells": msg["infer"]["cells"]} if "cells" in msg["infer"] else {}
    if msg.get("_seen") is not None:
        more["seen"] = msg["_seen"]
    if not msg["is_observed"] and not isinstance(msg["scale"], int | float | None):
        more["scale"] = msg["scale"]
    if "cells" not in more and is_masked(msg["fn"]):
        more["mask"] = _mask_of(msg["fn"])
    if not msg["is_observed"] or PROPOSED in msg["infer"]:
        more["reach"] = reach_of(msg["fn"])
    return {"value": msg["value"], "log_prob": log_prob, **more}


def guarded_log_prob(msg: Message) -> Array:
    """The log-prob of a given value, -inf outside the support, where NumPyro's densities may return anything."""
    fn, value = msg["fn"], msg["value"]
    support = _relaxed_support(fn.support, value)
    if is_unbounded(support):
        return log_prob_of(msg)
    try:
        inside = jnp.broadcast_to(support(value), fn.batch_shape)
        feasible = support.feasible_like(value)
    except NotImplementedError:  # a support that cannot be tested
        return log_prob_of(msg)
    cell = inside.reshape(inside.shape + (1,) * fn.event_dim)
    # The density is evaluated inside the support only, so that its gradient stays finite elsewhere.
    log_prob = log_prob_of({**msg, "value": jnp.where(cell, value, feasible)})
    return jnp.where(inside | ~_mask_of(fn), log_prob, -jnp.inf)


def _relaxed_support(support: Any, value: Array) -> Any:
    """The support; [0, 1] for floating-point values of Bernoulli sites under an engine, whose draws may be relaxed."""
    if (
        is_boolean(support)
        and jnp.issubdtype(jnp.result_type(value), jnp.floating)
        and running_engine() is not None
    ):
        unit = constraints.unit_interval
        if support is constraints.boolean:
            return unit
        return constraints.independent(unit, support.reinterpreted_batch_ndims)
    return support


def _mask_of(fn: dist.Distribution) -> PyTree:
    """Which elements' log-probs of `fn` count, shape `fn.batch_shape`; masks that are known stay known under jit."""
    mask: Any = np.ones(fn.batch_shape, bool)
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            array = np if is_concrete(mask_of(fn)) else jnp
            mask = mask & array.broadcast_to(array.asarray(mask_of(fn), bool), mask.shape)
        fn = fn.base_dist
    return mask


def _is_unit(fn: dist.Distribution) -> bool:
    return 0 in fn.event_shape


def init_params(
    run: Callable[..., PyTree], key: Key, recorder: Callable[[jax.Array], Recorder]
) -> Params:
    """Initial unconstrained parameters of every param and module statement met in `run` under an exploring recorder.

    Raises:
        ValueError: an initial value outside its constraint.
    """

    def initial(key: jax.Array) -> PyTree:
        collector = ParamCollector()  # holds tracers, and ends with the trace
        with own_caches(), collector, recorder(key):
            run()
        return collector.unconstrained()

    params = compiled(initial, typed_key(key))
    return check_initial(params) if is_concrete(params) else params


def compiled(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fn(*args)` compiled as one program, site markers removed; what the result does not need is not run."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    outs = shared_jit(lambda inputs: evaluate(closed, inputs, {}))(jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)
