"""Imputations as ArviZ trees: equally weighted draws, with the masks and what is known beside them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ...inference.diagnostics._weights import resampling_indices
from ...inference.export._arviz_tree import arviz_base
from ...ppl._types import Key
from .._series import Series
from ._imputation import Imputation


def to_arviz(
    found: Imputation, data: Series, key: Key, *, truth: object = None, path: Any = None
) -> Any:
    """An `xarray.DataTree` of an imputation.

    Each series' K J weighted draws are resampled by its own weights (stratified), so that ArviZ's means and quantiles apply.

    Args:
        found: of `impute(..., data, ...)`.
        data: the series.
        key: PRNG key of the resampling.
        truth: complete values, [series, time, channels], if known.
        path: also write the tree to this netCDF file.

    Returns:
        Groups "posterior_predictive": "x" (chain, draw, series, time, channel), NaN in observed cells, and, with a classifier,
        "class_probs" (..., series, class); "sample_stats": "log_weight" of the draws before resampling; "observed_data": "x",
        NaN in missing cells, "s" and, if there are labels, "y"; "constant_data": "times", "valid", "truth".

    Raises:
        ValueError: the imputation is of other cells than the data, or the truth has another shape.
    """
    if not np.array_equal(found.observed, data.observed):
        raise ValueError(
            f"to_arviz: other cells are observed in the data, of shape {np.shape(data.observed)}, than in what the imputation is "
            f"of, {found.observed.shape}. Give the series that impute was given."
        )
    if truth is not None and np.asarray(truth).shape != np.shape(data.values):
        raise ValueError(
            f"to_arviz: argument 'truth' has shape {np.asarray(truth).shape}, and the cells {np.shape(data.values)}. Give one "
            "value for each cell."
        )
    import xarray

    base = arviz_base()
    size, num_series = found.weights[..., 0].size, found.weights.shape[-1]
    weights = found.weights.reshape(size, num_series)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    keys = jax.random.split(key, num_series)
    rows = np.stack([resampling_indices(k, log_weights[:, n]) for n, k in enumerate(keys)], 1)

    def resampled(draws: np.ndarray) -> np.ndarray:
        flat = draws.reshape(size, *draws.shape[2:])
        return flat[rows, np.arange(num_series)][None]

    predicted = {"x": np.where(data.observed, np.nan, resampled(found.x))}
    if found.logits is not None:
        predicted["class_probs"] = resampled(found.draw_probs)
    observed = {
        "x": np.where(data.observed, data.values, np.nan),
        "s": np.asarray(data.observed, int),
    }
    if data.labels is not None:
        observed["y"] = np.asarray(data.labels)
    constant = {"times": np.asarray(data.times), "valid": np.asarray(data.valid, int)}
    if truth is not None:
        constant["truth"] = np.asarray(truth)
    cells = ["series", "time", "channel"]
    dims = {
        "x": cells,
        "s": cells,
        "truth": cells,
        "times": cells[:2],
        "valid": cells[:2],
        "y": cells[:1],
    }
    dims |= {"class_probs": ["series", "class"], "log_weight": ["series"]}
    stats = {"log_weight": found.log_weights.reshape(1, size, num_series)}
    sampled, plain = ["chain", "draw"], []
    groups = {
        "posterior_predictive": (predicted, sampled),
        "sample_stats": (stats, sampled),
        "observed_data": (observed, plain),
        "constant_data": (constant, plain),
    }
    tree = {
        group: base.dict_to_dataset(
            arrays, dims={n: dims[n] for n in arrays}, sample_dims=axes, check_conventions=False
        )
        for group, (arrays, axes) in groups.items()
    }
    result = xarray.DataTree.from_dict(tree)
    if path is not None:
        result.to_netcdf(path)
    return result
