"""Draws from a fitted guide, and predictions of new rows from them.

What a guide knows of new rows is the question here. An amortised guide reads them. Any other guide has draws that belong to the
rows it was fitted on, and these must not pass for draws of the new ones, not even where there happen to be as many: such sites
are drawn from the model, given the sites that are kept.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

import jax
from jaxtyping import PyTree

from ....ppl._types import Key
from ....ppl.language import Program
from ..._arguments import outcome
from ._forward import check_given, forward_program
from ._from_draws import names_first
from ._new_rows import check_kept_rows, check_rows, reads_arguments
from ._other_arguments import check_runs, is_of_fit
from ._past import check_past


def predictive(
    model: Program,
    guide: Program,
    args: tuple,
    fit_args: tuple | None,
    keep: str | Sequence[str] | None,
    *,
    are_examples: bool = False,
    is_guide_alone: bool = False,
) -> tuple[Callable[..., PyTree], tuple[PyTree, PyTree]]:
    """A function `(key, args, guide_args) -> (kept draws of the guide, predictions)`, and these arguments.

    Args:
        model: with its parameters bound.
        guide: likewise.
        args: where to predict.
        fit_args: arguments of the fit; None if they were not kept.
        keep: see `Fit.predict`.
        are_examples: whether other rows than those of `args` will come, even if these are the fit's.
        is_guide_alone: whether there are to be no predictions.
    """
    is_new = are_examples or not is_of_fit(model, args, fit_args)
    if keep is None:
        if is_new:
            check_runs("Fit.predict", model, args, fit_args, if_possible(guide, args))
            check_rows("Fit.predict", model, guide, args, fit_args, are_examples=are_examples)
        at, patterns = args, ["*"]
    else:
        patterns = [keep] if isinstance(keep, str) else list(keep)
        at = args if fit_args is None else fit_args
        patterns = check_kept(guide, patterns, at, is_stored=fit_args is not None)
        if is_new:
            kept = {n: x for n, x in _choices(guide, at).items() if matches(n, patterns)}
            check_runs("Fit.predict", model, args, fit_args, kept)
        if is_new and "*" not in patterns:
            check_kept_rows("Fit.predict", model, args, fit_args)
    if fit_args is not None and args is not fit_args and not are_examples:
        check_past("Fit.predict", model, args, fit_args, may_begin_anew=False)

    kept_of = lambda choices: {n: x for n, x in choices.items() if matches(n, patterns)}
    model = forward_program("Fit.predict", model, kept_of(_choices(guide, at)), args)
    check_given(
        "Fit.predict", model, _choices(guide, at), args,
        "inference.predict(ppl.intervene(fit.model, {site: values}), fit.posterior(key, num_samples), key, *args)",
    )  # fmt: skip

    def draw(key: Key, args: tuple, at: tuple) -> PyTree:
        guide_key, model_key = jax.random.split(key)
        kept = kept_of(guide.simulate(guide_key, *at).shared_choices)
        return kept, {} if is_guide_alone else model.predict(model_key, kept, *args)

    return draw, (args, at)


def check_kept(
    guide: Program, patterns: Sequence[str], args: tuple, *, is_stored: bool
) -> list[str]:
    """Patterns, names as themselves; refuses those without a site, and sites that would need the arguments of the fit."""
    from_args = reads_arguments(guide, args)
    patterns = names_first(patterns, from_args)
    unmatched = [p for p in patterns if not any(matches(name, [p]) for name in from_args)]
    if unmatched:
        raise ValueError(
            f"Fit.predict: argument 'keep' has {unmatched}, which match no site that the guide draws; these are "
            f"{list(from_args)}."
        )
    reading = [name for name, reads in from_args.items() if reads and matches(name, patterns)]
    if reading and not is_stored:
        raise ValueError(
            f"Fit.predict: the guide draws {reading} from the arguments of the fit, which came from an iterable and were not "
            "kept. Draw them with fit.guide.simulate(key, *batch) and hand them to fit.model.predict(key, choices, *new_args)."
        )
    return patterns


def _choices(guide: Program, args: tuple) -> dict[str, PyTree]:
    return outcome(lambda *args: guide.simulate(jax.random.key(0), *args).shared_choices, args)


def if_possible(guide: Program, args: tuple) -> dict[str, PyTree]:
    """The guide's draws at new arguments, as shapes; nothing where it cannot be run there, which `check_rows` tells."""
    try:
        return _choices(guide, args)
    except Exception:
        return {}


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)
