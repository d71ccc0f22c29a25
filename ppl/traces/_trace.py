"""The record of one run of a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import is_concrete
from .._show import shown
from ._reach import Reach
from ._recorder import Recorder
from ._sites import SiteInfo

Array = jax.Array


@shown
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """One run of a program; a pytree.

    Attributes:
        choices: latent site -> value. Sites in `ppl.scan` carry a leading time axis, sites in `ppl.particles`
            a leading particle axis.
        log_probs: site -> log-density in nats per batch element, scaled by subsampling and masked; every site
            counts, observations and factors too.
        retval: what the program returned; within a transformation of JAX None in the place of what is no array.
        observed: observed site -> value.
        deterministic: deterministic site -> value.
        sites: site -> `SiteInfo` in program order (static): kind, names of the batch axes, shapes.
        cells: missing cells (`obs_mask`) or a guide's proposal of them -> where the site's density counts, boolean.
        scales: latent site -> factor on its log-probs, where that is an array.
        masks: masked site -> which batch elements count, boolean.
    """

    choices: dict[str, Array]
    log_probs: dict[str, Array]
    retval: Any
    observed: dict[str, Array]
    deterministic: dict[str, Array]
    sites: SiteInfos = dataclasses.field(metadata={"static": True})
    cells: dict[str, Array] = dataclasses.field(default_factory=dict)
    scales: dict[str, Array] = dataclasses.field(default_factory=dict)
    masks: dict[str, Array] = dataclasses.field(default_factory=dict)

    # Latent site -> `_reach.reach_of` its law, where that is not empty; it stays with the object and leaves no transformation.
    reach: ClassVar[Mapping[str, Reach]] = {}
    # Site -> what a look at the run (`_runner.LOOK`) has kept of it; likewise.
    seen: ClassVar[Mapping[str, Any]] = {}
    # The model's side of a joint run (`_inline_guide`), set on the one object that it belongs to.
    scored: ClassVar[Any] = None

    def _facts(self) -> dict[str, PyTree]:
        """What prints: values by kind."""
        kinds = ("choices", "observed", "deterministic", "log_probs", "retval")
        found = {kind: getattr(self, kind) for kind in kinds}
        is_empty = lambda x: x is None or isinstance(x, dict) and not x
        return {kind: x for kind, x in found.items() if not is_empty(x)}

    @property
    def log_density(self) -> Array:
        """Sum of all log-probs (scalar, nats): the log-density of choices, observations and factors together."""
        return sum((jnp.sum(x) for x in self.log_probs.values()), jnp.zeros(()))

    @property
    def auxiliary(self) -> frozenset[str]:
        """Names of auxiliary choices: sites of a guide that its model does not have."""
        return frozenset(name for name, info in self.sites.items() if info.is_auxiliary)

    @property
    def shared_choices(self) -> dict[str, Array]:
        """The choices without auxiliary ones: what a guide proposes for its model."""
        return {
            name: value for name, value in self.choices.items() if not self.sites[name].is_auxiliary
        }


class SiteInfos(dict[str, SiteInfo]):
    """Site descriptions as static data of a pytree."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def trace_of(recorder: Recorder, retval: ArrayLike | None) -> Trace:
    """The trace that a finished recorder holds."""
    numbers, infos = recorder.frame.numbers, recorder.frame.infos

    def values(kind: str) -> dict[str, Array]:
        return {name: numbers[name]["value"] for name, info in infos.items() if info.kind == kind}

    log_probs = {name: n["log_prob"] for name, n in numbers.items() if "log_prob" in n}
    cells = {name: n["cells"] for name, n in numbers.items() if "cells" in n}
    scales = {name: n["scale"] for name, n in numbers.items() if "scale" in n}
    masks = {name: n["mask"] for name, n in numbers.items() if "mask" in n}
    trace = Trace(
        values("latent"),
        log_probs,
        retval if is_concrete(log_probs) else jax.tree.map(_array_of, retval),
        values("observed"),
        values("deterministic"),
        SiteInfos(infos),
        cells,
        scales,
        masks,
    )
    if seen := {name: n["seen"] for name, n in numbers.items() if "seen" in n}:
        object.__setattr__(trace, "seen", seen)
    return with_reach(trace, {name: n["reach"] for name, n in numbers.items() if n.get("reach")})


def _array_of(leaf: PyTree) -> PyTree:
    """The leaf, or None where it is no number and no array: text, a plate, a function."""
    is_number = isinstance(leaf, jax.Array | bool | int | float | complex)
    return (
        leaf if is_number or getattr(getattr(leaf, "dtype", None), "kind", "O") in "biufc" else None
    )


def with_reach(trace: Trace, reach: Mapping[str, Reach]) -> Trace:
    """The trace, which knows what limits its sites' laws."""
    object.__setattr__(trace, "reach", reach)
    return trace
