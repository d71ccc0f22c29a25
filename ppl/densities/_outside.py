"""A program made of another one, in the hands of handlers outside: which may act on it, and its parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro import handlers
from numpyro.primitives import Messenger

from .._compat import handler_stack, no_handlers, own_caches, typed_key
from .._types import Message
from ..language import ChoiceMismatch, GivenSites, Program
from ..traces import BoundParams, ParamCollector, Recorder, Runner, stand_in

Array = jax.Array
# NumPyro's handlers that do not see inside a sum, and those that only give values, names and keys.
BLIND = (
    numpyro.plate, handlers.condition, handlers.do, handlers.lift, handlers.reparam, handlers.uncondition, GivenSites,
)  # fmt: skip
PLAIN = (
    BoundParams, ParamCollector, handlers.seed, handlers.trace, handlers.substitute, handlers.block, handlers.replay,
)  # fmt: skip


def declared(
    program: Program, args: tuple[ArrayLike, ...], kwargs: dict[str, Array]
) -> tuple[dict[str, PyTree], dict[str, tuple[PyTree, PyTree]]]:
    """Parameters as the handlers outside give them; each latent site: support and prior draw."""
    key = numpyro.prng_key() if any(type(h) is handlers.seed for h in handler_stack()) else None
    met, run = _met(program, jax.random.key(0) if key is None else typed_key(key), args, kwargs)
    params = {name: numpyro.param(name, init, **k) for name, (init, k) in met.params.items()}
    numbers = run.frame.numbers
    return params, {name: (s, numbers[name]["value"]) for name, s in met.supports.items()}


def supports_of(
    program: Program, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> dict[str, dist.constraints.Constraint]:
    """The support of each latent site."""
    found: dict[str, PyTree] = {}

    def run() -> None:
        found.update(_met(program, jax.random.key(0), args, kwargs)[0].supports)

    jax.eval_shape(run)
    return found


def _met(
    program: Program, key: Array, args: tuple[PyTree, ...], kwargs: dict[str, Array]
) -> tuple[_Declarations, Runner]:
    met, run = _Declarations(), Runner(key, exploring=True, draw=_prior_draw)
    with no_handlers(), own_caches(), run, met:
        program(*args, **kwargs)
    return met, run


def check_outside(label: str) -> None:
    """Refuse handlers of NumPyro around a program whose statements are not those of the program it was made of."""
    for handler in handler_stack():
        is_array = isinstance(handler, handlers.mask | handlers.scale) and (
            jnp.ndim(getattr(handler, type(handler).__name__)) > 0
        )
        if is_array or isinstance(handler, BLIND):
            raise _foreign(label, handler)


class _Declarations(Messenger):
    """Remember param statements that have no value yet, with what they start from, and the supports of latent sites."""

    only_watches = True

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, tuple[PyTree, PyTree]] = {}
        self.supports: dict[str, Any] = {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "param" and msg["value"] is None:
            # An initial value that is made by a function of a key stands in `fn`, and there are no arguments then.
            init = msg["args"][0] if msg["args"] else lambda _, made=msg["fn"]: made()
            self.params.setdefault(msg["name"], (init, msg["kwargs"]))
        elif msg["type"] == "sample" and not msg["is_observed"]:
            self.supports.setdefault(msg["name"], msg["fn"].support)


def _prior_draw(msg: Message, key: Array) -> Array:
    """A draw of a site; where its law has no sampler (`ImproperUniform`), one in its support, as NumPyro starts from."""
    fn = msg["fn"]
    try:
        return jnp.asarray(fn.sample(key))
    except NotImplementedError:
        return stand_in(fn, key)


def _foreign(label: str, handler: object) -> TypeError:
    return TypeError(
        f"{label}: the handler or plate {type(handler).__name__} around it cannot act on a sum. Transform the program "
        "first, ppl.eliminate(ppl.condition(program, ...), ...), or use the transformations of ppl, which do that."
    )


def is_predicting() -> bool:
    """Whether no density counts and all is drawn, as under NumPyro's `Predictive`: there is nothing to sum then."""
    stack = handler_stack()
    is_off = any(isinstance(h, handlers.mask) and h.mask is False for h in stack)
    return is_off and any(type(h) is handlers.seed for h in stack)


def check_reach(
    label: str,
    program: Program,
    gone: Collection[str],
    args: tuple[ArrayLike, ...],
    kwargs: dict[str, Array],
) -> None:
    """Refuse handlers that hide or give what stands inside of a sum or an integral, where they would do nothing.

    Raises:
        TypeError: a `block` around it hides a statement of the program, or a `substitute` gives a site that is gone.
    """
    for handler in reversed(handler_stack()):
        if isinstance(handler, handlers.trace | Runner):
            return  # what stands further out acts on what is recorded here
        if isinstance(handler, handlers.substitute) and set(handler.data or ()) & set(gone):
            raise _foreign(label, handler)
        if type(handler) is handlers.block:
            infos = _met(program, jax.random.key(0), args, kwargs)[1].frame.infos
            inside = [n for n, info in infos.items() if info.kind != "latent" or n in gone]
            message = {"type": "sample", "is_observed": True, "infer": {}}
            if any(handler.hide_fn({**message, "name": name}) for name in inside):
                raise _foreign(label, handler)


def check_left(label: str, sites: Collection[str], choices: Collection[str], gone: str) -> None:
    """Refuse values of sites that are gone: summed or integrated out."""
    if given := sorted(set(choices) & set(sites)):
        raise ChoiceMismatch(
            f"{label}: {given} are {gone} out and take no value. Give the sites that are left only, or use the program it was "
            "made of, which has them all.",
            [],
            given,
        )


def check_stack(label: str) -> None:
    for handler in handler_stack():
        is_ours = isinstance(handler, Recorder) and not isinstance(handler, GivenSites)
        is_ours |= getattr(handler, "only_watches", False)
        if not is_ours and type(handler) not in PLAIN:
            raise _foreign(label, handler)
