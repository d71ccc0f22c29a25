"""What is learned: the default guide, its loss on rows, what a file says of it, and what its trainings are together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .... import ppl
from ....ppl._types import Choices, Key, ParamMap
from ....ppl.language import ChoiceMismatch, Keywords, matched
from ..._depends import depends
from ...fitting.storage import structure_of
from .._learn import Learned, RowProblem
from .._normal_scores import NormalScores
from .._region import scored
from .._table import Part, ReferenceTable
from ._mixture import EqualMixture


def as_rows(table: ReferenceTable, part: Part, turn: int = 0) -> dict[str, np.ndarray]:
    """Parameters and data of one part in one mapping."""
    parameters, data = table.rows(part, turn)
    return {
        **{f"parameters/{n}": x for n, x in parameters.items()},
        **{f"data/{n}": x for n, x in data.items()},
    }


def first(table: ReferenceTable) -> dict[str, Array]:
    """The data of one row, which show their shapes."""
    return {n: jnp.asarray(x[0]) for n, x in table.data.items()}


def problem_of(table: ReferenceTable, guide: ppl.Program, turn: int = 0) -> RowProblem:
    """What the guide is to learn from a table, of several times the one of this number."""

    def loss(params: ParamMap, key: Key, rows: Mapping[str, ArrayLike]) -> Array:
        def one(row: Mapping[str, Array]) -> Array:
            return scored(guide.bind(params), _named(row, "parameters"), **_named(row, "data"))

        return -jax.vmap(one)({n: jnp.asarray(x) for n, x in rows.items()})

    init = lambda key: guide.init(key, **first(table))
    parts = as_rows(table, "training", turn), as_rows(table, "validation", turn)
    return RowProblem("amortise", init, loss, *parts)


def guide_of(guide: ppl.Program, training: Sequence[Learned]) -> ppl.Program:
    """The guide at what it has learned: of several trainings their mixture."""
    if len(training) == 1:
        return guide.bind(training[0].params)
    return EqualMixture(guide, [member.params for member in training])


def structure(table: ReferenceTable, guide: ppl.Program) -> dict[str, PyTree]:
    """What a file says of the guide, whose parameters are bound; of a mixture's members, which are alike, the first."""
    guide = guide.members[0] if isinstance(guide, EqualMixture) else guide
    return {"guide": structure_of(guide, (Keywords(first(table)),))["model"]}


def _named(row: Mapping[str, Array], group: str) -> dict[str, Array]:
    prefix = f"{group}/"
    return {n.removeprefix(prefix): x for n, x in row.items() if n.startswith(prefix)}


def check_guide(table: ReferenceTable, guide: ppl.Program) -> None:
    """Refuse a guide whose draws are not the model's parameters."""
    row = first(table)

    def compare(key: Key) -> None:
        drawn = guide.simulate(key, **row)
        scored, _ = table.model.generate(key, drawn.shared_choices, *table.args)
        matched(scored, drawn, ("covers",))

    try:
        jax.eval_shape(compare, jax.random.key(0))
    except ChoiceMismatch as err:
        raise ValueError(
            f"amortise: the guide {guide!r} misses the latent sites {err.missing} and draws {err.extra} besides. Draw those of "
            f"the model, {list(table.parameters)}."
        ) from err


def check_density(table: ReferenceTable, guide: ppl.Program) -> None:
    """Refuse a guide whose density at given parameters depends on noise: its draws have another."""
    row, choices = first(table), {n: jnp.asarray(x[0]) for n, x in table.parameters.items()}
    params = guide.init(jax.random.key(0), **row)

    def density(key: Key, params: ParamMap, choices: Choices, row: dict[str, Array]) -> Array:
        return guide.bind(params).generate(key, choices, **row)[0].log_density

    inputs = (jax.random.key(0), params, choices, row)
    closed = jax.make_jaxpr(density)(*inputs)
    if depends(closed.jaxpr, [i == 0 for i in range(len(jax.tree.leaves(inputs)))])[0]:
        raise ValueError(
            f"amortise: the guide {guide!r} has noise beside its draws of {list(choices)}, by ppl.rng_key or auxiliary sites, so "
            "that its density at given parameters is not that of its draws. Draw these sites alone, from laws that are as wide "
            "without it: a mixture, a flow."
        )


def default_guide(table: ReferenceTable, key: Key, turn: int = 0) -> ppl.Program:
    """Site after site, a flow given the data and the sites before, which begins at the rows of one training.

    The scales of its inputs are the same in all trainings, so that they are one program.
    """
    from .._networks import ConditionalFlow

    discrete = [n for n, x in table.parameters.items() if not np.issubdtype(x.dtype, np.floating)]
    if discrete:
        raise ValueError(
            f"amortise: the latent sites {discrete} are discrete, and the default guide has spline flows. Give a guide, or sum "
            "them out of the model by ppl.eliminate where they have densities."
        )
    of_parameters, of_data = table.coordinates
    scores = NormalScores.of(np.asarray(of_data.flat(table.rows("training")[1], is_scaled=False)))
    parameters, data = table.rows("training", turn)
    flows, context = {}, np.asarray(of_data.flat(data))
    keys = jax.random.split(key, len(of_parameters.sizes))
    for k, (name, size) in zip(keys, of_parameters.sizes.items(), strict=True):
        values = np.asarray(of_parameters.part(name, parameters[name]))
        flows[name] = ConditionalFlow(size, context.shape[1], key=k).fitted(context, values)
        context = np.concatenate([context, values], 1)

    def posterior(**data: Array) -> None:
        context = of_data.flat(data)
        seen = scores(of_data.flat(data, is_scaled=False))
        for name, flow in flows.items():
            law = ppl.module(f"flow_{name}", flow).law(context, seen)
            part = of_parameters.part(name, ppl.sample(name, of_parameters.law(name, law)))
            context = jnp.concatenate([context, part])
            seen = jnp.concatenate([seen, jnp.arcsinh(part)])

    posterior.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in table.data]
    )
    return ppl.Program(posterior)
