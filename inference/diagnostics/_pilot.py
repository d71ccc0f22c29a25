"""Choose estimators by trial."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import PyTree

from ...ppl._calls import checked_call
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from ...ppl.analysis import Controlled
from ...ppl.language import apply, joined
from ...ppl.strategies import TRIED
from ..objectives._objective import Objective
from ._gradient_report import gradient_report, refuse_particle_runs

# Relative to the largest variance among a site's candidates: below it, a variance is rounding.
_ROUNDING = 1e-9
CONTROL = "(control)"


class Trial(NamedTuple):
    """One strategy tried at one site.

    Attributes:
        site: name; "(control)" in the two trials of an objective's control variate.
        strategy: name; there "with" and "without".
        variance: of the whole gradient, summed over coordinates; NaN where refused.
        num_operations: arithmetic of one estimate, see `GradientReport`.
        refusal: why it cannot be used, or None.
    """

    site: str
    strategy: str
    variance: float
    num_operations: float
    refusal: str | None

    @property
    def score(self) -> float:
        """Variance times cost: the variance that one operation leaves."""
        return self.variance * self.num_operations


@shown
@dataclasses.dataclass(frozen=True)
class Pilot:
    """See `pilot`; printing it shows every trial.

    Attributes:
        strategies: site -> name of the chosen strategy, for `strategies=`.
        trials: all of them, in order.
        objective: the objective with these strategies, and with its control variate where that is worth its cost.
        control: "with" or "without", what was chosen of the objective's control variate; None if it has none.
    """

    strategies: dict[str, str]
    trials: tuple[Trial, ...]
    objective: Objective
    control: str | None = None

    def _facts(self) -> dict[str, PyTree]:
        refused = sum(t.refusal is not None for t in self.trials)
        return {
            "objective": self.objective.name,
            "strategies": self.strategies,
            "control variate": self.control,
            "trials": f"{len(self.trials)}, {refused} of them refused; print(pilot) shows each",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("site", "strategy", "variance", "operations", "product", "")]
        for t in self.trials:
            if t.refusal is not None:
                note = textwrap.shorten(t.refusal, 90, placeholder=" ...")
                rows.append((t.site, t.strategy, "-", "-", "-", note))
                continue
            choice = self.control if t.site == CONTROL else self.strategies[t.site]
            note = "chosen" if choice == t.strategy else ""
            numbers = f"{t.variance:.3g}", f"{t.num_operations:.3g}", f"{t.score:.3g}"
            rows.append((t.site, t.strategy, *numbers, note))
        return [rows]

    def __str__(self) -> str:
        return table(*self._tables())


@checked_call
def pilot(
    objective: Objective,
    params: PyTree,
    key: Key,
    *args: PyTree,
    candidates: Sequence[str] = TRIED,
    num_draws: int = 100,
    **kwargs: PyTree,
) -> Pilot:
    """Try strategies site by site and keep, for each, the one with the smallest variance times cost.

    Sites are taken in program order; those already decided keep their choice, the others follow the rule of "auto". The
    variance is that of the whole gradient at `params`, the cost its number of operations, so that
    the choice depends on the key alone. Each trial compiles the gradient once. If the objective brings a control variate
    (`ppl.controlled`), the last two trials are with and without it, at as many replicates: its coefficient is the best one for
    the value, and what the gradient gains may be less than it costs.

    Args:
        objective: what is estimated; its own `strategies` are set aside.
        params: where; a point inside training says more than the first one.
        key: PRNG key of either kind.
        args: data.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        candidates: names of strategies; those that a site cannot have, or that the program makes unsound, are passed over
            with their reason. Gamma, Beta and Dirichlet sites have two pathwise ones, "reparam" (the implicit derivative) and
            "rejection_reparam", of nearly the same variance: only a trial tells which is cheaper.
        num_draws: estimates of each trial.

    Returns:
        A `Pilot`.

    Raises:
        ValueError: no candidate serves a site, with the reason of each.
        TypeError: an objective estimated by particle runs (`fivo`, `vsmc`).

    Validity: the choice is made before training and from its own key, so that it biases nothing.
    """
    args = joined(args, kwargs)
    refuse_particle_runs("pilot", objective)
    by_rule = dataclasses.replace(objective, strategies="auto")
    sites = by_rule.plan(params, *args).sites
    names = list(dict.fromkeys(p.site.split("#")[0] for p in sites))
    chosen: dict[str, str] = {}
    trials: list[Trial] = []
    for i, name in enumerate(names):
        rule = dict.fromkeys(names[i + 1 :], "auto")
        here = [
            _try(
                dataclasses.replace(objective, strategies=chosen | {name: strategy} | rule),
                name, strategy, params, key, args, num_draws,
            )
            for strategy in candidates
        ]  # fmt: skip
        sound = [t for t in here if t.refusal is None]
        if not sound:
            reasons = "; ".join(f"{t.strategy}: {t.refusal}" for t in here)
            raise ValueError(
                f"pilot: no candidate serves site '{name}'. {reasons} Add a strategy to the candidates that serves it."
            )
        chosen[name] = _cheapest(sound)
        trials += here
    found = dataclasses.replace(objective, strategies=chosen)
    if not found.expectation.ready(params, *args).is_controlled:
        return Pilot(chosen, tuple(trials), found)
    options = {"with": found, "without": without_control(found)}
    here = [_try(o, CONTROL, n, params, key, args, num_draws) for n, o in options.items()]
    sound = [t for t in here if t.refusal is None]
    control = _cheapest(sound) if sound else "with"
    return Pilot(chosen, (*trials, *here), options[control], control)


@dataclasses.dataclass(frozen=True)
class _ValueAlone:
    """`fn` without its control variate: a value, so that checks are shared by those that are equal."""

    fn: Callable[..., PyTree]

    def __call__(self, *args: PyTree) -> Any:
        found = apply(self.fn, args)
        return found.value if isinstance(found, Controlled) else found


def without_control(objective: Objective) -> Objective:
    """The objective without the control variate that its function may return: value and gradient have the same mean."""
    return dataclasses.replace(objective, fn=_ValueAlone(objective.fn))


def _cheapest(trials: Sequence[Trial]) -> str:
    floor = _ROUNDING * max(t.variance for t in trials)
    return min(trials, key=lambda t: max(t.variance, floor) * t.num_operations).strategy


def _try(
    objective: Objective,
    name: str,
    strategy: str,
    params: PyTree,
    key: Key,
    args: PyTree,
    num_draws: int,
) -> Trial:
    try:
        report = gradient_report(objective, params, key, *args, num_draws=num_draws)
    except (ValueError, TypeError, NotImplementedError) as err:  # a relaxed draw as an index, say
        return Trial(name, strategy, math.nan, math.nan, " ".join(str(err).split()))
    if not math.isfinite(report.variance):
        return Trial(
            name, strategy, math.nan, math.nan, "its gradient is not finite at these parameters"
        )
    return Trial(name, strategy, report.variance, report.num_operations, None)
