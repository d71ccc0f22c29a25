"""Site weights: a program whose log-probs count more or less, site by site and step by step."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import is_concrete
from ..traces import SiteInfo
from ._program import Program, as_program

Array = jax.Array


class SiteWeights:
    """fnmatch pattern on site names -> weight of the log-probs. A site without a pattern has weight 1.

    Args:
        weights: a number, or an array whose shape is that of the site's first batch axes (time first, in `ppl.scan`).
        before: weights that the log-probs have been multiplied by already.

    Raises:
        ValueError: a negative or non-finite weight, or a site that two patterns match.
    """

    def __init__(self, weights: Mapping[str, float], before: SiteWeights | None = None) -> None:
        self.weights, self.before = dict(weights), before
        for pattern, weight in self.weights.items():
            if is_concrete(weight) and not (
                np.all(np.isfinite(weight)) and np.all(np.asarray(weight) >= 0)
            ):
                raise ValueError(
                    f"site_weights['{pattern}'] is {weight}, and a weight must be a finite number >= 0."
                )

    def of(self, site: str) -> PyTree:
        """The weight of a site."""
        found = [p for p in self.weights if fnmatch.fnmatchcase(site, p)]
        if site in found:
            found = [site]
        if len(found) > 1:
            raise ValueError(
                f"site_weights: the patterns {found} all match site '{site}'. Give each site one weight."
            )
        return self.weights[found[0]] if found else 1.0

    def apply(self, log_probs: Mapping[str, Array], sites: Mapping[str, SiteInfo]) -> PyTree:
        """Weighted log-probs.

        Raises:
            ValueError: a weight has not the shape of leading batch axes of its site.
        """
        if self.before is not None:
            log_probs = self.before.apply(log_probs, sites)
        return {n: self._weighted(n, x, sites[n]) for n, x in log_probs.items()}

    def _weighted(self, name: str, log_prob: Array, info: SiteInfo) -> Array:
        weight = self.of(name)
        if isinstance(weight, int | float) and weight == 1:
            return log_prob
        shape = jnp.shape(weight)
        if shape != log_prob.shape[: len(shape)]:
            axes = [f"{d or '_'}={n}" for d, n in zip(info.dims, log_prob.shape, strict=False)]
            raise ValueError(
                f"Site '{name}': its weight has shape {shape}, but the site's batch axes are ({', '.join(axes)}). Give one "
                "number, or one per element of the leading axes (a schedule over the steps of a scan has shape [steps])."
            )
        return jnp.reshape(weight, shape + (1,) * (log_prob.ndim - len(shape))) * log_prob

    def unmatched(self, sites: list[str]) -> list[str]:
        """Patterns that match none of `sites`."""
        return [p for p in self.weights if not any(fnmatch.fnmatchcase(s, p) for s in sites)]

    def common(self, sites: Any) -> float | None:
        """The one weight of all `sites`, or None if they differ."""
        values = {float(w) for s in sites for w in np.unique(np.asarray(self.of(s)))}
        before = 1.0 if self.before is None else self.before.common(sites)
        return values.pop() * before if len(values) == 1 and before is not None else None


def reweight(program: Program | Callable[..., PyTree], weights: Mapping[str, float]) -> Program:
    """The program whose traces hold w_s log p_s in place of log p_s; its draws are the same. Weights in turn multiply.

    log_density = sum over sites of w_s log p_s: the density of no law unless every w_s is 1.

    Args:
        program: a program, or the guide of one.
        weights: see `SiteWeights`.

    Raises:
        TypeError: a program whose density is estimated or summed out; it has no log-probs by site.
    """
    return as_program(program).reweighted(SiteWeights(weights))
