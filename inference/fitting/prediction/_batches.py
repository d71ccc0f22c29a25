"""Predictions of rows that come in batches: global draws are made once, what belongs to rows is drawn with each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ....ppl._compat import typed_key
from ....ppl._types import Choices, Key
from ....ppl.language import Program, labelled_as
from ..._arguments import outcome, simulated
from ..._mapped import Mapped, keyed, map_keys
from ...inputs import check_new, later_indices, may_index
from ._forward import check_given, forward_program
from ._from_draws import names_first
from ._new_rows import (
    check_kept_rows,
    check_rows,
    in_plate_of,
    predicted_rows,
    reads_arguments,
    sites_of,
)
from ._other_arguments import check_axes, check_runs
from ._predictive import check_kept, if_possible, matches

METHOD = "Fit.predict_batches"


def predict_batches(
    model: Program,
    guide: Program,
    fit_args: tuple | None,
    key: PyTree,
    batches: Iterable[PyTree],
    num_samples: int,
    keep: str | Sequence[str] | None,
    batch_size: int,
    labels: Mapping[str, PyTree],
    mesh: Mesh | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """What `Fit.predict_batches` does, model and guide with their parameters bound."""
    rest = (_as_args(batch, model, labels) for batch in batches)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"{METHOD}: there are no batches. Pass an iterable of arguments.")
    check_runs(METHOD, model, first, fit_args, if_possible(guide, first))
    check_new(METHOD, model, first)
    check_later = later_indices(METHOD, [model], first)
    if keep is None:
        at, patterns = first, _kept_of_all(model, guide, first, fit_args)
    else:
        patterns = [keep] if isinstance(keep, str) else list(keep)
        at = first if fit_args is None else fit_args
        patterns = check_kept(guide, patterns, at, is_stored=fit_args is not None)
        if "*" not in patterns:
            check_kept_rows(METHOD, model, first, fit_args)
    is_kept = lambda name: matches(name, patterns)
    key, rows_key = jax.random.split(typed_key(key))

    def globals_of(key: Key, *args: PyTree) -> Choices:
        choices = guide.simulate(key, *args).choices
        return {name: x for name, x in choices.items() if is_kept(name)}

    kept = map_keys(globals_of, key, num_samples, batch_size, at, mesh=mesh)
    reads_rows = keep is None and any(reads_arguments(guide, first).values())
    shared = _shared(guide, at)
    one = jax.eval_shape(lambda kept: jax.tree.map(lambda x: x[0], kept), kept)

    def given(key: Key, kept: Mapping[str, PyTree], args: tuple) -> dict[str, PyTree]:
        """The guide's values of a batch: the kept ones, and those of its rows."""
        if not reads_rows:
            return {name: x for name, x in kept.items() if name in shared}
        return guide.generate(key, kept, *args)[0].shared_choices

    choices = outcome(lambda kept, *args: given(jax.random.key(0), kept, args), (one, *first))
    _check_rest(model, guide, choices, at, first)
    program = forward_program(METHOD, model, choices, first)
    check_given(METHOD, program, choices, first, "ppl.intervene(fit.model, {site: values})")

    def draw(key: Key, kept: Choices, *args: PyTree) -> dict[str, PyTree]:
        guide_key, model_key = jax.random.split(key)
        return program.predict(model_key, given(guide_key, kept, args), *args)

    mapped = Mapped(lambda own, *args: draw(*own, *args), first, mesh)

    def predictions() -> Iterator[dict[str, np.ndarray]]:
        args, number = first, 0
        while args is not None:
            if number:
                check_axes(f"{METHOD}: batch {number}", model, args, first)
                if may_index(model, args):
                    check_later(number, args)
            # Rows of different batches have noise of their own.
            try:
                rows = jax.random.fold_in(rows_key, number)
                part = mapped(keyed(rows, num_samples, batch_size, kept), batch_size, args)
            except Exception:
                check_runs(
                    METHOD, model, args, first, one
                )  # says which argument, if it is one's shape
                raise
            yield part
            args, number = next(rest, None), number + 1

    return predictions()


def _as_args(batch: PyTree, model: Program, labels: Mapping[str, PyTree]) -> tuple:
    if not isinstance(batch, tuple | Mapping):
        raise TypeError(
            f"{METHOD}: a batch must hold the program's arguments, a tuple such as (x,) or a dict such as {{'x': x}}; got "
            f"{type(batch).__name__}."
        )
    return labelled_as(labels, batch, model)


def _kept_of_all(model: Program, guide: Program, args: tuple, fit_args: tuple | None) -> list[str]:
    """Names, as patterns, of the guide's sites that are the same for all batches; the others belong to rows, which is checked."""
    check_rows(METHOD, model, guide, args, fit_args, are_examples=True)
    found = predicted_rows(model, guide, args)
    reads, sites = reads_arguments(guide, args), sites_of(model, args)
    for name, is_read in reads.items():
        info = sites.get(name)
        if is_read and not (info and in_plate_of(found, info)):
            raise ValueError(
                f"{METHOD}: the guide draws '{name}' from the rows at hand, and it is no site of single rows: each batch would "
                "have other draws of what all rows share. Name the sites whose draws at the fit's own arguments are kept, "
                f"keep=['{name}'], or predict all rows at once."
            )
    kept = [n for n in simulated(guide, args).choices if not reads.get(n, False)]
    return names_first(kept, kept)


def _check_rest(model: Program, guide: Program, choices: Choices, at: tuple, args: tuple) -> None:
    """Refuse to draw from the model, with each batch anew, what all rows share."""
    sites = sites_of(model, args)
    anew = [n for n, s in sites.items() if s.kind == "latent" and n not in choices]
    if not anew:
        return
    found = predicted_rows(model, guide, args, at)
    for name in anew:
        if not in_plate_of(found, sites[name]):
            raise ValueError(
                f"{METHOD}: site '{name}' is shared by all rows, and no draw of the guide is kept for it: the model would draw "
                "it anew with each batch. Add it to keep, or predict all rows at once."
            )


def _shared(guide: Program, args: tuple) -> set[str]:
    return set(simulated(guide, args).shared_choices)
