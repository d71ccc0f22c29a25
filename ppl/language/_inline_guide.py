"""Guides written inside of their model: `ppl.sample(name, prior, proposal=q)` and `ppl.guide_of(model)`.

Terms: a *proposal* is the law from which the guide draws a site, given at the site's own statement, where it may use all that
the model has computed so far; the *joint run* is one run of the model in which such sites are drawn from their proposals.

Input: a program with proposals. Output: its guide, a program over the same latent sites. Run by itself, the guide draws them and
shows nothing else. Drawn by `ppl.draw`, it makes the joint run, whose statement also leaves log p of the drawn value (and, when
asked for, the KL divergence); `ppl.score(model, trace)` of that very trace then takes the model's side from the joint run instead
of running the model again. What the model computes from its draws (the carry of a scan, say) is thus computed once, and prior and
proposal see the same of it by construction.

Invariant: the two traces of a joint run equal those of the guide run by itself and of the model at its choices. A copy of the
trace (`dataclasses.replace`, `jax.tree.map`) is another trace and makes the model run again: its choices or their derivatives
may have been changed.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpyro
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from .._compat import fresh_caches, handler_stack
from .._foreign import named_errors
from .._types import Message, ParamMap
from ..distributions import exact_kl
from ..traces import (
    PROPOSED,
    EngineRecorder,
    SiteInfo,
    SiteInfos,
    Trace,
    remember_draw,
    running_engine,
    trace_of,
    with_reach,
)
from ._callables import name_of
from ._program import Program, as_program

Array = jax.Array

PRIOR, KL = "!prior", "!kl"  # what a joint run leaves beside a site


class JointRun(NamedTuple):
    """Both sides of a joint run.

    Attributes:
        guide: the drawn choices with log q.
        model: the same choices with log p, and the observations.
        kl: site -> KL[q || p] given what was drawn before it (nats, the site's batch shape), where asked for.
    """

    guide: Trace
    model: Trace
    kl: dict[str, Array]


class InlineGuide(Program):
    """The guide that a program's proposals make. Made by `guide_of`."""

    def __init__(self, model: Program) -> None:
        def latents(*args: PyTree, **kwargs: PyTree) -> PyTree:
            with _LatentOnly(), fresh_caches():
                return model.run(*args, **kwargs)

        latents.__name__ = f"guide_of({name_of(model)})"
        super().__init__(latents, model.params, model.site_weights)
        self.model = model

    def bind(self, params: ParamMap) -> InlineGuide:
        """The guide of the model with its parameters fixed."""
        bound = InlineGuide(self.model.bind(params))
        bound._seen = self._seen
        return bound

    def reweighted(self, weights: Array) -> InlineGuide:
        """The guide of the reweighted model."""
        return InlineGuide(self.model.reweighted(weights))

    def rebuilt(self, transform: Callable[[Program], Program]) -> InlineGuide:
        """The guide of the transformed model."""
        return InlineGuide(transform(self.model))

    def joint(self, *args: PyTree, kl: Collection[str] = (), **kwargs: PyTree) -> JointRun:
        """The joint run, inside `ppl.expectation`.

        Args:
            args: the program's arguments.
            kl: fnmatch patterns of sites whose KL divergence is wanted, where it has a formula.
            kwargs: its keyword arguments.

        Raises:
            RuntimeError: outside of an expectation or objective.
        """
        if running_engine() is None:
            raise RuntimeError(
                "The joint run of model and guide has no randomness of its own: make it inside ppl.expectation or an "
                "objective. Elsewhere use guide.simulate(key, *args)."
            )
        collector = EngineRecorder()
        with collector, named_errors(collector, self.model), _Joint(kl):
            retval = self.model.run(*args, **kwargs)
        run = _split(trace_of(collector, retval))
        guide = remember_draw(self._remember(collector, run.guide))
        run = run._replace(guide=guide, model=self.model._remember(collector, run.model))
        # On the object, not in a field: no copy of the trace takes it along.
        object.__setattr__(guide, "scored", Scored(self.model, args, kwargs, run.model))
        weights = self.site_weights
        if weights is not None:
            run = run._replace(kl=weights.apply(run.kl, run.model.sites))
        return run

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        return self.joint(*args, **kwargs).guide


class Scored(NamedTuple):
    """The model's side of a joint run, and what it was a run of."""

    model: Program
    args: tuple
    kwargs: dict[str, PyTree]
    trace: Trace

    def is_run_of(self, program: Program, args: tuple, kwargs: dict[str, PyTree]) -> bool:
        """Whether scoring `program` with these arguments would repeat it."""
        same = lambda a, b: len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
        return (
            program is self.model
            and same(args, self.args)
            and kwargs.keys() == self.kwargs.keys()
            and same(tuple(kwargs.values()), tuple(self.kwargs[k] for k in kwargs))
        )


def guide_of(model: Program | Callable[..., PyTree]) -> InlineGuide:
    """The guide that draws every site of `model` from the `proposal` at its statement, others from their prior.

    q(z | x) = prod over sites of proposal(z_s | what the model computed before s). It has the parameters of the model.

    Args:
        model: a program whose statements say `ppl.sample(name, prior, proposal=q)`.

    Returns:
        A program over the model's latent sites. In an objective with this very model, model and guide are one run.

    Validity: exact, also for what is inside of plates, scans and branches. Observed, masked and scaled sites keep their meaning;
    a site fixed by `ppl.condition` or `ppl.intervene` is not proposed.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> @ppl.model
        ... def model(x):
        ...     q = dist.Normal(ppl.param("m", 0.0), 1.0)
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0), proposal=q)
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> bound = inference.elbo(model, ppl.guide_of(model))
        >>> sorted(bound.init(jax.random.key(0), 1.5))
        ['m']
    """
    return InlineGuide(as_program(model))


def propose(
    name: str, prior: dist.Distribution, proposal: dist.Distribution, infer: dict[str, PyTree]
) -> PyTree:
    """What a sample statement with a proposal does when a guide runs; None when it is to be drawn from its prior."""
    mode = next((h for h in reversed(handler_stack()) if isinstance(h, _Mode)), None)
    if mode is None or _is_given(name):
        return None
    value = numpyro.sample(name, proposal, infer=infer)
    if isinstance(mode, _Joint):
        numpyro.sample(f"{name}{PRIOR}", prior, obs=value, infer={PROPOSED: True})
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in mode.kl):
            divergence = exact_kl(proposal, prior)
            if divergence is not None:
                numpyro.factor(f"{name}{KL}", divergence)
    return value


