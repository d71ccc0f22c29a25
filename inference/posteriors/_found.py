"""What a way to the posterior has found: a form of the model, a verdict, and how all latent sites are drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._types import Key
from ._certificate import Attempt, Certificate, Method
from ._draws import Draws
from ._judged import Verdict
from ._problem import Problem, completed
from ._proper import endless, is_in_doubt, lost_draws
from .chains import Chains, precision, singled
from .forms import Target
from .weighted import heavy_tails


class ModelForm(NamedTuple):
    """A form of the model.

    Attributes:
        label: how it differs, in words.
        program: in which the sites that are left are drawn.
        eliminated: sites that are summed or integrated out.
        is_double: whether it is run in double precision.
    """

    label: str
    program: ppl.Program
    eliminated: tuple[str, ...]
    is_double: bool = False


class Found(NamedTuple):
    """What a rung found, and how all latent sites are drawn from it."""

    method: Method
    verdict: Verdict
    form: ModelForm
    draw: Callable[[PyTree], dict[str, np.ndarray]]
    num_chains: int = 1
    statistics: dict[str, np.ndarray] = {}  # noqa: RUF012


def completing(
    problem: Problem, target: Target, u: np.ndarray, *, is_double: bool
) -> Callable[..., PyTree]:
    """A function of a key that draws all latent sites at points [S, d]."""

    def draw(key: Key) -> dict[str, np.ndarray]:
        with precision(is_double=is_double):
            points = np.asarray(u, jax.dtypes.canonicalize_dtype(float))
            there = problem._replace(args=target.args)
            found = completed(there, target.program, key, points, target.choices)
        return singled(found)

    return draw


def chains_found(problem: Problem, target: Target, chains: Chains, form: ModelForm) -> Found:
    """The draws of chains."""
    run = chains.run
    flat = {
        "lp": run.log_density,
        "diverging": run.is_diverging,
        "energy": run.energy,
        "n_steps": run.num_steps,
    }
    u = run.u.reshape(-1, target.dimension)
    draw = completing(problem, target, u, is_double=form.is_double)
    statistics = {name: singled(x.reshape(-1)) for name, x in flat.items()}
    return Found("nuts", chains.verdict, form, draw, len(run.u), statistics)


def make_draws(
    problem: Problem,
    found: Found,
    target: Callable[[], Target],
    key: Key,
    attempts: tuple[Attempt, ...],
) -> Draws:
    """The result; `target` makes that of the form without discrete sites alone."""
    verdict, choices = found.verdict, found.draw(key)
    is_lost = lambda x: np.issubdtype(x.dtype, np.floating) and np.isnan(x).any()
    # Of what was integrated out, without digits.
    if lost := [n for n, x in choices.items() if is_lost(x)]:
        text = f"draws of {', '.join(lost)} are no numbers: the precision does not tell them"
        verdict = verdict._replace(problems=(text, *verdict.problems))
    elif verdict.is_certified and found.method != "exact":
        sampled = {n: x for n, x in choices.items() if n not in found.form.eliminated}
        text = lost_draws(sampled, target)
        if text is None and is_in_doubt(problem.trace):
            text = endless(target(), choices)
        verdict = verdict if text is None else verdict._replace(problems=(text,))
    certificate = Certificate(
        found.method, verdict.is_certified, verdict.problems, verdict.seen, attempts, found.form.eliminated,
        heavy_tails(choices, found.num_chains),
    )  # fmt: skip
    return Draws(
        choices, certificate, found.num_chains, dict(found.statistics),
        problem.model, problem.args, problem.labels,
    )  # fmt: skip
