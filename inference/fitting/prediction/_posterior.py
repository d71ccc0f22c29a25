"""Draws from a fitted guide with their weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ....ppl._show import shown
from ....ppl._types import Choices, Key
from ....ppl.language import Program, check_proposed_cells, misses
from ....ppl.traces import check_match
from ..._made_for import MadeFor, drops_origin
from ..._mapped import map_keys


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class Posterior:
    """Weighted draws from the guide; a pytree.

    Attributes:
        choices: latent values by site, NumPy arrays of shape [num_samples, *site shape].
        log_weights: log p(choices, data) - log q(choices), nats, shape [num_samples]. Not normalised: the mean of their
            exponentials estimates the evidence without bias (under improper priors: up to their constant, so that it has no
            meaning of its own), and they feed k-hat and importance resampling.
        made_for: the arguments that the weights are of; None where nobody has said them.
    """

    choices: dict[str, np.ndarray]
    log_weights: np.ndarray
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def _facts(self) -> dict[str, dict[str, np.ndarray] | int | str]:
        lw = np.asarray(self.log_weights, float)
        return {
            "draws": len(lw),
            "sites": {name: x[0] for name, x in self.choices.items()} if len(lw) else self.choices,
            "log_weights": f"{lw.min():.6g} to {lw.max():.6g} nats" if len(lw) else "none",
        }


def weighted_draws(
    model: Program,
    guide: Program,
    key: Key,
    num_samples: int,
    batch_size: int,
    args: tuple,
    mesh: Mesh | None = None,
) -> Posterior:
    """Draws z of the guide with log w = log p(z, x) - log q(z), `batch_size` of them on a device at once.

    Raises:
        ValueError: the guide leaves out a latent site of the model.
    """

    def draw(key: Key, *args: PyTree) -> tuple[Choices, Array]:
        guide_key, model_key = jax.random.split(key)
        trace = guide.simulate(guide_key, *args)
        # Sites that the guide leaves to the prior (missing cells) cancel from the weight.
        scored, log_weight = model.generate(model_key, trace.shared_choices, *args)
        missing = [
            n for n in scored.choices if n not in trace.choices and not scored.sites[n].is_imputed
        ]
        if missing:
            raise ValueError(f"Fit.posterior: the guide {misses(missing)}.")
        penalties = check_match(scored, trace, ("covers",))
        penalty = check_proposed_cells(scored, trace) + sum(jnp.sum(x) for x in penalties.values())
        return trace.choices, log_weight - trace.log_density + penalty

    return Posterior(*map_keys(draw, key, num_samples, batch_size, args, mesh=mesh))
