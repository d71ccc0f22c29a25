"""The parameters of a fit that a validation loss likes best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._checks import check_counts
from ....ppl._types import Key
from ._callbacks import FitInfo


class KeepBest:
    """A callback of `fit` that keeps the parameters for which a validation loss is least, and may end the run.

    It looks every `callback_every` steps. A NaN counts as worse than any number. The loss is that of the rows and draws it is
    computed from, and the least of many looks is too small an estimate of it: judge the parameters on other data. What it has
    seen goes into the checkpoint of the run. `fit.with_params(best.params)` is the fit at the parameters kept.

    Args:
        loss: `(params, key) -> loss`, a scalar; smaller is better.
        key: PRNG key, the same at every look, so that looks differ by their parameters alone.
        patience: steps without a smaller loss after which the run ends; None: never.
        name: tells several of them apart in a checkpoint; default, the name of `loss`.

    Attributes:
        losses: step and loss of each look.

    Raises:
        ValueError: `patience` is not at least 1; the loss is no scalar (with several seeds, parameters have a leading seed axis:
            vectorise the loss and reduce it); or `params` is asked for although no look had a loss that is a number.

    Example:
        >>> best = KeepBest(lambda params, key: (params["a"] - 2.0) ** 2, key=None)
        >>> for step in range(5):
        ...     ended = best(FitInfo(step, 1, {"a": jnp.asarray(float(step))}, None, None, 0, "max", 0.0))
        >>> float(best.params["a"])
        2.0
    """

    def __init__(
        self,
        loss: Callable[..., PyTree],
        key: Key | None,
        *,
        patience: int | None = None,
        name: str | None = None,
    ) -> None:
        if patience is not None:
            check_counts("KeepBest", patience=patience)
        self._loss, self._key, self._patience = loss, key, patience
        self.name = name or getattr(loss, "__qualname__", type(loss).__name__)
        self._least, self._params = math.nan, None
        self._since: int | None = None  # step of the least loss, or of the first look
        self.losses: list[tuple[int, float]] = []

    def __call__(self, info: FitInfo) -> bool:
        """Look at the parameters; whether patience has ended."""
        found = self._loss(info.params, self._key)
        if jnp.shape(found):
            raise ValueError(
                f"KeepBest: the loss has shape {jnp.shape(found)} at step {info.step}, not that of a scalar. Return one "
                "number, e.g. the mean."
            )
        value = float(found)
        self.losses.append((info.step, value))
        if not math.isnan(value) and not value >= self._least:
            # A copy: the buffers of `info.params` are donated to the next step.
            self._least, self._params = value, jax.tree.map(jnp.copy, info.params)
            self._since = info.step
        elif self._since is None:
            self._since = info.step
        return self._patience is not None and info.step - self._since >= self._patience

    def get_state(self, params: PyTree) -> dict[str, PyTree]:
        """The losses and parameters that it has kept; `params` stand where none have been kept yet."""
        return {
            "least": np.asarray(self._least),
            "since": np.asarray(-1 if self._since is None else self._since),
            "losses": np.asarray(self.losses, float).reshape(-1, 2),
            "params": params if self._params is None else self._params,
        }

    def set_state(self, state: Mapping[str, PyTree]) -> None:
        """Go on from there."""
        self._least, since = float(state["least"]), int(state["since"])
        self._since = None if since < 0 else since
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self._params = (
            None if math.isnan(self._least) else jax.tree.map(jnp.asarray, state["params"])
        )

    @property
    def params(self) -> PyTree:
        """Those kept."""
        if self._params is None:
            raise ValueError(
                f"KeepBest: none of {len(self.losses)} looks had a loss that is a number. Look more often (`callback_every`), or "
                "mend the loss."
            )
        return self._params
