"""The parameters of a fit that a validation loss likes best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._callbacks import FitInfo


class KeepBest:
    """A callback of `fit` that keeps the parameters for which a validation loss is least, and may end the run.

    It looks every `callback_every` steps. A NaN counts as worse than any number. The loss is that of the rows and draws it is
    computed from, and the least of many looks is too small an estimate of it: judge the parameters on other data.
    `dataclasses.replace(fit, params=best.params, last_params=best.params)` is the fit at the parameters kept.

    Args:
        loss: `(params, key) -> loss`, a scalar; smaller is better.
        key: PRNG key, the same at every look, so that looks differ by their parameters alone.
        patience: steps without a smaller loss after which the run ends, > 0; None: it goes on. A resumed run counts from the
            looks of the callback at hand: a new one has seen none.

    Attributes:
        losses: step and loss of each look.

    Raises:
        ValueError: the loss is no scalar (with several seeds, parameters have a leading seed axis: vectorise the loss and
            reduce it); or `params` is asked for although no look had a loss that is a number; or `patience` < 1.

    Example:
        >>> best = KeepBest(lambda params, key: (params["a"] - 2.0) ** 2, key=None)
        >>> for step in range(5):
        ...     _ = best(FitInfo(step, 1, {"a": jnp.asarray(float(step))}, None, None, 0, "max", 0.0))
        >>> float(best.params["a"])
        2.0
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Float[Array, ""]],
        key: Any,
        *,
        patience: int | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"KeepBest needs patience >= 1, or None; got {patience}.")
        self._loss, self._key, self._patience = loss, key, patience
        self._least, self._params = math.nan, None
        self._since: int | None = None  # the step of the least loss, or of the first look
        self.losses: list[tuple[int, float]] = []

    def __call__(self, info: FitInfo) -> bool:
        """Look at the parameters; whether patience has run out."""
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

    @property
    def params(self) -> Any:
        """Those kept."""
        if self._params is None:
            raise ValueError(
                f"KeepBest: none of {len(self.losses)} looks had a loss that is a number. Look more often (`callback_every`), or "
                "mend the loss."
            )
        return self._params
