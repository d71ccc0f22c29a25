"""Maps from R^d onto the supports of latent sites, where these are the same at every draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from .. import ppl
from ..ppl._compat import fresh_caches
from ..ppl._types import Args, Message
from ..ppl.traces import compiled
from ._arguments import in_jax
from ._depends import depends
from ._host_keys import default_key

Array = jax.Array


def transforms_of(
    method: str, program: ppl.Program, args: Args, template: Mapping[str, Array]
) -> dict[str, PyTree]:
    """Site -> the transform from its unconstrained values; raises as `supports_of`."""
    found = supports_of(method, program, args, template)
    return {name: biject_to(support) for name, support in found.items()}


def supports_of(
    method: str, program: ppl.Program, args: Args, template: Mapping[str, Array]
) -> dict[str, dist.constraints.Constraint]:
    """Site -> its support, for the sites of `template` (values of the right shapes).

    Raises:
        ValueError: a support that depends on the value of one of the sites or on another draw; `method` is who asks.
    """

    def meet(key: Array, values: Mapping[str, Array]) -> dict[str, dist.constraints.Constraint]:
        met = _Supports(list(values))

        def watched(*args: PyTree, **kwargs: PyTree) -> ArrayLike | None:
            with met, fresh_caches():
                return program(*args, **kwargs)

        ppl.as_program(watched).generate(key, values, *args)
        return met.supports

    args = in_jax(args)
    inputs = default_key(), dict(template)
    closed, shapes = jax.make_jaxpr(meet, return_shape=True)(*inputs)
    moves = depends(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    for (path, _), is_moving in zip(jax.tree.leaves_with_path(shapes), moves, strict=True):
        if is_moving:
            raise ValueError(
                f"{method}: the support of site '{path[0].key}' depends on another draw, and its unconstrained coordinates would "
                "with it. Draw it on a fixed support, and scale or shift it, e.g. low + width * sample('share', Uniform(0, 1))."
            )
    return dict(compiled(meet, *inputs))


class _Supports(Messenger):
    """Collects the supports of sites."""

    only_watches = True  # programs that let no handler act on them let it stay

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.supports = names, {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["name"] in self.names:
            support = msg["fn"].support
            known = self.supports.setdefault(msg["name"], support)
            if type(known) is not type(support):
                raise ValueError(
                    f"Site '{msg['name']}' has the support {known} in one branch and {support} in another, and no one map "
                    "from unconstrained values serves both. Use two names."
                )
