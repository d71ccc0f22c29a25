"""Whether draws can be those of a law with a total: what draws and the density far from them say against it.

No number of draws shows that a posterior under flat priors or with factors of one's own exists: chains and weights see where they
have been. Where the density of one coordinate, the others held, falls no faster than 1 / distance, its integral is infinite,

    M(r) = log p(u + r s e_i) + log r    does not fall as r grows,

M being the log-mass of distances of one order, s the spread of the draws; at draws of any law that has a total it falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl._shared_jit import shared_jit
from ...ppl.traces import Trace
from ..inputs import improper_sites
from .forms import Target

_RADII = 10.0 ** np.arange(-1, 4.1, 0.5)  # spreads of the draws
_FAR = 10.0  # the least at which it can be said
_ROWS = 2  # draws at which rays begin
_SPREAD = 400  # draws that tell the spread
_MOST = 64  # coordinates that are looked along
_LEAST_FALL = 0.125  # nats from one radius to the next; a tail index of a tenth
_NEGLIGIBLE = 10.0  # nats below the order of distances with the most mass
_LARGEST = 1e30


def is_in_doubt(trace: Trace) -> bool:
    """Whether a program has flat priors or factors, so that its posterior need not exist."""
    return bool(improper_sites(trace.sites)) or any(
        site.kind == "factor" for site in trace.sites.values()
    )


def lost_draws(choices: Mapping[str, np.ndarray], target: Callable[[], Target]) -> str | None:
    """What is wrong with draws of sampled sites themselves, in words: values at the limits of their type, or all the same.

    Entries that the support holds (zeros above the diagonal of a Cholesky factor) are to be the same; `target` is asked for
    them where there are such draws.
    """
    for name, draws in choices.items():
        x = draws.reshape(len(draws), -1)
        if not np.issubdtype(x.dtype, np.floating) or not x.size:
            continue
        if np.abs(x).max() > _LARGEST:
            return f"draws of {name} are as large as {np.abs(x).max():.1g}, at the limits of {x.dtype}. Give it a proper prior"
        is_still = np.ptp(x, axis=0) == 0
        if len(x) > 1 and is_still.any() and (is_still & _moves(target(), name)).any():
            return f"draws of {name} are all the same. Look at its law and its unit"
    return None


def _moves(target: Target, name: str) -> np.ndarray:
    """Which entries of a site's value, in a row, its coordinates move; all of a site that has none."""
    u = jnp.asarray(np.random.default_rng(0).normal(size=(3, target.dimension)), float)
    values = jax.vmap(target.choices)(u)
    if name not in values:
        return np.array(True)
    return np.ptp(np.asarray(values[name]).reshape(len(u), -1), axis=0) > 0


def endless(target: Target, choices: Mapping[str, np.ndarray]) -> str | None:
    """A coordinate along which the density does not fall off, in words; None if none was seen.

    Args:
        target: coordinates of the sites.
        choices: draws of all of them.
    """
    every = np.unique(np.linspace(0, len(choices[target.sites[0]]) - 1, _SPREAD).astype(int))
    draws = {n: jnp.asarray(choices[n][every]) for n in target.sites}
    u = np.asarray(shared_jit(lambda x: jax.vmap(target.point)(x))(draws), float)
    # A draw may be at the end of its support, to rounding.
    with np.errstate(invalid="ignore", over="ignore"):
        return _along_axes(target, u)


def _along_axes(target: Target, u: np.ndarray) -> str | None:
    low, high = np.quantile(u, [0.1, 0.9], axis=0)
    chosen = np.random.default_rng(0).permutation(target.dimension)[:_MOST]
    axes = np.diag(high - low)[chosen]
    begin = u[:: -(-len(u) // _ROWS)]
    steps = np.array([1.0, -1.0])[:, None] * _RADII  # [directions, radii]
    points = begin[:, None, None, None] + steps[..., None] * axes[:, None, None]
    values = target.log_densities(points.reshape(-1, target.dimension))
    values = np.where(values == np.inf, np.finfo(float).max, values)
    mass = values.reshape(points.shape[:-1]) + np.log(_RADII)  # [draws, axes, directions, radii]
    is_known = np.isfinite(mass)
    most = np.where(is_known, mass, -np.inf).max(-1)
    # Beyond it there is no density, or no number for it.
    furthest = is_known.cumprod(-1).sum(-1) - 1
    order = np.maximum(furthest, 1)[..., None]
    last, before = (np.take_along_axis(mass, at, -1)[..., 0] for at in (order, order - 1))
    is_flat = (before - last < _LEAST_FALL) & (last > most - _NEGLIGIBLE)
    found = np.argwhere((is_flat & (_RADII[furthest] >= _FAR)).all(0))
    if not len(found):
        return None
    axis, way = found[0]
    distance = _RADII[furthest[0, axis, way]]
    return (
        f"the density does not fall off as {target.names[chosen[axis]]} {('grows', 'falls')[way]}, {distance:g} spreads of its "
        "coordinate away from the draws: there may be no posterior. Give it a proper prior"
    )
