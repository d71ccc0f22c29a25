"""Maps from R^d onto the supports of latent sites, those included that move with other sites (`Uniform(0, top)`).

A support that moves is known once the values are that it depends on: all supports are read at some values, the values of sites
whose supports were right are then right, and after as many rounds as supports stand in a row all are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from .... import ppl
from ....ppl._compat import fresh_caches
from ....ppl._quiet import quiet
from ....ppl._types import Message
from ..._arguments import in_jax
from ..._depends import depends
from ..._host_keys import default_key
from ..._supports import transforms_of

Array = jax.Array
Maps = Callable[[Mapping[str, Array]], tuple[dict[str, Any], dict[str, Array]]]
Inverse = Callable[[Mapping[str, Array]], dict[str, Array]]


def maps_of(
    method: str,
    program: ppl.Program,
    args: tuple,
    template: Mapping[str, Array],
    *,
    has_steps: bool,
) -> tuple[dict[str, tuple[int, ...]], Maps, Inverse]:
    """Site -> shape of its unconstrained values; a function of these that returns each site's transform and value; its inverse.

    `has_steps`: whether some of the sites stand in a scan or a branch, where supports that move cannot be read.

    Raises:
        ValueError: a support depends on a draw that is none of these sites, or moves within a scan; `method` is who asks.
    """
    try:
        fixed = transforms_of(method, program, args, template)
    except ValueError as err:
        if has_steps:
            raise ValueError(
                f"{method}: the support of one of {list(template)} cannot be read: it moves with other draws within a scan or a "
                "branch. Draw it on a fixed support, and scale or shift it."
            ) from err
        return _moving(program, args, template, err)
    shapes = {n: jax.eval_shape(fixed[n].inv, x).shape for n, x in template.items()}
    maps = lambda free: (fixed, {n: fixed[n](x) for n, x in free.items()})
    return shapes, maps, lambda values: {n: fixed[n].inv(values[n]) for n in template}


def _moving(
    program: ppl.Program, args: tuple, template: Mapping[str, Array], refusal: ValueError
) -> tuple[dict[str, tuple[int, ...]], Maps, Inverse]:
    def supports(key: Array, values: Mapping[str, Array]) -> dict[str, PyTree]:
        met = _SiteSupports(template)

        def watched(*args: PyTree, **kwargs: PyTree) -> PyTree:
            with met, fresh_caches():
                return program(*args, **kwargs)

        with quiet():  # NumPyro's, of values that are not yet those of the supports
            ppl.as_program(watched).generate(key, values, *args)
        return met.supports

    args = in_jax(args)
    key, values = default_key(), dict(template)
    closed, out = jax.make_jaxpr(supports, return_shape=True)(key, values)
    marks = lambda of: depends(closed.jaxpr, of)
    rest = [False] * (len(closed.jaxpr.invars) - 1)
    if set(out) != set(template) or any(marks([True, *rest])):
        raise refusal
    moved = jax.tree.unflatten(jax.tree.structure(out), marks([False] + [True] * len(rest)))
    rounds = 1 + sum(any(jax.tree.leaves(moved[n])) for n in template)

    def shape(name: str) -> tuple[int, ...]:
        inverse = lambda support, x: biject_to(support).inv(x)
        return jax.eval_shape(inverse, out[name], template[name]).shape

    def maps(free: Mapping[str, Array]) -> PyTree:
        values, found = dict(template), {}
        for _ in range(rounds):
            found = {n: biject_to(s) for n, s in supports(key, values).items()}
            values = {n: found[n](x) for n, x in free.items()}
        return found, values

    def inverse(values: Mapping[str, Array]) -> dict[str, Array]:
        found = supports(key, {n: values[n] for n in template})
        return {n: biject_to(found[n]).inv(values[n]) for n in template}

    return {n: shape(n) for n in template}, maps, inverse


class _SiteSupports(Messenger):
    """Collects the supports of sites."""

    only_watches = True  # programs that let no handler act on them let it stay

    def __init__(self, names: Mapping[str, object]) -> None:
        super().__init__()
        self.names, self.supports = names, {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["name"] in self.names:
            self.supports[msg["name"]] = msg["fn"].support
