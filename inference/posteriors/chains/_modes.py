"""Where chains begin that are to see all modes: Normals near the modes of a posterior, found by trial from dispersed points."""

from __future__ import annotations

import jax
import numpy as np

from ....ppl._types import Key
from ...fitting.starts import Space, find_starts
from ..forms import Target
from ._chains import NEGLIGIBLE
from ._sampler import DENSE_UP_TO, Frame

_WIDER = 1.5  # than the Normals, so that R-hat can tell


def starts_in_modes(
    method: str, target: Target, args: tuple, key: Key, num_chains: int
) -> tuple[np.ndarray, Frame, str] | None:
    """Points to begin at [chains, d], coordinates in which the best mode is a standard Normal, and what was found, in words.

    Every mode whose evidence, by importance draws of its Normal, counts beside the best one has a chain, as far as there are
    chains. None where the search is not for this program, or no Normal that it found has a finite evidence, as under a density
    that grows without bound.
    """
    search_key, key = jax.random.split(key)
    try:
        space = Space(target.program, args, method=method)
        found = find_starts(space, args, search_key, num_paths=2 * num_chains)
    except ValueError:
        return None
    top = max(start.log_evidence for start in found.all)
    if not np.isfinite(top):
        return None
    kept = [s for s in found.all if s.log_evidence >= top - NEGLIGIBLE][:num_chains]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    points = [
        s.center + _WIDER * s.factor @ rng.standard_normal(len(s.center))
        for s in (kept[i % len(kept)] for i in range(num_chains))
    ]
    best = found.best
    is_dense = target.dimension <= DENSE_UP_TO
    factor = best.factor if is_dense else np.linalg.norm(best.factor, axis=1)
    frame = Frame(np.float32(best.center), np.float32(factor))
    text = f"{len(found.all)} found, {len(kept)} within {NEGLIGIBLE:g} nats of the best"
    return np.stack(points), frame, text
