"""The ELBO with divergences in place of sampled log-ratios, wherever they have a formula.

Terms: q, p the laws that guide and model give a latent site, at the draws of the sites before it. Output: the site's
log p - log q replaced by -KL(q || p), which is its expectation given those draws.

Invariant: a site is replaced only if all that its two laws depend on is drawn before it. A law depends at most on the sites
before it in its own program; so it suffices that every latent site before it in the model comes before it in the guide.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import trace_state
from ...ppl._types import Message
from ...ppl.distributions import exact_kl, is_masked
from ...ppl.language import InlineGuide, JointRun, name_of
from ...ppl.strategies import element
from ._detached import refuse_estimated

Array = jax.Array


class Laws(Messenger):
    """Remember the law and the scale of every sample statement outside of control flow, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, Any]] = {}

    def __enter__(self) -> Laws:
        super().__enter__()
        self.state = trace_state()
        return self

    def postprocess_message(self, msg: Message) -> None:
        # Inside scan or particles the law is an array of that transformation.
        if msg["type"] == "sample" and trace_state() == self.state:
            self.found[msg["name"]] = (msg["fn"], msg["scale"])

    def watch(self, program: ppl.Program) -> ppl.Program:
        """The program, its statements seen."""

        def watched(*args: PyTree, **kwargs: PyTree) -> Array | tuple[Array, Array] | None:
            with self:
                return program.fn(*args, **kwargs)

        watched.__name__ = name_of(program)
        return ppl.Program(watched, program.params, program.site_weights)


def analytic_elbo(
    model: ppl.Program, guide: ppl.Program, patterns: Sequence[str], *args: PyTree
) -> Array:
    """E_q[log p(x, z) - log q(z)], in expectation at the sites that match `patterns`."""
    for program in (model, guide):
        refuse_estimated("elbo(kl='analytic')", program, "so its sites have no law to compare")
    if isinstance(guide, InlineGuide) and guide.model is model:
        q, p, kl = guide.joint(*args, kl=patterns)
    else:
        q, p, kl = _of_two(model, guide, patterns, args)
    _check_named(patterns, q, kl)
    total = -sum((jnp.sum(x) for x in kl.values()), jnp.zeros(()))
    for trace, sign in ((p, 1.0), (q, -1.0)):
        for name, log_prob in trace.log_probs.items():
            if name not in kl:
                total = total + sign * jnp.sum(log_prob)
    return total


def _of_two(
    model: ppl.Program, guide: ppl.Program, patterns: Sequence[str], args: tuple
) -> JointRun:
    """The traces of two programs run one after the other, and the divergences between the laws seen outside of control flow."""
    p_laws, q_laws = Laws(), Laws()
    q = ppl.draw(q_laws.watch(guide), *args)
    p = ppl.score(p_laws.watch(model), q, *args)
    kl = {}
    for name in _ordered(p, q):
        is_seen = name in p_laws.found and name in q_laws.found
        if is_seen and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found = divergence(q_laws.found[name], p_laws.found[name])
            if found is not None:
                kl[name] = found
    if model.site_weights is not None:
        kl = model.site_weights.apply(kl, p.sites)
    return JointRun(q, p, kl)


def _check_named(patterns: Sequence[str], q: ppl.Trace, kl: Mapping[str, object]) -> None:
    """A site asked for by name has its divergence, a pattern matches a site."""
    for pattern in patterns:
        matching = [name for name in q.choices if fnmatch.fnmatchcase(name, pattern)]
        if pattern != "*" and not matching:
            raise ValueError(
                f"elbo: kl={{'{pattern}': 'analytic'}} matches no latent site; they are {list(q.choices)}. Give the name "
                "of one of them, or a pattern that one matches."
            )
        if pattern in matching and pattern not in kl:
            raise ValueError(
                f"Site '{pattern}': its KL(q || p) is not known here. Its laws must be a pair with an exact formula (Normal, "
                "Gamma, Beta, Dirichlet, Categorical by probs, ...; that of Kumaraswamy and Beta is a series cut off), unmasked "
                "and seen together: write ppl.sample(name, prior, proposal=q) with guide=ppl.guide_of(model), or stay outside of "
                f"control flow. Or take the sampled log-ratio, kl={{'{pattern}': 'sampled'}}."
            )


def divergence(q: tuple[Any, Any], p: tuple[Any, Any]) -> Array | None:
    """KL(q || p) of two scaled laws per batch element, nats; None where there is no formula."""
    (q_fn, q_scale), (p_fn, p_scale) = q, p
    # Only one factor on both: with two, the log-ratio is no divergence. Masks may differ: left to sampling.
    if not _equal(q_scale, p_scale):
        return None
    kl = exact_kl(q_fn, _like(q_fn, p_fn))
    return kl if kl is None or q_scale is None else q_scale * kl


def _ordered(p: ppl.Trace, q: ppl.Trace) -> list[str]:
    """Shared latent sites whose predecessors in the model precede them in the guide too."""
    guide_order = [name for name in q.sites if name in q.choices]
    before: set[str] = set()
    sound = []
    for name in (name for name in p.sites if name in p.choices):
        if name in guide_order and before <= set(guide_order[: guide_order.index(name)]):
            sound.append(name)
        before.add(name)
    return sound


def _like(q: PyTree, p: PyTree) -> Any:
    """Independent normals as one multivariate normal, where q is one; under a mask they are none."""
    if is_masked(p):
        return p
    if isinstance(element(q)[0], dist.MultivariateNormal) and isinstance(
        element(p)[0], dist.Normal
    ):
        if p.event_dim != 1:
            return p
        scale = jnp.broadcast_to(jnp.sqrt(p.variance), p.shape())
        return dist.MultivariateNormal(
            jnp.broadcast_to(p.mean, p.shape()),
            scale_tril=jnp.eye(p.shape()[-1]) * scale[..., None],
        )
    return p


def _equal(one: object, two: object) -> bool:
    one, two = (1.0 if scale is None else scale for scale in (one, two))
    return one is two or (
        isinstance(one, int | float) and isinstance(two, int | float) and one == two
    )
