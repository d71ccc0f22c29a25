"""The choice between the joint model of a table and a deep one, by observed cells that are hidden from both."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ....ppl._quiet import quiet
from ..tables import (
    CURVED,
    LEAST_ROWS,
    Cells,
    Columns,
    CurvesFound,
    HiddenCells,
    TableChains,
    hide,
    joint_scores,
    kept,
    look_for_curves,
    residuals_of,
    run_chains,
    with_dummies,
)
from ._completions import completions, row_keys
from ._deep_table import DeepTable

_ERRORS = 2.0  # standard errors of a gain that counts
_DRAWS = 20  # of hidden cells
_SCORED = 50  # draws of the parameters, at most


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which model of a table's numbers was taken, and why.

    Attributes:
        name: "joint" or "deep".
        curved: share of what straight lines leave open that forests explain, by name of the columns with holes.
        gain: mean log-density of hidden cells under the deep model less that under the joint one, nats for each cell, and its
            standard error; None where they were not compared.
        kept: how much of the relations between columns the deep model's draws of these cells have; None likewise.
        deep: the deep model, if it was taken.
    """

    name: Literal["joint", "deep"] = "joint"
    curved: dict[Hashable, float] = dataclasses.field(default_factory=dict)
    gain: tuple[float, float] | None = None
    kept: float | None = None
    deep: DeepTable | None = None

    def told(self) -> str:
        """What either model does to curved relations, in words."""
        name = max(self.curved, key=lambda n: self.curved[n])
        gain, error = self.gain or (0.0, 0.0)
        likelier = f"are likelier by {gain:.2f} +- {error:.2f} nats each under the deep model"
        if self.name == "joint":
            text = (
                f"straight lines are taken all the same, since hidden cells {likelier}, which may be chance: completed tables "
                "have only what is straight in these relations."
            )
        else:
            text = (
                f"hidden cells {likelier}, which is taken for numbers. It is one law, whose own error intervals of "
                f"`pool` do not know, and its draws keep {self.kept:.2f} of the relations between columns: estimates of these "
                "are weakened as much."
            )
        return (
            f"TableImputer: relations are curved, or spreads uneven: forests explain {self.curved[name]:.0%} of what straight "
            f"lines leave open of {name!r}; {text} For a regression add squares and products as columns of their own, with "
            "model='joint'."
        )


def check_kind(kind: str, x: np.ndarray) -> None:
    """Refuse to take the deep model for a table in which no cells can be hidden."""
    if kind == "deep" and not _can_hide(x):
        raise ValueError(
            f"TableImputer: model='deep' is judged by hidden cells, and needs {LEAST_ROWS} rows (there are {len(x)}) and a "
            "column of numbers with holes. Take model='joint'."
        )


def _can_hide(x: np.ndarray) -> bool:
    return len(x) >= LEAST_ROWS and bool(np.isnan(x).any())


def choose(
    kind: str, columns: Columns, x: np.ndarray, c: np.ndarray, found: TableChains, options: Mapping[str, int],
    seed: int, num_sweeps: int,
) -> ModelChoice:  # fmt: skip
    """The model under which hidden cells are likelier: the deep one only where its gain is no chance.

    Args:
        kind: "auto", or the model that is demanded.
        columns: of the table.
        x: numbers in standard units, NaN where they are missing.
        c: numbers of levels, -1 where they are missing.
        found: the chains of all cells.
        options: of `run_chains`.
        seed: of everything random.
        num_sweeps: in which rows are completed.
    """
    has_holes = np.isnan(x).any(0)
    if kind == "joint" or not _can_hide(x):
        return ModelChoice()
    curves = _curves(columns, x, found, seed)
    names = [columns.names[j] for j in columns.numbers]
    curved = {names[j]: float(curves.share[j]) for j in np.flatnonzero(has_holes)}
    if kind == "auto" and curves.share.max() < CURVED:
        return ModelChoice(curved=curved)
    levels, hidden = columns.counts, hide(np.random.default_rng(seed), x)
    without, cells = hidden.without(x), (hidden.rows, hidden.columns)
    trial = DeepTable(levels, seed).fit(without, c)
    options = {**options, "num_draws": min(options["num_draws"], _SCORED)}
    gains = trial.scores(x, c, hidden) - _of_joint(columns, x, c, hidden, options, seed, num_sweeps)
    gain = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
    draws = trial.draws(without[hidden.rows], c[hidden.rows], _DRAWS, seed)
    share = kept(draws[:, np.arange(len(gains)), hidden.columns], x[cells], curves.predicted[cells])
    if kind == "auto" and not gain[0] > _ERRORS * gain[1]:
        return ModelChoice("joint", curved, gain, share)
    return ModelChoice("deep", curved, gain, share, DeepTable(levels, seed).fit(x, c))


def _curves(columns: Columns, x: np.ndarray, found: TableChains, seed: int) -> CurvesFound:
    full, c = found.last.x[0], found.last.c[0]
    last = jax.tree.map(lambda a: a[-1], found.params)
    left = residuals_of(last, jnp.asarray(full), jnp.asarray(c), columns.counts)
    # In units of the columns: residuals come in those of their precision.
    left = np.asarray(left, float) / (np.linalg.inv(np.asarray(last.tril, float)) ** 2).sum(0)
    table = with_dummies(np.asarray(full, float), c, columns.counts)
    return look_for_curves(table, left, ~np.isnan(x), seed)


def _of_joint(
    columns: Columns, x: np.ndarray, c: np.ndarray, hidden: HiddenCells, options: Mapping[str, int], seed: int,
    num_sweeps: int,
) -> Float[np.ndarray, " m"]:  # fmt: skip
    """Log-densities of hidden cells under the joint model, fitted to numbers without them."""
    without, levels, rows = hidden.without(x), columns.counts, hidden.rows
    with quiet():  # the chains of all cells have said it
        params = run_chains(seed, Cells.of(without, c), levels, columns.features, **options).params
    drawn = np.broadcast_to(c[rows], (len(params.tril), *c[rows].shape))
    if (drawn < 0).any():
        drawn = completions(
            params, without[rows], c[rows], row_keys(seed, rows), levels, num_sweeps
        ).c
    return joint_scores(params, drawn, x, hidden, levels)
