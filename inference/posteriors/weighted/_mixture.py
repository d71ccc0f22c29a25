"""Modes that no chain crosses, weighed: importance draws of a mixture that is fitted to the chains.

Chains that agree make a group; each group gives a multivariate Student law of its draws' mean and covariance, and their equal
mixture q is the proposal. Weights p / q then hold the share of each mode and mend each law's shape, whether or not the chains had
found the shares; k-hat says whether draws were enough.

Reference: Vehtari et al. 2024, arXiv:1507.02646 (k-hat); Owen and Zhou 2000 (mixtures as proposals).
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import jax
import numpy as np

from ....ppl._types import Key
from ...diagnostics._weights import resampling_indices
from .._certificate import Attempt
from .._convergence import r_hat
from .._judged import APART, Verdict
from ..chains import Run, mean_and_root
from ..forms import Target
from ._weighted import smoothed_and_judged

_FREEDOM = 7.0  # degrees of it
_WIDER = 1.1
_DRAWS = 4  # for each that is kept
MOST_COORDINATES = 40  # of more, weights of all but exact laws have a k-hat above the threshold


class Weighed(NamedTuple):
    """Points [S, d], equally weighted, the verdict on their weights, and the attempt in words."""

    u: np.ndarray
    log_density: np.ndarray
    verdict: Verdict
    attempt: Attempt


def weigh_modes(target: Target, run: Run, key: Key, num_samples: int) -> Weighed:
    """Draws of the posterior as far as the chains' places go."""
    began = time.perf_counter()
    laws = [_StudentLaw.of(run.u[group].reshape(-1, target.dimension)) for group in groups(run.u)]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    number = -(-_DRAWS * num_samples // len(laws))
    u = np.concatenate([law.draws(rng, number) for law in laws])
    log_density = target.log_densities(u)
    log_density = np.where(log_density < np.inf, log_density, -np.inf)
    each = np.stack([law.log_prob(u) for law in laws])
    log_q = np.logaddexp.reduce(each, 0) - math.log(len(laws))
    verdict, smoothed = smoothed_and_judged(log_density - log_q)
    words = f"importance, {len(laws)} modes of the chains weighed"
    attempt = Attempt(words, time.perf_counter() - began, verdict.outcome, verdict.seen)
    if smoothed is None:
        return Weighed(u[:num_samples], log_density[:num_samples], verdict, attempt)
    rows = resampling_indices(key, smoothed)
    rows = rows[(np.arange(num_samples) * len(rows)) // num_samples]
    return Weighed(u[rows], log_density[rows], verdict, attempt)


def groups(u: np.ndarray) -> list[list[int]]:
    """Chains [chains, draws, d] by their place: those of a group agree with its first one."""
    found: list[list[int]] = []
    for number in range(len(u)):
        for group in found:
            ratios = r_hat(u[[group[0], number]])
            if np.nan_to_num(ratios, nan=np.inf).max() <= APART:
                group.append(number)
                break
        else:
            found.append([number])
    return found


class _StudentLaw(NamedTuple):
    """A multivariate Student law: location + root (normal / sqrt(chi2 / freedom))."""

    location: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, u: np.ndarray) -> _StudentLaw:
        location, root = mean_and_root(u)
        return cls(location, _WIDER * root)

    def draws(self, rng: np.random.Generator, number: int) -> np.ndarray:
        normal = rng.standard_normal((number, len(self.location)))
        chi2 = rng.chisquare(_FREEDOM, (number, 1))
        return self.location + normal / np.sqrt(chi2 / _FREEDOM) @ self.root.T

    def log_prob(self, u: np.ndarray) -> np.ndarray:
        d = len(self.location)
        z = np.linalg.solve(self.root, (u - self.location).T)
        half = (_FREEDOM + d) / 2
        constant = (
            math.lgamma(half) - math.lgamma(_FREEDOM / 2) - d / 2 * math.log(_FREEDOM * math.pi)
        )
        log_volume = np.log(np.diag(self.root)).sum()
        return constant - log_volume - half * np.log1p((z**2).sum(0) / _FREEDOM)
