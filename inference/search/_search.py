"""Search over the noises and paths of a generator for what a verifier likes.

A verifier maps one sample to a number, larger is better; a generator maps a noise, standard Normal in each entry, to a sample.
Each function makes one sample: `jax.vmap` over keys and starts makes many. Its score is that of the verifier, errors of the
verifier included: the more is spent, the more of them are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete, typed_key
from ...ppl._show import shown
from ...ppl._types import Key
from ..tilts._rewards import as_log_weight

type Generator = Callable[..., PyTree]
type Verifier = Callable[..., PyTree]


@shown
class Searched(NamedTuple):
    """What a search has found; a draw of no law.

    Attributes:
        sample: the sample.
        start: the noise that it was made of; of a search over paths the point at its first level.
        score: the verifier's.
        evaluations: of the verifier, for this one sample.
        generations: runs of the generator, or of its parts.
        num_nan: evaluations in which the verifier gave NaN, none of which was taken.
    """

    sample: PyTree
    start: Array
    score: Float[Array, ""]
    evaluations: int
    generations: int
    num_nan: Int[Array, ""]


@checked_call
def zero_order(
    generate: Generator, verifier: Verifier, key: Key, start: Array, *, num_steps: int,
    step: float = 0.5,
) -> Searched:  # fmt: skip
    """A noise moved again and again, each move kept where the verifier likes its sample better. No law is sampled.

    The move, (start + step xi) / sqrt(1 + step^2), would leave Normal(0, I) as it is; keeping the better ones does not.

    Args:
        generate: noise -> sample, deterministic, e.g. `lambda x: diffusion.ddim(model, key, times, num_samples=1,
            start=x[None])[0]`.
        verifier: sample -> number.
        key: PRNG key of either kind.
        start: the first noise, a draw of Normal(0, I).
        num_steps: moves that are tried.
        step: their size, > 0, in standard deviations of the noise.

    Returns:
        A `Searched`, of num_steps + 1 evaluations.

    Raises:
        ValueError: a count below 1, a step that is not positive; a verdict of another shape than (); it is NaN or infinite at the
            start, or -inf to the end.
        TypeError: the verifier cannot be traced, or returns no number.

    Validity: a search, whose result has no law that could be stated.

    Reference: Ma et al. 2025, arXiv:2501.09732, section 3.2.
    """
    check_counts("zero_order", num_steps=num_steps)
    _check_step("zero_order", step)
    first = generate(start)
    score = _verdict("zero_order", verifier, first, is_first=True)

    def move(best: PyTree, key: Array) -> tuple[PyTree, Array]:
        noise, sample, score = best
        other = (noise + step * jax.random.normal(key, noise.shape)) / np.sqrt(1 + step**2)
        made = generate(other)
        verdict = _verdict("zero_order", verifier, made)
        # A verdict of NaN is never better.
        keep = lambda new, old: jnp.where(verdict > score, new, old)
        kept = jax.tree.map(keep, (other, made, verdict), (noise, sample, score))
        return kept, jnp.isnan(verdict)

    keys = jax.random.split(typed_key(key), num_steps)
    (noise, sample, score), is_nan = jax.lax.scan(move, (start, first, score), keys)
    return _found("zero_order", sample, noise, score, num_steps + 1, is_nan)


@checked_call
def first_order(
    generate: Generator, verifier: Verifier, start: Array, *, num_steps: int, step: float = 0.1,
    is_on_shell: bool = True,
) -> Searched:  # fmt: skip
    """A noise moved along the gradient of the verifier through the generator; the best on the way. No law is sampled.

    Args:
        generate: noise -> sample, differentiable, e.g. `flow_sample` of a diffusion model.
        verifier: sample -> number, differentiable.
        start: the first noise, a draw of Normal(0, I).
        num_steps: steps of gradient ascent.
        step: length of a step in each entry, > 0: the gradient is scaled to it (mean square over entries).
        is_on_shell: whether the noise keeps the norm of `start`, where draws of Normal(0, I) lie.

    Returns:
        A `Searched`, of num_steps + 1 evaluations and as many gradients.

    Raises:
        ValueError: a count below 1, a step that is not positive; a verdict of another shape than (); it, or its gradient, is NaN
            or infinite at the start, or the gradient 0 in all entries; on the shell, a start of norm 0, from which no step leads
            away (under jit each verdict is NaN then, see `num_nan`).
        TypeError: the verifier cannot be traced, or returns no number.

    Reference: Ma et al. 2025, arXiv:2501.09732, section 5; Eyring et al. 2024, arXiv:2406.04312.
    """
    check_counts("first_order", num_steps=num_steps)
    _check_step("first_order", step)

    def scored(noise: Array) -> tuple[Array, PyTree]:
        made = generate(noise)
        return _verdict("first_order", verifier, made), made

    climb = jax.value_and_grad(scored, has_aux=True)
    (score, first), slope = climb(start)
    _check_first("first_order", score)
    if is_concrete(slope) and not (np.isfinite(slope).all() and np.any(slope)):
        raise ValueError(
            "first_order: the gradient of the verifier at the start is "
            f"{'0 in all entries' if np.isfinite(slope).all() else 'NaN'}: it does not tell where to go. Use a differentiable "
            "verifier (probabilities in place of decisions), or zero_order."
        )
    norm = jnp.sqrt(jnp.square(start).mean())
    if is_on_shell and is_concrete(norm) and norm == 0:
        raise ValueError(
            f"first_order: argument 'start' (shape {jnp.shape(start)}) is 0 everywhere, a norm that the noise would keep: no "
            "step leads away. Give a draw of Normal(0, I), or is_on_shell=False."
        )
    norm = jnp.where(norm > 0, norm, jnp.nan)

    def move(state: PyTree, _: None) -> tuple[PyTree, Array]:
        noise, slope, best = state
        noise = noise + step * slope / jnp.sqrt(jnp.square(slope).mean() + 1e-30)
        if is_on_shell:
            noise = noise * norm / jnp.sqrt(jnp.square(noise).mean())
        (score, made), slope = climb(noise)
        keep = lambda new, old: jnp.where(score > best[2], new, old)
        return (noise, slope, jax.tree.map(keep, (noise, made, score), best)), jnp.isnan(score)

    state = (start, slope, (start, first, score))
    (_, _, (noise, sample, score)), is_nan = jax.lax.scan(move, state, None, length=num_steps)
    return _found("first_order", sample, noise, score, num_steps + 1, is_nan)


@checked_call
def over_paths(
    renoise: Callable[..., PyTree], denoise: Callable[..., PyTree], verifier: Callable[..., PyTree],
    key: Key, start: Array, levels: Sequence[float], *, num_copies: int,
) -> Searched:  # fmt: skip
    """A path that goes back to more noise at each level, in copies, and on from the copy of most promise. No law is sampled.

    Args:
        renoise: (key, point, level) -> the point with more noise.
        denoise: (point, level, next level) -> a re-noised copy of that level, brought to the next one.
        verifier: (point, level) -> number: what can be expected of a point there, e.g. the verdict on its denoised mean.
        key: PRNG key of either kind.
        start: a point at the first level.
        levels: descending, the last one that of the sample.
        num_copies: of the point, at each level.

    Returns:
        A `Searched`, of num_copies evaluations a level.

    Raises:
        ValueError: a count below 1, fewer than two levels or some that do not descend; a verdict of another shape than (); it is
            NaN, +inf or -inf for all copies at the end.
        TypeError: the verifier cannot be traced, or returns no number.

    Validity: a search, whose result has no law that could be stated.

    Reference: Ma et al. 2025, arXiv:2501.09732, section 3.2 (one path is kept here; `fk_steering` weighs many).
    """
    check_counts("over_paths", num_copies=num_copies)
    if len(levels) < 2 or not all(a > b for a, b in zip(levels, levels[1:], strict=False)):
        raise ValueError(
            f"over_paths: levels must be two or more that descend, got {list(levels)}. Give noising times from the first to "
            "that of the sample, e.g. (0.7, 0.4, 0.1, noising.first)."
        )
    x, score, is_nan = start, jnp.zeros(()), []
    for number, (level, after) in enumerate(zip(levels, levels[1:], strict=False)):
        keys = jax.random.split(jax.random.fold_in(typed_key(key), number), num_copies)
        copies = jax.vmap(lambda key, x=x, t=level: renoise(key, x, t))(keys)
        ahead = jax.vmap(lambda x, t=level, s=after: denoise(x, t, s))(copies)
        promise = jax.vmap(lambda x, s=after: _verdict("over_paths", verifier, x, s))(ahead)
        best = jnp.argmax(jnp.where(jnp.isnan(promise), -jnp.inf, promise))
        x, score = ahead[best], promise[best]
        is_nan.append(jnp.isnan(promise))
    _check_first("over_paths", score, "the last copies")
    number = num_copies * (len(levels) - 1)
    return _found("over_paths", x, start, score, number, jnp.stack(is_nan))


@checked_call
def mean_rank(verdicts: Sequence[PyTree] | Array) -> Float[np.ndarray, " candidates"]:
    """The mean rank of each candidate over several verifiers, 1 for the worst: an ensemble that no one verifier's scale decides.

    Args:
        verdicts: of each verifier on the same candidates, [verifiers, candidates]. Equal verdicts share the mean of their ranks.

    Returns:
        [candidates]; `argmax` is the best of N by all verifiers together.

    Raises:
        ValueError: other shapes, or NaN among the verdicts.

    Reference: Ma et al. 2025, arXiv:2501.09732, section 4.2.
    """
    from scipy.stats import rankdata

    table = np.asarray(verdicts, float)
    if table.ndim != 2 or np.isnan(table).any():
        what = f"have shape {table.shape}" if table.ndim != 2 else "hold NaN"
        raise ValueError(
            f"mean_rank: the verdicts {what}. Give one row of numbers a verifier, [verifiers, candidates]."
        )
    return rankdata(table, axis=1).mean(0)


def _verdict(
    name: str, verifier: Verifier, sample: PyTree, *others: float, is_first: bool = False
) -> Array:
    verdict = as_log_weight(verifier, sample, *others, what=f"{name}: verifier")
    if is_first:
        _check_first(name, verdict)
    return verdict


def _check_first(name: str, verdict: Array, where: str = "the first sample") -> None:
    """Refuse a verdict that nothing is better than, where it is known."""
    if is_concrete(verdict) and (np.isnan(verdict) or verdict == np.inf):
        what = "NaN" if np.isnan(verdict) else "infinite"
        raise ValueError(
            f"{name}: the verdict on {where} is {what}, which nothing is better than. Mend the verifier (e.g. "
            "jnp.minimum(verdict, 20.0)), or begin elsewhere."
        )


def _found(
    name: str, sample: PyTree, start: Array, score: Array, number: int, is_nan: Array
) -> Searched:
    """The result of so many evaluations; refuses one that was no better than nothing, where it is known."""
    if is_concrete(score) and score == -np.inf:
        raise ValueError(
            f"{name}: the verdict is -inf in all of {number} evaluations, so that none is better than another. Use a soft "
            "constraint: a finite verdict that grows towards it."
        )
    return Searched(sample, start, score, number, number, is_nan.sum())


def _check_step(name: str, step: float) -> None:
    if is_concrete(step) and not 0 < step < np.inf:
        raise ValueError(f"{name}: step must be a positive number, got {step}. Give e.g. 0.5.")
