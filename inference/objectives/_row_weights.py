"""Importance weights of a guide's draws: of the whole program, or row by row of a plate."""

from __future__ import annotations

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl.analysis import keep_rows
from ...ppl.densities import log_mean_exp
from ...ppl.language import score_at
from ...ppl.traces import Inclusion, strategies_met

Array = jax.Array


def particle_weights(
    model: ppl.Program,
    guide: ppl.Program,
    args: tuple[PyTree, ...],
    num_particles: int,
    per: str,
    num_imputations: int = 1,
    supports: Collection[Inclusion] = ("inside",),
) -> tuple[Array, Array]:
    """Log-weights log p(x, z_k) - log q(z_k) of K draws, shape (K,) or (K, rows), and the rows' scale.

    `supports` are the inclusions that the objective needs, see `ppl/traces/_match.py`.
    """

    def particle() -> tuple[Array, Array]:
        q = ppl.draw(guide, *args)
        log_weight = lambda: weight_of(score_at(model, q, args, supports=supports), q, per)
        return over_imputations(log_weight, num_imputations)

    log_weights, scale = ppl.particles(num_particles)(particle)()
    return log_weights, scale[0]


def over_imputations(log_weight: Callable[..., PyTree], num_imputations: int) -> PyTree:
    """`log_weight()`, at the mean weight of J draws of what the model draws itself.

    It scores a model and returns log-weights and, last, their scale.
    """
    if num_imputations == 1:
        return log_weight()
    before = set(strategies_met())
    *log_weights, scale = ppl.particles(num_imputations)(log_weight)()
    if set(strategies_met()) == before:
        raise ValueError(
            f"iwelbo: num_imputations={num_imputations}, but the model draws nothing when it is scored: it has no missing cells "
            "(obs_mask) that the guide leaves to it. Leave num_imputations out."
        )
    return (*(log_mean_exp(x) for x in log_weights), scale[0])


def weight_of(p: ppl.Trace, q: ppl.Trace, per: str) -> tuple[Array, Array]:
    """Log-weight of one draw, scalar or by rows, and the rows' scale."""
    return joint_weight(p, q) if per == "joint" else row_weights(p, q, per)


def joint_weight(p: ppl.Trace, q: ppl.Trace) -> tuple[Array, Array]:
    """Log-weight of the whole program; refuses scaled log-probs."""
    for trace in (p, q):
        for name, info in trace.sites.items():
            if info.kind != "deterministic" and info.scale != 1.0:
                by = "several numbers" if info.scale is None else info.scale
                raise ValueError(
                    f"Site '{name}': per='joint' takes the log of a mean of whole-program "
                    f"weights, and a log-prob scaled by {by} (subsampling) would make it biased. "
                    "Use per='plate', or all rows."
                )
    return p.log_density - q.log_density, jnp.ones(())


def row_weights(p: ppl.Trace, q: ppl.Trace, per: str) -> tuple[Array, Array]:
    """Unscaled log-weight of each row of the plate, and the rows' scale."""
    plate = plate_of(p, q, per)
    scales: set[float] = set()
    total = _rows(p, plate, scales) - _rows(q, plate, scales)
    return total, jnp.asarray(_one(scales, plate))


def log_density_of(trace: ppl.Trace, plate: str) -> Array:
    """Log-density of one draw: of the whole program (scaled) for "joint", else the unscaled one of each row of the plate."""
    return trace.log_density if plate == "joint" else _rows(trace, plate, set())


def plate_of(p: ppl.Trace, q: ppl.Trace, per: str) -> str:
    """The plate that `per` means, or "joint"."""
    return _common_plate(p, q) if per == "plate" else per


def _rows(trace: ppl.Trace, plate: str, scales: set[float]) -> Array:
    """Unscaled log-density of each row of the plate; adds the scales met to `scales`."""
    total: Array = jnp.zeros(())
    for name, log_prob in trace.log_probs.items():
        info = trace.sites[name]
        if plate not in info.dims:
            raise ValueError(
                f"Site '{name}' lies outside plate '{plate}' (its axes are {info.dims}), so the "
                "evidence does not factorise over the plate's rows. Use per='joint', or "
                "move the site into the plate."
            )
        if info.scale is None:
            raise ValueError(
                f"Site '{name}': its scale is not one number, and per='{plate}' cannot undo it. Scale all its rows by "
                "one number."
            )
        scales.add(info.scale)
        axis = info.dims.index(plate)
        total = total + log_prob.sum([a for a in range(log_prob.ndim) if a != axis]) / info.scale
    keep_rows(total, plate)
    return total


def _one(scales: set[float], plate: str) -> float:
    if len(scales) != 1:
        raise ValueError(
            f"per='{plate}': the sites of plate '{plate}' are scaled differently ({sorted(scales)}), so that a row has no weight "
            "of its own. Give all of them one scale (one subsample, one handlers.scale)."
        )
    return scales.pop()


def _common_plate(p: ppl.Trace, q: ppl.Trace) -> str:
    # Those with log-probs alone: a deterministic site has no row.
    dims = [t.sites[name].dims for t in (p, q) for name in t.log_probs]
    common = set.intersection(*map(set, dims)) - {None} if dims else set()
    plates = [d for d in dims[0] if d in common] if dims else []
    if not plates:
        outside = {name: t.sites[name].dims for t in (p, q) for name in t.log_probs}
        raise ValueError(
            f"per='plate': no plate contains every site (axes by site: {outside}). Use "
            "per='joint', or name the plate."
        )
    return str(plates[0])
