"""`ppl.marginal`: a program over some of another program's choices, the others summed out by importance sampling.

Terms: g(v, a) the program's density, v the kept choices, a the auxiliary ones, r(a | v) the proposal, N particles,
w_i = g(v, a_i) / r(a_i | v), Z = 1/N sum_i w_i.
- given v: a_1..a_N ~ r; log Z. E[Z] = integral of g(v, a) da = p(v).
- a draw: (v, a_1) ~ g, a_2..a_N ~ r; log Z with the retained w_1. The law of (v, a_1..a_N) is that of the first line
  times w_1, averaged over the slot that is retained: times Z. Hence E[1/Z | v] = 1 / p(v).
Where g or r is estimated itself, a sampled part takes the number of its draw and a given part its estimate
(`_stochastic.py`); the law above then holds with the auxiliary randomness of g and r included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._checks import check_counts
from .._types import ModelFn
from ..language import ChoiceMismatch, Program, matched
from ..traces import SiteInfo, SiteInfos, Trace, check_is_law, particles, trace_of
from ._stochastic import (
    Constrained,
    StochasticProgram,
    as_arrays,
    as_sampler,
    estimated,
    log_mean_exp,
    refuse_scaled,
    same_sites,
)

Array = jax.Array


class Marginal(StochasticProgram):
    """The kept choices of a program. Made by `ppl.marginal`."""

    def __init__(
        self, program: Program, keep: tuple[str, ...], proposal: Program | None, num_particles: int
    ) -> None:
        parts = {"program": program} | ({} if proposal is None else {"proposal": proposal})
        super().__init__(f"marginal[{', '.join(keep)}]", parts)
        self.program, self.keep = program, keep
        self.proposal, self.num_particles = proposal, num_particles

    def _with_parts(self, parts: Mapping[str, Any]) -> StochasticProgram:
        return Marginal(parts["program"], self.keep, parts.get("proposal"), self.num_particles)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        joint = self.program._draw(*args, **kwargs)
        missing = sorted(set(self.keep) - set(joint.choices))
        if missing:
            raise ValueError(
                f"{self.label}: keep names {missing}, which are no latent sites of the program; its latent "
                f"sites are {sorted(joint.choices)}."
            )
        kept = {name: joint.choices[name] for name in self.keep}
        rest = {name: v for name, v in joint.choices.items() if name not in kept}
        if self.proposal is None:
            weight = _SignedTerms.of(joint, without=rest)
        else:
            # The drawn auxiliary choices are one particle: g(v, a) / q(a | v).
            proposed = self._given_proposal(rest, kept, args, kwargs)
            joint = matched(joint, proposed, ("covers",))
            weight = _SignedTerms.of(joint).minus(_SignedTerms.of(proposed))
        check_is_law(joint, f"program of {self.label}")
        return self._result(kept, joint.sites, [weight], args, kwargs)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        kept = as_arrays(choices)
        same_sites(
            f"{self.label}: the choices do not match what it keeps",
            kept, self.keep, "Give a value for every kept site and no other.",
        )  # fmt: skip
        return self._result(kept, None, [], args, kwargs)

    def _result(
        self,
        kept: dict[str, Array],
        infos: Any,
        retained: list[_SignedTerms],
        args: tuple[Array, ...],
        kwargs: dict[str, PyTree],
    ) -> Trace:
        num_fresh = self.num_particles - len(retained)
        if self.num_particles == 1:
            # One particle: the terms stay apart, so that each score factor meets its own costs only.
            weight = retained[0] if retained else self._fresh(kept, args, kwargs)
            return weight.trace(kept, infos or weight.infos)

        def one() -> tuple[Array, _Infos]:
            weight = self._fresh(kept, args, kwargs)
            return weight.checked(self.label), _Infos(weight.infos)

        # log p(v) is estimated by log (1 / K) sum_k g(v, a_k) / q(a_k | v), a retained particle among the K where v was drawn.
        log_weights = [w.checked(self.label)[None] for w in retained]
        if num_fresh:
            weights, found = particles(num_fresh)(one)()
            log_weights.append(weights)
            infos = infos or found.infos
        return estimated(self.label, kept, infos, log_mean_exp(jnp.concatenate(log_weights)))

    def _fresh(
        self, kept: dict[str, Array], args: PyTree, kwargs: dict[str, PyTree]
    ) -> _SignedTerms:
        """The weight of auxiliary choices drawn from the proposal."""
        # From the prior of the auxiliary sites: their log-probs cancel against the proposal's, the kept sites' remain.
        if self.proposal is None:
            recorder = Constrained(kept)
            with recorder:
                retval = self.program(*args, **kwargs)
            trace = trace_of(recorder, retval)
            self._check_kept(trace, recorder.frame.used)
            return _SignedTerms.of(trace, without=set(trace.choices) - set(kept))
        drawn = self.proposal._draw(kept, *args, **kwargs)
        twice = sorted(set(drawn.choices) & set(kept))
        if twice:
            raise ValueError(
                f"{self.label}: the proposal draws {twice}, which are kept. Let it draw the auxiliary "
                "sites only, given the kept ones (its first argument)."
            )
        try:
            joint = self.program._score({**kept, **drawn.choices}, *args, **kwargs)
        except ChoiceMismatch as err:
            raise self._mismatch(err.missing, err.extra) from err
        # g(v, a) / q(a | v), term by term, so that signs and parts of the weight can be told.
        return _SignedTerms.of(matched(joint, drawn, ("covers",))).minus(_SignedTerms.of(drawn))

    def _given_proposal(self, rest: Any, kept: Any, args: PyTree, kwargs: PyTree) -> Trace:
        assert self.proposal is not None
        try:
            return self.proposal._score(rest, kept, *args, **kwargs)
        except ChoiceMismatch as err:
            raise self._mismatch(err.extra, err.missing) from err

    def _mismatch(self, missing: list[str], extra: list[str]) -> ValueError:
        return ValueError(
            f"{self.label}: the proposal does not match the program's auxiliary sites: it misses {missing} "
            f"and draws {extra}, which the program does not have. Give a program of (kept, *args) "
            "that draws exactly the sites that are not kept."
        )

    def _check_kept(self, trace: Trace, used: set[str]) -> None:
        if set(self.keep) - used:
            raise ValueError(
                f"{self.label}: keep names {sorted(set(self.keep) - used)}, which are no latent sites of the "
                f"program; its latent sites are {sorted(trace.choices)}."
            )


def marginal(
    program: ModelFn, *, keep: Collection[str], proposal: object = None, num_particles: int = 1
) -> Marginal:
    """The program over the kept choices v alone; its density p(v) = integral of g(v, a) da is estimated.

    estimate_log_density(key, v): log Z, Z = 1/N sum_i g(v, a_i) / r(a_i | v), a_i ~ r; E[Z] = p(v).
    simulate(key): v and log Z with the sampled a as one of the N particles; E[1/Z | v] = 1 / p(v).

    Args:
        program: a program or NumPyro model; may itself be a `marginal` or `normalize`.
        keep: names of the sites to keep; all other latent sites are auxiliary.
        proposal: r, a program of `(kept, *args)` that draws the auxiliary sites, `kept` a dict site -> value; its
            parameters are parameters of the whole. Or any object with `simulate(key, kept, *args)` and
            `estimate_log_density(key, choices, kept, *args)` made as a pair (a sampler with its conditional version).
            None: the program's own conditional prior of the auxiliary sites.
        num_particles: N.

    Returns:
        A program. `ppl.draw` and `ppl.score` take it inside `ppl.expectation` and objectives, where auxiliary sites have
        gradient strategies like all sites.

    Raises:
        ValueError: keep names no latent site, or all of them; the proposal does not draw exactly the auxiliary sites, or
            missing cells (`obs_mask`) without their mask; a log-prob is scaled by subsampling and N > 1.
        TypeError: no proposal for a program whose own density is estimated.

    Validity: both identities hold at every N for a proposal that covers the auxiliary sites' support. Logs of the
    estimates are biased, on the side that `bounds` tells: log p is bounded from below at given choices and from above
    at draws, so that `score(p) - draw(q)` stays a lower bound of log evidence.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def g():
        ...     a = ppl.sample("a", dist.Bernoulli(0.5))
        ...     ppl.sample("v", dist.Bernoulli(0.1 + 0.4 * a))
        >>> m = ppl.marginal(g, keep=["v"], num_particles=1000)
        >>> abs(float(jax.numpy.exp(m.estimate_log_density(jax.random.key(0), {"v": 1}))) - 0.3) < 0.05
        True

    Reference: Andrieu and Roberts 2009 (pseudo-marginal); Lew et al. 2023, doi:10.1145/3591290; Sobolev and Vetrov 2019,
    arXiv:1905.03290 (the retained particle in a variational bound).
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    label = f"marginal[{', '.join(keep)}]"
    if not keep or len(set(keep)) != len(keep):
        raise ValueError(f"ppl.marginal: keep must name distinct sites, got {list(keep)}.")
    check_counts(label, num_particles=num_particles)
    program = as_sampler(program, f"{label}: the program")
    if proposal is None and isinstance(program, StochasticProgram):
        raise TypeError(
            f"{label}: {program.label} has an estimated density and no conditional prior to draw its auxiliary "
            "sites from. Pass proposal=, or marginalise both sets of sites at once."
        )
    proposal = None if proposal is None else as_sampler(proposal, f"{label}: the proposal")
    return Marginal(program, keep, proposal, num_particles)


