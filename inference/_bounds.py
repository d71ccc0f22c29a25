"""Lower bounds of the log evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import ppl
from ._objective import Objective, objective

Array = jax.Array


def elbo(
    model: Any,
    guide: Any,
    *,
    strategies: Mapping[str, Any] | str | None = None,
    num_particles: int = 1,
    check_jumps: bool = True,
) -> Objective:
    """Evidence lower bound: E_{z ~ q}[log p(x, z) - log q(z)] <= log p(x), in nats, to be maximised.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q (auxiliary sites allowed); NumPyro's autoguides too.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_particles: independent draws averaged in one estimate.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: the guide misses or adds a latent site; any refusal of `ppl.expectation`.

    Validity: value and gradient are unbiased for the bound, for model and guide parameters, under every
    strategy that is not marked biased, and under subsampled plates.
    Reference: Jordan et al. 1999; Ranganath et al. 2014, arXiv:1401.0118.
    """
    return _elbo(
        model, guide, strategies=strategies, num_particles=num_particles, check_jumps=check_jumps
    )


@objective
def _elbo(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
    q = ppl.draw(guide, *args)
    return ppl.score(model, q, *args).log_density - q.log_density


def iwelbo(
    model: Any,
    guide: Any,
    *,
    num_particles: int,
    per: str = "joint",
    strategies: Mapping[str, Any] | str | None = None,
    check_jumps: bool = True,
) -> Objective:
    """Importance-weighted bound: E[log 1/K sum_k w_k] <= log p(x), w_k = p(x, z_k) / q(z_k), z_k iid from q (nats, maximised).

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        num_particles: K.
        per: "joint" takes the mean of whole-program weights. "plate" (or a plate's name) takes it row by row,
            E[sum_n log 1/K sum_k w_kn], a tighter bound when every site lies in that plate.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: `per="plate"` with a site outside the plate; `per="joint"` with scaled (subsampled)
            log-probs, whose log-mean-exp would be biased.

    Validity: unbiased for the bound at every K. The rows of the plate must be independent given what is
    outside, as `plate` declares.
    Reference: Burda et al. 2016, arXiv:1509.00519.
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"iwelbo: num_particles must be an integer >= 1, got {num_particles!r}.")

    @objective
    def iwelbo(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        def log_weight() -> tuple[Array, Array]:
            q = ppl.draw(guide, *args)
            p = ppl.score(model, q, *args)
            return _joint_weight(p, q) if per == "joint" else _row_weights(p, q, per)

        log_weights, scale = ppl.particles(num_particles)(log_weight)()
        bound = jax.nn.logsumexp(log_weights, axis=0) - jnp.log(num_particles)
        return jnp.sum(scale[0] * bound)

    return iwelbo(model, guide, strategies=strategies, check_jumps=check_jumps)


def _joint_weight(p: ppl.Trace, q: ppl.Trace) -> tuple[Array, Array]:
    for trace in (p, q):
        for name, info in trace.sites.items():
            if info.kind != "deterministic" and info.scale != 1.0:
                raise ValueError(
                    f"Site '{name}': iwelbo(per='joint') takes the log of a mean of whole-program "
                    f"weights, and a log-prob scaled by {info.scale} (subsampling) would make it biased. "
                    "Use per='plate', or all rows."
                )
    return p.log_density - q.log_density, jnp.ones(())


def _row_weights(p: ppl.Trace, q: ppl.Trace, per: str) -> tuple[Array, Array]:
    """Unscaled log-weight of each row of the plate, and the rows' scale."""
    plate = _common_plate(p, q) if per == "plate" else per
    total: Array = jnp.zeros(())
    scales = set()
    for sign, trace in ((1.0, p), (-1.0, q)):
        for name, log_prob in trace.log_probs.items():
            info = trace.sites[name]
            if plate not in info.dims:
                raise ValueError(
                    f"Site '{name}' lies outside plate '{plate}' (its axes are {info.dims}), so the "
                    "evidence does not factorise over the plate's rows. Use iwelbo(per='joint'), or "
                    "move the site into the plate."
                )
            if info.scale is None:
                raise ValueError(
                    f"Site '{name}': its scale is not one number; iwelbo(per='{per}') cannot undo it."
                )
            scales.add(info.scale)
            axis = info.dims.index(plate)
            rows = log_prob.sum([a for a in range(log_prob.ndim) if a != axis])
            total = total + sign * rows / info.scale
    if len(scales) != 1:
        raise ValueError(
            f"iwelbo(per='{per}'): the sites of plate '{plate}' are scaled differently ({sorted(scales)})."
        )
    return total, jnp.asarray(scales.pop())


def _common_plate(p: ppl.Trace, q: ppl.Trace) -> str:
    dims = [set(t.sites[name].dims) - {None} for t in (p, q) for name in t.log_probs]
    common = set.intersection(*dims) if dims else set()
    plates = [d for d in next(iter(p.sites.values())).dims if d in common] if common else []
    if not plates:
        outside = {name: t.sites[name].dims for t in (p, q) for name in t.log_probs}
        raise ValueError(
            f"iwelbo(per='plate'): no plate contains every site (axes by site: {outside}). Use "
            "per='joint', or name the plate."
        )
    return str(plates[0])
