"""What a model of a law known up to its constant has lost: the evidence from both sides.

Everything that a model estimates from its own draws is one-sided: a mode that it never draws lowers log Z-hat, and leaves weights
and effective sample size as they are. The other side takes draws that came about without the model: given ones, or particles of
a tempering run from the uniform law. Where such a particle has a weight above all those of the model's draws, the model hardly
ever goes, however the particle was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ...inference.diagnostics import EvidenceBracket
from ...inference.diagnostics._evidence_bracket import lost_modes
from ...ppl._checks import check_counts, check_event, log_number
from ...ppl._compat import typed_key
from ._distribution import MaM
from ._orders import UniformOrder
from ._tempering import NUM_MOVES, LogTarget, tempered_rows
from .networks import Networks

_LEAST, _MOST = 100, 1_000  # particles that say something
_TEMPERATURES = 20  # of usual energies
_REMEDY = "mam.anneal learns from tempered particles, and keeps such modes"


def bracket(
    model: MaM,
    log_target: LogTarget,
    rows: Int[Array, "rows variables"] | None,
    key: Array,
    *,
    num_rows: int = 1_000,
) -> EvidenceBracket:
    """Log Z from both sides: from the model's own draws, and from draws of the target.

        lower = log f(x) - log q(x | order), x and order from the model,       E[lower] = log Z - KL(q || p)
        upper = the same, x from the target, any order,                        E[upper] = log Z + KL(p || q)

    with p and q extended by the law of the order. Modes that the model has lost do not lower the first; they raise the second
    (EUBO), and `EvidenceBracket.unseen` is their mass. `EvidenceBracket.standard_error` is what Z-hat from the model's draws is
    worth, by both.

    Args:
        model: the model, density "chain" and without orders or evidence.
        log_target: log f of one row `[D] -> scalar`, nats.
        rows: draws of the target, values 0 to K - 1: particles, or exact ones; None for those of a tempering run of as many
            particles as `num_rows`, two Gibbs sweeps at each temperature.
        key: PRNG key of either kind.
        num_rows: how many of the rows are scored, drawn without replacement, and how many draws of the model.

    Returns:
        An `EvidenceBracket` of one particle behind each bound.

    Raises:
        ValueError: a model under evidence, or with an order of its own, or another density than "chain"; `num_rows` below 2; rows
            of another length.
        RuntimeError: without rows, the tempering run has no finite evidence.

    Warns:
        UserWarning: draws of the target lie where the model hardly ever draws (`evidence_bracket`).

    Validity: see `inference.diagnostics.evidence_bracket`; particles are draws of the target as far as they found it. What
    neither particles nor model have met shows on no side.
    """
    found = two_sided(model, log_target, rows, key, num_rows)
    if (text := lost_modes(found, "mam.bracket", _REMEDY)) is not None:
        warnings.warn(text, UserWarning, stacklevel=2)
    return found


def two_sided(
    model: MaM,
    log_target: LogTarget,
    rows: Int[Array, "rows variables"] | None,
    key: Array,
    num_rows: int,
) -> EvidenceBracket:
    """`bracket` without its warning."""
    if model.density != "chain" or model.orders is not None or model.evidence is not None:
        raise ValueError(
            f"bracket: the model has density {model.density!r}, {'no ' if model.orders is None else ''}orders and "
            f"{'no ' if model.evidence is None else ''}evidence; the bounds are those of whole draws in random order. Give "
            "MaM(networks)."
        )
    check_counts("bracket", 2, num_rows=num_rows)
    pick_key, order_key, draw_key = jax.random.split(typed_key(key), 3)
    rows = _tempered(model, log_target, pick_key, num_rows) if rows is None else jnp.asarray(rows)
    check_event("bracket: rows", rows, model.event_shape, is_rows=True)
    count = min(num_rows, len(rows))
    chosen = rows[jax.random.choice(pick_key, len(rows), (count,), replace=False)]
    orders = UniformOrder(model.num_variables).sample(order_key, (count,))
    drawn = model.draw(draw_key, (count,))
    log_f = jax.jit(jax.vmap(lambda x: log_number("log_target", log_target(x))))
    lower = log_f(drawn.value) - drawn.log_prob
    upper = log_f(chosen) - model.log_steps(chosen, orders).sum(1)
    return EvidenceBracket(np.asarray(lower), np.asarray(upper), 1, "draws")


def verdicts(
    several: Sequence[Networks], log_target: LogTarget, key: Array, num_evaluations: int
) -> list[str | None]:
    """What `inference.fit` warns of after training from an energy: modes that tempered particles find, and the model does not.

    The particles have seen none of the models, and stand before all of them.

    Args:
        several: trained networks, of each seed.
        log_target: log f of one row, nats.
        key: PRNG key.
        num_evaluations: of f, that the particles may take, about.
    """
    leave = "k_hat='skip' leaves this check out"
    first = several[0]
    each = first.num_variables * (first.num_values - 1) * NUM_MOVES * _TEMPERATURES
    count = min(num_evaluations // each, _MOST)
    if count < _LEAST:
        text = (
            f"fit: nobody has looked for modes that energy may have lost: {_LEAST} tempered particles take some "
            f"{_LEAST * each:,} evaluations of log_target, and the training took {num_evaluations:,}. "
            f"mam.bracket(model, log_target, None, key) looks; {leave}."
        )
        return [text] * len(several)
    run_key, key = jax.random.split(typed_key(key))
    try:
        rows = _tempered(MaM(first), log_target, run_key, count)
        found = [two_sided(MaM(networks), log_target, rows, key, count) for networks in several]
    except RuntimeError as err:
        text = f"fit: nobody knows whether energy has lost modes: {err} {leave}."
        return [text] * len(several)
    return [lost_modes(bracket, "fit", f"{_REMEDY}; {leave}") for bracket in found]


def _tempered(model: MaM, log_target: LogTarget, key: Array, count: int) -> Array:
    """Particles of the target, which have not seen the model."""
    size, num_values = model.num_variables, model.networks.num_values
    temper = lambda key: tempered_rows(log_target, size, num_values, key, num_particles=count)
    run = jax.jit(temper)(key)
    if not jnp.isfinite(run.log_evidence):
        raise RuntimeError(
            f"bracket: the tempering run from the uniform law gives log Z {run.log_evidence}: at some temperature none of "
            f"{count} particles had a finite weight, or 100 temperatures were not enough. Give rows, draws of the target from "
            "elsewhere."
        )
    return run.particles["x"]
