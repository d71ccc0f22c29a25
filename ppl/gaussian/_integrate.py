"""One run of a program with Gaussian sites integrated out, or proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpyro
import numpyro.handlers
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import ClosedJaxpr, handler_stack, no_handlers, own_caches
from .._types import ParamMap
from ..traces import Recorder, running_engine
from ._collector import Collector
from ._forms import is_certain
from ._integrator import Emit, Integrator, tried
from ._lift import Lifter
from ._proposal import Proposer


def integrate(
    label: str,
    program: Callable[..., PyTree],
    names: tuple[str, ...],
    params: ParamMap,
    args: tuple[ArrayLike, ...],
    kwargs: dict[str, Array],
    emit: Emit,
) -> Array | None:
    """Make the statements that are left; returns what the program returns, None where that depends on the sites.

    Raises:
        ValueError: sites that are not latent, or not normal with an affine mean, and other refusals of `ppl.eliminate`.
    """
    lifter = Lifter(label)
    closed, tree, static = _lifted(lifter, program, params, args, kwargs)
    emit = emit._replace(collector=Collector)
    dry = emit._replace(is_dry=True)
    found, joint = tried(lambda joint: Integrator(label, names, joint, dry), closed, [0])
    if absent := sorted(set(names) - found):
        latent = sorted(n for n, info in lifter.frame.infos.items() if info.kind == "latent")
        raise ValueError(
            f"{label}: {absent} are no latent sites of the program; its latent sites are {latent}. Name sites to integrate out; "
            "observed and conditioned ones are fixed already."
        )
    for recorder in handler_stack():
        if isinstance(recorder, Recorder):
            recorder.plates.update(lifter.plates)
    if (engine := running_engine()) is not None:
        engine.subsampled.update(lifter.subsampled)
    # What the program returns is no statement.
    is_read = [False] * len(closed.jaxpr.outvars)
    integrator = Integrator(label, names, joint, emit)
    outs = integrator.run(closed, [0], is_read)
    integrator.tell()
    if integrator.belief is not None and integrator.belief.later is not None:
        numpyro.factor(f"{label} smoothed", integrator.belief.later.ended())
    if not all(map(is_certain, outs)):
        return None
    values = iter(outs)
    return jax.tree.unflatten(tree, [next(values) if x is None else x[0] for x in static])


def propose(
    label: str,
    program: Callable[..., PyTree],
    params: ParamMap,
    args: PyTree,
    kwargs: PyTree,
    approximation: str | None,
) -> None:
    """Draw the program's latent sites, normal ones in the steps of a scan given the step's observations (`_proposal.py`).

    Raises:
        ValueError: a step with sites in an inner scan or a branch, or a law that depends on normal sites of the same step.
    """
    closed, _, _ = _lifted(Lifter(label), program, params, args, kwargs)
    Proposer(label, closed, [0], approximation).all()


def _lifted(
    lifter: Lifter,
    program: Callable[..., PyTree],
    params: Mapping[str, PyTree],
    args: PyTree,
    kwargs: Mapping[str, Array],
) -> tuple[ClosedJaxpr, PyTree, list[PyTree]]:
    """The lifted program; the tree of its return value, and those leaves of it that are no arrays (None: an array)."""
    found: list[PyTree] = []

    def run(start: Array) -> list[PyTree]:
        lifter.start = start
        with (
            jax.disable_jit(False),
            own_caches(),
            lifter,
            numpyro.handlers.substitute(data=dict(params)),
        ):
            leaves, tree = jax.tree.flatten(program(*args, **kwargs))
        lifter.start = None  # it outlives the trace
        is_array = [isinstance(x, int | float | complex) or hasattr(x, "dtype") for x in leaves]
        static = [None if flag else (x,) for x, flag in zip(leaves, is_array, strict=True)]
        found[:] = [tree, static]
        return [jnp.asarray(x) for x, flag in zip(leaves, is_array, strict=True) if flag]

    with no_handlers():
        closed = jax.make_jaxpr(run)(0)
    return closed, *found
