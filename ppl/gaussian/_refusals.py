"""What is refused of a statement that meets integrated sites, with what to do."""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import PyTree

from ..distributions import base_of
from ._forms import Beyond, Form, is_certain
from ._lift import Statement
from ._readings import cells_of, loc_of

MAX_NUMBERS = 2048  # believed jointly: a matrix of 16 or 32 MB, decomposed at every observation
KEEP = "Keep the sites as choices, or leave them to particles (inference.smc)."


def readable_loc(
    label: str,
    statement: Statement,
    leaves: list[PyTree],
    obs: PyTree,
    scale: float | None,
    is_own: bool,
    is_extended: bool,
) -> int:
    """Which leaf of a statement's law is its mean.

    Args:
        label: who integrates.
        statement: what stands there.
        leaves: of its law.
        obs: its observation.
        scale: the factor on its log-prob.
        is_own: whether it is itself integrated.
        is_extended: whether scales were put where the sites are believed to be, beside means that depend on them.

    Raises:
        ValueError: it is no normal law with a mean affine in the sites and all else known.
    """
    loc = loc_of(statement.treedef)
    reason = _reason(label, statement, leaves, [obs, scale], loc, is_own, is_extended)
    if reason is not None:
        raise ValueError(f"Site '{statement.name}': {reason}")
    assert loc is not None
    return loc


def _reason(
    label: str,
    statement: Statement,
    leaves: list[PyTree],
    others: list[PyTree],
    loc: int | None,
    is_own: bool,
    is_extended: bool,
) -> str | None:
    law = type(base_of(statement.law([None] * len(leaves)))).__name__
    of = f"depends on sites that {label} integrates out"
    if is_own and loc is None:
        return (
            f"{label} integrates Normal and MultivariateNormal sites, and sums sites with a finite support, but this one is "
            f"{law}. Keep it as a choice, or estimate the marginal with ppl.marginal."
        )
    if law == "Unit":
        return (
            f"the factor {of}, so that the integral is not that of a normal law. Make it an observation with a normal law. "
            f"{KEEP}"
        )
    if loc is None:
        return f"its law, {law}, {of}, but is not normal. {KEEP}"
    if isinstance(mean := leaves[loc], Beyond):
        return f"its mean {of} through '{mean.why}', which is not known to be affine. {mean.remedy or KEEP}"
    is_known = all(is_certain(x) for i, x in enumerate(leaves) if i != loc)
    if not is_known and is_extended and is_certain(mean):
        return f"its scale or mask {of}, and its mean does not: an extended filter would learn nothing of them from it. {KEEP}"
    if not is_known:
        return f"its scale or mask {of}; only its mean may. {KEEP}"
    if not all(map(is_certain, others)):
        return f"what is observed (obs=), or its scale, {of}. Observe data, and put the sites into the mean."
    consts = [x.const if isinstance(x, Form) else x for x in leaves]
    # Of missing cells the mask only says that the others are no sites.
    is_missing = bool(statement.infer.get("imputed"))
    if is_own and not is_missing and cells_of(statement.law(consts)) is not None:
        return (
            f"it is masked, and {label} integrates it out, which without its law is infinite. Mask the observations only: an "
            "unobserved site integrates to one."
        )
    return None


def check_size(label: str, statement: Statement, size: int) -> None:
    """Refuse a joint law of too many numbers."""
    if size > MAX_NUMBERS:
        raise ValueError(
            f"Site '{statement.name}': {label} would integrate {size} numbers jointly, more than {MAX_NUMBERS}. Declare separate "
            "rows in a ppl.plate, write a series as ppl.scan, eliminate sites that have nothing to do with each other by two "
            "calls, or keep one of them as a choice."
        )


def check_scale(
    label: str, statement: Statement, scales: dict[str, float | None], rows: Collection[str]
) -> None:
    """Refuse integrals over log-probs that count with different scales, or scaled ones whose rows meet.

    `scales`: those of the statements met before; gains this one's.
    """
    scales[statement.name] = statement.rows
    plates = {f.name for f in statement.frames}
    is_apart = statement.rows == 1.0 or plates and plates <= set(rows)
    if len(set(scales.values())) > 1 or statement.rows is None or not is_apart:
        raise ValueError(
            f"Site '{statement.name}': log-probs that meet in one integral of {label} are scaled (subsampling, handlers.scale) "
            f"by {scales} (None: not by rows alone), where a scaled part would make it wrong. Use all rows, or put the sites "
            "inside of the subsampled plate; scale log-probs of other statements only."
        )
