"""A program in which something learned stands in for the laws of observed sites.

The program is run; at the observed sites named, the handler sees the values of the latent sites before, and either gives the site
another law or takes the site out. Statements around the site (plates with their scales, masks of missing cells) act on what
stands there then, so that the result is a program like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import mask_of
from ...ppl._types import Key, Message
from ...ppl.distributions import law_of_cells
from ...ppl.language import name_of
from .._arguments import Arguments, outcome
from .._depends import depends

# (site, values of sites by name) -> its law
type LawFn = Callable[[str, Mapping[str, Array]], dist.Distribution]
_CELLS = ("_observed", "_unobserved")  # the two sites of a statement with `obs_mask`


class StandIn(Messenger):
    """Change sites on their way; `law` None takes them out.

    Args:
        sites: the observed sites.
        law: what they get.

    Attributes:
        values: of the sites met so far, by name.
        met: those of `sites` that were met.
    """

    def __init__(self, sites: Collection[str], law: LawFn | None) -> None:
        super().__init__()
        self.sites, self.law = frozenset(sites), law
        self.values: dict[str, Array] = {}
        self.met: set[str] = set()

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "prng_key" and msg["value"] is None:
            # Noise of the simulator, which nothing that is left depends on (`refuse_noise`).
            msg["value"] = jax.random.key(0)
        if msg["type"] != "sample":
            return
        name, is_part = self._site(msg["name"])
        if name is None:
            return
        self.met.add(name)
        if self.law is None:
            if is_part or not msg["is_observed"]:
                raise ValueError(
                    f"Site '{name}': a ratio is one number of the whole data, and cells are missing or not given. Learn a "
                    "surrogate, whose program takes obs_mask; or give all data."
                )
            self.values[name] = jnp.asarray(msg["value"])
            msg["stop"] = True
            return
        own = msg["fn"]
        law = self.law(name, self.values)
        if law.event_shape != own.event_shape:
            raise ValueError(
                f"Site '{name}': what was learned has event shape {law.event_shape}, and the site {own.event_shape}. Simulate "
                "with arguments of the shapes that one event has here; only the rows of plates may be other ones."
            )
        law = law.expand(np.broadcast_shapes(law.batch_shape, own.batch_shape))
        cells = mask_of(own) if is_part else None
        msg["fn"] = law if cells is None else law_of_cells(law, jnp.asarray(cells))

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] in ("sample", "deterministic") and msg["name"] not in self.values:
            self.values[msg["name"]] = msg["value"]

    def _site(self, name: str) -> tuple[str | None, bool]:
        if name in self.sites:
            return name, False
        for end in _CELLS:
            if name.removesuffix(end) in self.sites and name.endswith(end):
                return name.removesuffix(end), True
        return None, False


class _WithData(Messenger):
    """Give observed sites other values."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        super().__init__()
        self.values = values

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


NOISE, ARGUMENTS = "noise of ppl.rng_key", "arguments of the program"


def reads_of(model: ppl.Program, args: tuple[PyTree, ...]) -> dict[str, frozenset[str]]:
    """Site -> what its law reads, all sites given: other sites and itself, `NOISE`, `ARGUMENTS`.

    What is not there is not read.
    """
    split = Arguments(args)
    trace = outcome(lambda *args: model.simulate(jax.random.key(0), *args), args)
    given = {"choices": dict(trace.choices), "observed": dict(trace.observed)}

    def log_probs(key: Key, given: dict[str, dict[str, Array]], arrays: list[Array]) -> PyTree:
        def run(*args: PyTree, **kwargs: PyTree) -> None:
            with _WithData(given["observed"]):
                model.run(*args, **kwargs)

        program = ppl.Program(run, model.params)
        return program.generate(key, given["choices"], *split.join(arrays))[0].log_probs

    inputs = (jax.random.key(0), given, split.arrays(args))
    closed, shapes = jax.make_jaxpr(log_probs, return_shape=True)(*inputs)
    names = [
        NOISE, *sorted(given["choices"]), *sorted(given["observed"]),
        *(ARGUMENTS for _ in jax.tree.leaves(inputs[2])),
    ]  # fmt: skip
    found: dict[str, set[str]] = {site: set() for site in shapes}
    for i, name in enumerate(names):
        marked = depends(closed.jaxpr, [j == i for j in range(len(names))])
        reads = jax.tree.unflatten(jax.tree.structure(shapes), marked)
        for site in shapes:
            if reads[site]:
                found[site].add(name)
    return {site: frozenset(names) for site, names in found.items()}


def refuse_noise(caller: str, reads: Mapping[str, frozenset[str]], sites: Collection[str]) -> None:
    """Refuse a program in which the law of a site that stays depends on noise of `ppl.rng_key`: it has no density.

    Raises:
        ValueError: with the sites.
    """
    if wrong := [name for name in reads if NOISE in reads[name] and name not in sites]:
        raise ValueError(
            f"{caller}: the laws of {wrong} depend on noise of ppl.rng_key, so that they have no density. Learn these sites, too "
            "(sites=), or draw that noise at a latent site, ppl.sample(name, distribution)."
        )


def standing_in(
    model: ppl.Program,
    sites: Collection[str],
    law: LawFn | None,
    finish: Callable[[Mapping[str, Array]], None] = lambda values: None,
) -> ppl.Program:
    """The program with `sites` changed, and `finish` run after it with the values of all sites."""

    def changed(*args: object, **kwargs: object) -> object:
        handler = StandIn(sites, law)
        with handler:
            out = model.run(*args, **kwargs)
        if missing := sorted(set(sites) - handler.met):
            raise ValueError(
                f"{name_of(model)}: the sites {missing}, for which a law was learned, are not met at these arguments. Pass what "
                "the program was simulated with."
            )
        finish(handler.values)
        return out

    changed.__name__ = name_of(model)
    if (signature := getattr(model.fn, "__signature__", None)) is not None:
        changed.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    else:
        changed.__wrapped__ = model.fn  # pyright: ignore[reportFunctionMemberAccess]
    return ppl.Program(changed, model.params)
