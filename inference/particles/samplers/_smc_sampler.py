"""A particle method as a program: a draw is one of its paths, a density is estimated by conditional SMC.

Terms: p~(x) the program's density with its data, K particles, Z-hat the evidence estimate, r all randomness but the path.
- a draw: run the method, choose path x by the final weights; w = log p~(x) - log Z-hat.
- given x: run it conditionally on the path x of particle 0; w = log p~(x) - log Z-hat.
Up to labels, which are uniform, the law of (x, r) is S(x, r) = p~(x) / Z-hat(x, r) times the conditional law E(r | x)
(Andrieu, Doucet and Holenstein 2010, theorem 2): the pair that `ppl/densities/_stochastic.py` asks for, for any policy.

The conditional law of a scheme that treats particles unlike each other is that of the scheme behind a random shift of the
particles; hence the shift in a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import no_handlers
from ....ppl.densities import Ambient, StochasticProgram, as_arrays, estimated
from ....ppl.language import joined, name_of
from ....ppl.traces import running_engine
from ..engine import SMCResult, smc
from ..population import underived
from ..resampling import Policy, Scheme, as_scheme, every

Array = jax.Array


class SMCSampler(StochasticProgram):
    """The law of a path chosen from a particle run. Made by `smc_sampler`."""

    def __init__(
        self, program: ppl.Program, proposal: ppl.Program | None, options: Mapping[str, Any]
    ) -> None:
        parts = {"program": program} | ({} if proposal is None else {"proposal": proposal})
        super().__init__(f"smc[{name_of(program)}]", parts)
        self.program, self.proposal, self.options = program, proposal, options

    def _with_parts(self, parts: Mapping[str, Any]) -> StochasticProgram:
        return SMCSampler(parts["program"], parts.get("proposal"), self.options)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> ppl.Trace:
        args = joined(args, kwargs)
        if running_engine().is_exploring:  # parameters are met as in any program
            met = self._explore(args)
            return estimated(self.label, met.choices, met.sites, met.log_density)
        run_key, path_key = jax.random.split(self.own_key())
        result = self._run(run_key, args)
        index = jax.random.categorical(path_key, result.log_weights)
        return self._trace({name: x[index] for name, x in result.particles.items()}, result, args)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> ppl.Trace:
        args = joined(args, kwargs)
        choices = as_arrays(choices)
        if running_engine().is_exploring:
            self._explore(args)
            return self.program._score(choices, *args)
        result = self._run(self.own_key(), args, choices)
        return self._trace(choices, result, args, is_given=True)

    def _run(self, key: Array, args: tuple[PyTree, ...], retained: Any = None) -> SMCResult:
        """The particle run; a derivative of what enters it is refused."""
        guard = lambda x: underived(_NO_GRADIENT, x) if _has_derivative(x) else x
        params, args = jax.tree.map(guard, (self.params or {}, args))
        bind = lambda p: p.bind(params) if params else p
        program = bind(self.program)
        proposal = None if self.proposal is None else bind(self.proposal)
        scheme = self.options["resampling"]
        scheme = scheme if retained is not None else _shifted(scheme)
        with no_handlers():
            return smc(
                program, key, *args, proposal=proposal, retained=retained,
                **{**self.options, "resampling": scheme},
            )  # fmt: skip

    def _trace(
        self, choices: dict[str, Array], result: SMCResult, args: PyTree, *, is_given: bool = False
    ) -> ppl.Trace:
        p = self.program._score(choices, *args)
        # A run that lost all particles weighs nothing: 1 / q-hat = 0. A given path without density has q-hat = 0.
        is_lost = result.failed_at >= 0
        log_density = jnp.where(is_lost, jnp.inf, p.log_density - result.log_evidence)
        if is_given:
            log_density = jnp.where(p.log_density == -jnp.inf, -jnp.inf, log_density)
        return estimated(self.label, choices, p.sites, log_density)

    def _explore(self, args: tuple[Any, ...]) -> ppl.Trace:
        with Ambient(self.own_key(), exploring=True):
            if self.proposal is not None:
                self.proposal._draw(*args)
            return self.program._draw(*args)


_NO_GRADIENT = (
    "smc_sampler: a derivative with respect to what enters the particle run (its parameters or arguments) would miss how the "
    "drawn path and the resampling depend on them. Give the sampler programs without learned parameters, or train the bound "
    "that it stands for: inference.fivo."
)


@checked_call
def smc_sampler(
    model: Any,
    *,
    num_particles: int,
    proposal: Any = None,
    resampling: str | Scheme = "systematic",
    policy: Policy | None = None,
    batch_size: int | None = None,
) -> SMCSampler:
    """The program that draws one path from a run of sequential Monte Carlo; its density q_K is estimated by conditional SMC.

    simulate(key, *args): x, one of the K paths by its weight, and w = log p~(x) - log Z-hat; E[exp(-w) | x] = 1 / q_K(x).
    estimate_log_density(key, x, *args): w = log p~(x) - log Z-hat of a run that keeps x; E[exp w] = q_K(x).

    q_1 is the proposal, and q_K tends to the posterior of `model`. As `proposal=` of `ppl.marginal` it makes log Z-hat itself
    the estimate; as that of `ppl.normalize`, or as the guide of an objective, it replaces independent proposals where these
    degenerate with the number of steps.

    Args:
        model: a program with its data, as in `smc`. As proposal of a `ppl.marginal` its first argument is the dict of kept
            choices, on which it conditions.
        num_particles: K.
        proposal: as in `smc`.
        resampling: an unbiased scheme.
        policy: when to resample, every step by default.
        batch_size: as in `smc`.

    Returns:
        A program with an estimated density.

    Raises:
        ValueError: a biased scheme; what `smc` refuses.
        TypeError: the program's or proposal's own density is estimated; a derivative with respect to what enters the run.

    Validity: both identities hold at every K, for every unbiased scheme and every policy that looks at weights only, with a
    proposal that covers the target's support, at x of positive density p~(x). Where it is zero w is -inf, given x, and +inf in
    a draw (a run that lost all particles): such x weigh nothing in `marginal`, `normalize` and bounds.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def chain(kept):
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, kept["y"])
        >>> def joint():
        ...     def step(x, _):
        ...         x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0))
        ...     ppl.scan(step, 0.0, None, length=3)
        >>> sampler = inference.smc_sampler(chain, num_particles=50)
        >>> of_y = ppl.marginal(joint, keep=["y"], proposal=sampler)  # a particle filter's evidence
        >>> of_y.estimate_log_density(jax.random.key(0), {"y": jnp.array([0.5, -1.0, 0.25])}).shape
        ()

    Reference: Andrieu, Doucet and Holenstein 2010 (particle MCMC); Lew et al. 2023, doi:10.1145/3591290.
    """
    check_counts("smc_sampler", num_particles=num_particles)
    scheme = as_scheme(resampling)
    if not scheme.is_unbiased:
        raise ValueError(
            f"smc_sampler: resampling scheme '{scheme.name}' is biased, so neither density estimate would be one. Use an "
            "unbiased scheme, e.g. 'systematic'."
        )
    programs = [None if p is None else ppl.as_program(p) for p in (model, proposal)]
    for p in programs:
        if isinstance(p, StochasticProgram):
            raise TypeError(
                f"smc_sampler: the density of {p.label} is estimated, but the particle method needs the densities of every "
                "site. Pass a program of sample statements."
            )
    target, guide = programs
    assert target is not None
    options = {
        "num_particles": num_particles, "resampling": scheme, "policy": policy or every(), "batch_size": batch_size,
    }  # fmt: skip
    return SMCSampler(target, guide, options)


def _has_derivative(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)


def _shifted(scheme: Scheme) -> Scheme:
    """The scheme behind a uniform cyclic shift of the particles."""

    def ancestors(key: Array, log_weights: Array, num: int | None = None) -> Array:
        shift_key, key = jax.random.split(key)
        size = len(log_weights)
        shift = jax.random.randint(shift_key, (), 0, size)
        return (scheme.ancestors(key, jnp.roll(log_weights, shift), num) - shift) % size

    return Scheme(scheme.name, ancestors, scheme.conditional, scheme.is_unbiased)