@dataclasses.dataclass(frozen=True)
class _SignedTerms:
    """A log-weight as signed log-probs by name, with the sites' descriptions."""

    log_probs: dict[str, Array]
    infos: dict[str, SiteInfo]
    own: dict[str, SiteInfo]

    @staticmethod
    def of(trace: Trace, without: Collection[str] = ()) -> _SignedTerms:
        terms = {name: lp for name, lp in trace.log_probs.items() if name not in without}
        return _SignedTerms(terms, dict(trace.sites), {n: trace.sites[n] for n in terms})

    def minus(self, other: _SignedTerms) -> _SignedTerms:
        theirs = {f"{name} (proposal)": -lp for name, lp in other.log_probs.items()}
        own = {f"{name} (proposal)": info for name, info in other.own.items()}
        return _SignedTerms({**self.log_probs, **theirs}, self.infos, {**self.own, **own})

    def checked(self, label: str) -> Array:
        """The sum (scalar); refuses scaled terms."""
        refuse_scaled(label, self.own)
        return self.trace({}, {}).log_density

    def trace(self, kept: Mapping[str, Array], infos: Mapping[str, SiteInfo]) -> Trace:
        """A trace of the kept choices with these log-probs; what is not a kept site counts as a factor."""
        sites = SiteInfos({name: infos[name] for name in kept})
        log_probs = {}
        for name, log_prob in self.log_probs.items():
            if name not in kept:
                info = dataclasses.replace(self.own[name], kind="factor", is_auxiliary=False)
                name = name if name.endswith(")") else f"{name} (marginal)"
                sites[name] = info
            log_probs[name] = log_prob
        return Trace(dict(kept), log_probs, None, {}, {}, sites)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Infos:
    """Site descriptions on their way out of one particle."""

    infos: dict[str, SiteInfo]
