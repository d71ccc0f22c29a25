"""`ppl.kalman_proposal`: a program's normal states given what each step observes, to be proposed to particles."""

from __future__ import annotations

from typing import Any

from jaxtyping import PyTree

from .._types import Key
from ..gaussian import APPROXIMATIONS, propose
from ..language import Program, as_program
from ..traces import Params
from ._outside import declared


class KalmanProposal(Program):
    """A proposal for the particles of a program. Made by `ppl.kalman_proposal`.

    Attributes:
        program: the model.
        approximation: of means that are not affine.
    """

    def __init__(self, program: Program, approximation: str | None) -> None:
        super().__init__(self._statements)
        self.program, self.approximation = program, approximation
        self.__name__ = self.label = f"kalman_proposal[{approximation or 'exact'}]"

    def rebuilt(self, transform: Any) -> KalmanProposal:
        """The proposal for a transformed program."""
        return KalmanProposal(transform(self.program), self.approximation)

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        return self.program.init(key, *args, **kwargs)

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> None:
        params = declared(self.program, args, kwargs)[0]
        propose(self.label, self.program, params, args, kwargs, self.approximation)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


def kalman_proposal(program: object, approximation: str | None = "ekf") -> KalmanProposal:
    """Propose a program's normal states given where a particle was and what the step observes.

        q(x_t | x_{t-1}, y_t) in proportion to p(x_t | x_{t-1}) p(y_t | x_t), with normal p(y_t | x_t)

    In each step of a `ppl.scan` the Normal and MultivariateNormal sites are drawn from their joint law given the step's normal
    observations: one update of Kalman's filter from the particle's own state. Where the means are affine within the step that is
    the proposal of least variance (Doucet, Godsill and Andrieu 2000), whatever the step does to the state before; otherwise an
    approximation of it. Other sites, and statements outside of scans, are drawn from their own laws; observations that are not
    normal have no part in it.

    Args:
        program: the model.
        approximation: of means that are not affine: "ekf" linearises, "ukf" matches moments, None lets such observations out.

    Returns:
        A program for `proposal=` of `inference.smc`, `particle_gibbs`, `pmmh` and others, and the guide of `fivo`.

    Raises:
        ValueError: another approximation. At the first run: sites in a scan or a branch inside of a step; a site that is not
            normal and depends on normal ones of the same step.

    Validity:
        The evidence of particles stays unbiased, whatever the approximation: particles are weighted by p / q. Where an
        approximate law is narrower than the exact one, weights have heavy tails; `SMCResult.k_hat` tells.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def bearing(ys):
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(jnp.arctan(x), 0.3), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> ys = jnp.array([0.5, 0.9, 0.4])
        >>> run = inference.smc(
        ...     bearing, jax.random.key(0), ys, num_particles=200, proposal=ppl.kalman_proposal(bearing)
        ... )
        >>> bool(run.ess[-1] > 100)
        True

    Reference: van der Merwe, Doucet, de Freitas and Wan 2000, The Unscented Particle Filter.
    """
    if approximation is not None and approximation not in APPROXIMATIONS:
        raise ValueError(
            f"ppl.kalman_proposal: approximation={approximation!r} is none of {', '.join(map(repr, APPROXIMATIONS))}. Choose one "
            "of them, or None for means that are affine."
        )
    return KalmanProposal(as_program(program), approximation)
