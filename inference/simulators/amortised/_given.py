"""What is known of given data and given rows before anything is computed of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ....ppl._compat import Tracer
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from .._simulators import on_host
from .._table import ReferenceTable

_PRIOR, _SURE = 10_000, 1e-7  # draws that given rows are compared with, and p-values of no chance


def checked_data(table: ReferenceTable, data: Mapping[str, PyTree]) -> dict[str, ArrayLike]:
    """One observation, of the simulations' shapes and finite."""
    if not isinstance(data, Mapping):
        raise TypeError(
            f"Amortised: the data are {type(data).__name__}, and the sites {list(table.data)} are observed. Give each by name, "
            f"{{{next(iter(table.data))!r}: ...}}."
        )
    arrays: dict[str, ArrayLike] = {
        name: x if isinstance(x, Tracer) else _numbers(name, x) for name, x in data.items()
    }
    wanted = {name: x.shape[1:] for name, x in table.data.items()}
    given = {name: np.shape(x) for name, x in arrays.items()}
    if given != wanted:
        raise ValueError(
            f"Amortised: data have the shapes {given}, and the simulations {wanted}. Give each observed site by name, of one "
            "data set."
        )
    seen = {n: x for n, x in arrays.items() if not isinstance(x, Tracer)}
    wrong = [n for n, x in seen.items() if not np.isfinite(np.asarray(x, float)).all()]
    if wrong:
        raise ValueError(
            f"Amortised: the data of {wrong} are not finite, and no simulation was like that. Simulate what was seen, e.g. "
            "with missing cells as zeros and their mask beside them."
        )
    return arrays


def check_prior(table: ReferenceTable, key: Key) -> None:
    """Refuse rows, of a file or given, whose parameters are no draws of the prior: of each number the largest gap of ranks."""
    from scipy.stats import ks_2samp  # on use: a fifth of a second

    draw = lambda key: dict(table.model.simulate(key, *table.args).choices)
    drawn = shared_jit(jax.vmap(draw))(jax.random.split(key, _PRIOR))
    for name, rows in table.parameters.items():
        # Where simulations failed the prior of the others is cut.
        every = np.concatenate([rows, table.failed[name]]) if table.failed else rows
        of_rows, of_prior = (
            np.asarray(x, float).reshape(len(x), -1).T for x in (every, drawn[name])
        )
        for one, other in zip(of_rows, of_prior, strict=True):
            apart, p_value = np.asarray(ks_2samp(one, other), float)
            if p_value < _SURE:
                raise ValueError(
                    f"amortise: the table's parameters of site '{name}' are no draws of its prior: distribution functions of "
                    f"{len(one)} rows and of {_PRIOR} draws are up to {apart:.2g} apart, p {p_value:.1g}. What "
                    "would be learned is a posterior under the law that they come from. Give the model that law, or draw from "
                    "the prior (and give parameters of simulations that failed as failed=); a likelihood may be learned from "
                    "any parameters, by surrogate."
                )


def tell_far(table: ReferenceTable, data: Mapping[str, ArrayLike]) -> None:
    """Say of data that lie further beyond all simulations than these lie apart."""
    for name, x in data.items():
        if isinstance(x, Tracer):
            continue
        low, high = table.ends[name]
        beyond = np.maximum(low - x, x - high)
        if np.any((beyond > 0) & (beyond >= high - low)):
            warnings.warn(
                f"Amortised: data of site '{name}' lie further beyond all {table.num_simulations} simulations than these lie "
                "apart. Posteriors there are a guess of the networks that no simulation has shown to be right, and no check of "
                "the report is about them. Look at posterior_checks.misspecification, or simulate from a prior under which such "
                "data can be.",
                stacklevel=4,
            )


def _numbers(name: str, value: PyTree) -> np.ndarray:
    """The numbers that a device would have, where the checks need no device."""
    found = on_host(f"Amortised: data '{name}'", value)
    return found.astype(jax.dtypes.canonicalize_dtype(found.dtype))
