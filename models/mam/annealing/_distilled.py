"""Fitting the marginal network to sums of the chain, until held-out sums say that it is enough.

How long is enough depends on the law: too few steps leave the network behind the chain, too many fit the orders that were scored.
The rule: a tenth of the scored rows is held out; the rate falls as 1 / (1 + step / patience), and the run ends once the error on
them has not fallen for `patience` steps; the best parameters that were seen are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .... import inference
from ....ppl._checks import check_counts, check_event
from ....ppl._compat import typed_key
from ....ppl._show import shown
from .. import _chain
from .._distribution import MaM
from .._objectives import regress
from .._orders import UniformOrder
from ..networks import Pair

Scored = tuple[Array, Array, Array]
_BLOCK = 2_000


@shown
@dataclasses.dataclass(frozen=True)
class Distilled:
    """A pair with a fitted marginal network, and when and why its training ended; see `distilled`.

    Attributes:
        networks: the pair with the best marginal network that was seen.
        errors: step and root mean square error on the held-out rows of each look, nats, [looks, 2].
        stop_reason: "settled", or "max_steps".
    """

    networks: Pair
    errors: Float[np.ndarray, "looks two"]
    stop_reason: str

    @property
    def error(self) -> float:
        """Root mean square of l(x_S) less the chain's log-probability over held-out rows and prefixes S, nats."""
        return float(self.errors[:, 1].min())

    def _facts(self) -> dict[str, PyTree]:
        best = int(self.errors[self.errors[:, 1].argmin(), 0])
        return {
            "error": f"{self.error:.3g} nats rms on held-out rows, at step {best}",
            "steps": int(self.errors[:, 0].max()),
            "stop_reason": self.stop_reason,
        }


def scored(
    networks: Pair, rows: Int[Array, "rows variables"], key: Array, *, num_draws: int = 0
) -> Scored:
    """Rows and as many draws of the model, an order for each, and the chain's log-conditionals along it: what `regress` takes.

    Args:
        networks: the pair whose conditional network scores.
        rows: values 0 to K - 1.
        key: PRNG key of either kind.
        num_draws: draws of the model beside the rows.

    Returns:
        Values, orders and log-conditionals, [rows + num_draws, D] each.

    Raises:
        ValueError: rows of another length than D.
    """
    check_event("scored: rows", rows, (networks.num_variables,), is_rows=True)
    order_key, draw_key = jax.random.split(typed_key(key))
    rows, model = jnp.asarray(rows), MaM(networks)
    orders = UniformOrder(networks.num_variables).sample(order_key, (len(rows),))
    if num_draws:
        drawn = model.draw(draw_key, (num_draws,))
        rows = jnp.concatenate([rows, drawn.value])
        orders = jnp.concatenate([orders, drawn.order])
    # Blocks of one size are compiled once, whatever the number of rows.
    pad = -len(rows) % _BLOCK
    blocks = [jnp.pad(x, ((0, pad), (0, 0)), "edge") for x in (rows, orders)]
    cut = lambda x, i: x[i : i + _BLOCK]
    steps = [
        model.log_steps(*(cut(x, i) for x in blocks)) for i in range(0, len(blocks[0]), _BLOCK)
    ]
    return rows, orders, jnp.concatenate(steps)[: len(rows)]


