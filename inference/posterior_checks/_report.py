"""All checks of a posterior, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._compat import typed_key
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from ..inputs import checked
from . import _words as words
from ._c2st import LocalC2ST, local_c2st
from ._coverage import coverage
from ._local import LocalCoverage, local_coverage
from ._misspecification import Misspecification, misspecification
from ._ranks import RankCheck
from ._shrinkage import ZScores, z_scores
from ._simulations import Simulations, simulate
from ._symmetry import vsbc
from ._tarp import directions, tarp

Array = jax.Array
Check = RankCheck | LocalCoverage | LocalC2ST | Misspecification


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class PosteriorReport:
    """See `check_posterior`; printing it shows every check and says what is wrong.

    Attributes:
        simulations: what all was computed from.
        checks: name -> result: "below", "central", "hpd", "joint", "tarp", "tarp_data", "directions", "symmetry", "local", and
            with observed data "here" and "model".
        p_values: name -> smallest p-value of the check, corrected for its columns.
        corrected: name -> the same, corrected for the number of checks as well (Holm).
        z: z-scores and shrinkage.
        ways: directions of the "widest miss" and the "narrowest miss", [2, coordinates], or None for one coordinate.
        level: at which a check objects.
        sentences: what is wrong; empty where nothing was found.
    """

    simulations: Simulations
    checks: dict[str, Check]
    p_values: dict[str, float]
    corrected: dict[str, float]
    z: ZScores
    ways: np.ndarray | None
    level: float
    sentences: tuple[str, ...]

    @property
    def objections(self) -> tuple[str, ...]:
        """Names of the checks whose corrected p-value is below the level."""
        return tuple(name for name, p in self.corrected.items() if p < self.level)

    def _facts(self) -> dict[str, PyTree]:
        found = f"{len(self.sentences)} findings; print(report) shows each"
        return {
            "simulations": f"{self.simulations.num_simulations}, {self.simulations.num_draws} draws for each",
            "checks": len(self.checks),
            "objections": list(self.objections) or "none",
            "smallest": f"{min(self.corrected.values()):.2g}, corrected for {len(self.checks)} checks",
            "first": self.sentences[0] if self.sentences else None,
            "findings": found if self.sentences else "none",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("check", "smallest p", "corrected", "")]
        for name, p in self.p_values.items():
            note = "objects" if name in self.objections else ""
            rows.append((name, f"{p:.2g}", f"{self.corrected[name]:.2g}", note))
        return [rows]

    def __str__(self) -> str:
        said = [f"- {sentence}." for sentence in self.sentences]
        none = f"No check objects at level {self.level:g}, all together."
        remarks = [
            f"- {label}: {verdict}."
            for label, verdict in zip(self.z.labels, self.z.verdicts, strict=True)
            if verdict != "identified"
        ]
        parts = [table(*self._tables()), "\n".join(said or [none])]
        return "\n\n".join([*parts, *(["\n".join(["Beside that:", *remarks])] if remarks else [])])


@checked_call
def check_posterior(
    model: ppl.Program | Callable[..., PyTree],
    posterior_fn: Callable[[Array, Mapping[str, Array]], Mapping[str, PyTree]],
    key: Key,
    *args: PyTree,
    observed: Mapping[str, Any] | None = None,
    num_simulations: int = 400,
    batch_size: int | None = None,
    loop: Literal["compiled", "python"] = "compiled",
    level: float = 0.05,
    **kwargs: PyTree,
) -> PosteriorReport:
    """Draw parameters and data from the model, infer, and say what is wrong with the posteriors.

    The checks: coverage from below (the ranks of `inference.diagnostics.calibrate`), of central intervals, of densest regions
    and of all coordinates together; TARP with random points and with points near the truth's prediction; intervals along the
    directions that look worst; symmetry (VSBC); ranks regressed on the data. With `observed` also a local classifier test at
    these data, and whether the model predicts them.

    Args:
        model: the program.
        posterior_fn: `(key, observed) -> draws`: observed sites by name; latent sites by name, [L, ...] (a subset will do).
        key: PRNG key of either kind.
        args: the model's arguments; observations in them give shapes only.
        observed: the data at hand, by observed site.
        num_simulations: S.
        batch_size: see `simulate`.
        loop: "compiled", or "python" for what JAX cannot trace; see `simulate`.
        level: probability that any check objects to a right posterior.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.

    Returns:
        A `PosteriorReport`.

    Raises:
        ValueError: a level outside of (0, 1), observed data of other sites or shapes than the model's, and what `simulate`,
            `local_c2st` and `misspecification` refuse.
        ImportError: `observed` is given, and scikit-learn is missing.

    Validity: for independent draws each p-value is exact or, far out and for ties, too large; `level` holds for all together by
    Holm's correction. No objection does not prove a posterior right: each check sees its kind of error, given enough simulations.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def model():
        ...     m = ppl.sample("m", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(m, 1.0), obs=0.0)
        >>> def narrow(key, observed):
        ...     return {"m": observed["x"] / 2 + 0.4 * jax.random.normal(key, (99,))}
        >>> report = inference.posterior_checks.check_posterior(model, narrow, jax.random.key(0))
        >>> "central" in report.objections, "symmetry" in report.objections
        (True, False)
    """
    args = checked(check_posterior, model, args, kwargs)
    posterior_key, simulation_key, check_key = jax.random.split(typed_key(key), 3)
    _check_level(level)
    simulations = simulate(
        model, posterior_fn, simulation_key, *args,
        num_simulations=num_simulations, batch_size=batch_size, loop=loop,
    )  # fmt: skip
    draws = None
    if observed is not None:
        _check_observed(simulations, observed)
        draws = {n: np.asarray(x) for n, x in posterior_fn(posterior_key, observed).items()}
    return check_simulations(simulations, check_key, observed=observed, draws=draws, level=level)


@checked_call
def check_simulations(
    simulations: Simulations,
    key: Key,
    *,
    observed: Mapping[str, object] | None = None,
    draws: Mapping[str, object] | None = None,
    level: float = 0.05,
) -> PosteriorReport:
    """The report of `check_posterior` on simulations that are there already, from any library.

    Args:
        simulations: truths, data and draws.
        key: PRNG key of either kind.
        observed: the data at hand, by observed site.
        draws: latent site -> [N, ...], posterior draws at `observed`.
        level: probability that any check objects to a right posterior.

    Returns:
        A `PosteriorReport`.

    Raises:
        ValueError: a level outside of (0, 1); `observed` without `draws` or the other way; what the checks refuse.
        ImportError: `observed` is given, and scikit-learn is missing.

    Validity: see `check_posterior`.
    """
    _check_level(level)
    if (observed is None) != (draws is None):
        raise ValueError(
            "check_simulations: observed and draws belong together, and one of them is missing. Pass posterior draws at the "
            "observed data, or neither."
        )
    keys = jax.random.split(typed_key(key), 10)
    checks: dict[str, Check] = {
        kind: coverage(simulations, keys[i], kind=kind)
        for i, kind in enumerate(("below", "central", "hpd", "joint"))
    }
    checks["tarp"] = tarp(simulations, keys[4])
    checks["tarp_data"] = tarp(simulations, keys[5], references="data")
    ways = None
    if len(simulations.coordinates) > 1 and simulations.num_draws > 1:
        checks["directions"], ways = directions(simulations, keys[6])
    checks["symmetry"] = vsbc(simulations, keys[7])
    checks["local"] = local_coverage(simulations, keys[8])
    if observed is not None and draws is not None:
        here, model = jax.random.split(keys[9])
        checks["here"] = local_c2st(simulations, observed, draws, here)
        checks["model"] = misspecification(simulations.observed, observed, model)
    p_values = {name: check.smallest_p_value for name, check in checks.items()}
    corrected, z = words.holm(p_values), z_scores(simulations)
    wrong = {name for name, p in corrected.items() if p < level}
    # A check that objects names its columns at the level that is left to it.
    objecting = {name: check for name, check in checks.items() if name in wrong}
    sentences = _sentences(objecting, z, ways, simulations, level / len(checks))
    return PosteriorReport(simulations, checks, p_values, corrected, z, ways, level, sentences)


def _sentences(
    checks: dict[str, Any], z: ZScores, ways: PyTree, simulations: Simulations, threshold: float
) -> tuple[str, ...]:
    """Sentences on the checks that object; each shows at least its worst column."""
    said: list[str] = []
    for name, check in checks.items():
        limit = max(threshold, 1.000001 * check.smallest_p_value)
        match name:
            case "below" | "symmetry":
                new = words.bias(check, limit)
            case "central" | "hpd":
                new = words.width(check, limit)
            case "joint" | "tarp" | "tarp_data":
                new = words.joint(check, limit)
            case "directions":
                new = words.along(check, ways, simulations.coordinates, limit)
            case "local":
                new = words.locally(check, z, limit)
            case "here":
                new = words.here(check, limit)
            case _:
                new = words.surprised(check, limit)
        told = {told.partition(":")[0] for told in said} if name in ("hpd", "symmetry") else set()
        said += [sentence for sentence in new if sentence.partition(":")[0] not in told]
    return tuple(said)


def _check_observed(simulations: Simulations, observed: Mapping[str, Any]) -> None:
    """Refuse data of other sites or shapes than the model's, before `posterior_fn` stumbles over them."""
    known = {name: np.shape(x)[1:] for name, x in simulations.observed.items()}
    given = {name: np.shape(x) for name, x in observed.items()}
    if given != known:
        raise ValueError(
            f"check_posterior: observed has the sites and shapes {given}, and the model observes {known}. Give one data set, by "
            "the names of the model's observed sites."
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"check_posterior: level must lie between 0 and 1, got {level}.")