class _Mode(Messenger):
    """Abstract: marks a run in which proposals are drawn from."""


class _LatentOnly(_Mode):
    """Hide all but the latent sites: the guide as a program of its own."""

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "deterministic" or msg["type"] == "sample" and msg["is_observed"]:
            msg["stop"] = True


class _Joint(_Mode):
    """Leave the model's side too."""

    def __init__(self, kl: Collection[str]) -> None:
        super().__init__()
        self.kl = tuple(kl)


def _is_given(name: str) -> bool:
    """Whether `ppl.condition` or `ppl.intervene` fixes the site."""
    from ._handlers import GivenSites

    return any(isinstance(h, GivenSites) and h.given(name) is not None for h in handler_stack())


def _split(joint: Trace) -> JointRun:
    """The two sides of a joint trace, each in program order."""
    q_probs, p_probs, kl = {}, {}, {}
    q_sites: dict[str, SiteInfo] = {}
    p_sites: dict[str, SiteInfo] = {}
    for name, info in joint.sites.items():
        # Divergences in closed form, which stand for the difference of the two log-probs.
        if name.endswith(KL):
            kl[name.removesuffix(KL)] = joint.log_probs[name]
        elif name.endswith(PRIOR):
            # The model's law of a site that the guide draws; the value is the guide's.
            site = name.removesuffix(PRIOR)
            p_probs[site] = joint.log_probs[name]
            p_sites[site] = dataclasses.replace(info, name=site, kind="latent")
        elif info.kind == "latent":
            q_probs[name], q_sites[name] = joint.log_probs[name], info
            # Drawn from the prior by both: the log-probs cancel in every weight.
            if f"{name}{PRIOR}" not in joint.sites:
                p_probs[name], p_sites[name] = joint.log_probs[name], info
        else:
            p_sites[name] = info
            if name in joint.log_probs:
                p_probs[name] = joint.log_probs[name]
    observed = {n: x for n, x in joint.observed.items() if not n.endswith(PRIOR)}
    q = Trace(joint.choices, q_probs, joint.retval, {}, {}, SiteInfos(q_sites))
    p = Trace(
        joint.choices, p_probs, joint.retval, observed, joint.deterministic, SiteInfos(p_sites)
    )
    limits = lambda name: joint.reach.get(name, {})
    with_reach(q, {n: limits(n) for n in q_sites})
    with_reach(
        p, {n: limits(f"{n}{PRIOR}" if f"{n}{PRIOR}" in joint.sites else n) for n in q_sites}
    )
    return JointRun(q, p, kl)