def distilled(
    networks: Pair,
    rows: Int[Array, "rows variables"],
    key: Array,
    *,
    num_scored: int = 10_000,
    num_draws: int = 10_000,
    batch: int = 256,
    rate: float = 5e-3,
    patience: int = 500,
    max_steps: int = 20_000,
    progress: bool = False,
) -> Distilled:
    """Fit the marginal network to a fixed conditional one, and stop by held-out rows.

    Minimises E[(l(x_S) - log p(x_S | order))^2] by `regress`, over `rows` and draws of the model, the chain scored once for
    each. A tenth of both is held out. Adam's rate falls as 1 / (1 + step / patience), and the run ends once the held-out error
    has not fallen for `patience` steps; the best parameters seen are kept.

    Args:
        networks: the pair; its conditional network is taken as it is, and the marginal one starts from its layers where it has a
            linear layer `last` (`Pair.with_warm_marginal`).
        rows: values 0 to K - 1: data, or draws of the target.
        key: PRNG key of either kind.
        num_scored: rows that are scored at most, drawn without replacement.
        num_draws: draws of the model beside them.
        batch: rows of a step.
        rate: Adam's rate at the start.
        patience: steps without a smaller held-out error after which the run ends.
        max_steps: steps at most.
        progress: show progress bars.

    Returns:
        A `Distilled`.

    Raises:
        ValueError: sizes below 1; fewer than 20 rows in all; rows of another length than D.

    Validity: the held-out error is that of other rows and orders than those trained on; as the least of many looks it is
    somewhat too small. It is zero only if the chain says the same in every order.

    Example:
        >>> import jax
        >>> from lapilli.models import mam
        >>> networks = mam.residual_mlps(3, 2, width=8, key=jax.random.key(0))
        >>> rows = jax.random.bernoulli(jax.random.key(1), 0.5, (40, 3)).astype(int)
        >>> found = mam.distilled(networks, rows, jax.random.key(2), num_draws=0, batch=8, patience=10, max_steps=20)
        >>> bool(found.error < 1e-3)  # both are uniform before training
        True

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920, section 4.1 (two stages, without a stopping rule).
    """
    sizes = {"num_scored": num_scored, "batch": batch, "patience": patience, "max_steps": max_steps}
    check_counts("distilled", **sizes)
    check_counts("distilled", 0, num_draws=num_draws)
    pick_key, score_key, split_key, fit_key, look_key = jax.random.split(typed_key(key), 5)
    rows = jnp.asarray(rows)
    check_event("distilled: rows", rows, (networks.num_variables,), is_rows=True)
    num_scored = min(num_scored, len(rows))
    total = num_scored + num_draws
    if total < 20:
        raise ValueError(
            f"distilled: {total} rows in all, and a tenth of them is held out to stop by. Give at least 20 rows, or num_draws."
        )
    chosen = jax.random.choice(pick_key, len(rows), (num_scored,), replace=False)
    table = scored(networks, rows[chosen], score_key, num_draws=num_draws)
    order = jax.random.permutation(split_key, total)
    cut = total // 10
    held_out, table = ([x[part] for x in table] for part in (order[:cut], order[cut:]))
    can_warm = hasattr(networks.conditional, "last")
    start = networks.with_warm_marginal() if can_warm else networks
    objective = regress(start)
    best = inference.fitting.KeepBest(
        _held_out_error(start, held_out), look_key, patience=patience, name="held-out rows"
    )
    batch = min(batch, len(table[0]))
    options = {"subsample": {"rows": batch}, "progress": progress, "callbacks": [best]}
    import optax

    fit = inference.fit(
        objective, optax.adam(lambda step: rate / (1 + step / patience)), tuple(table),
        num_steps=max_steps, key=fit_key, callback_every=max(patience // 5, 1), **options,
    )  # fmt: skip
    reason = "settled" if fit.steps < max_steps else "max_steps"
    return Distilled(start.with_params(best.params), np.asarray(best.losses, float), reason)


def _held_out_error(networks: Pair, table: list[Array]) -> Callable[[PyTree, Array], Array]:
    """The root mean square error over all prefixes of the held-out rows."""
    tokens, orders, log_steps = table[0] + 1, *table[1:]
    size = networks.num_variables

    @eqx.filter_jit
    def error(params: PyTree, key: Array) -> Array:
        fitted = networks.with_params(params)

        def row(tokens: Array, order: Array, log_steps: Array) -> Array:
            def at(step: Array) -> Array:
                seen = _chain.prefix(tokens, jnp.zeros_like(tokens), order, step)
                return fitted.log_marginal(seen)

            levels = jax.vmap(at)(jnp.arange(1, size + 1))
            return ((levels - jnp.cumsum(log_steps)) ** 2).mean()

        return jnp.sqrt(jax.vmap(row)(tokens, orders, log_steps).mean())

    return error
