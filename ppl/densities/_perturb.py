"""Known noise added to an observed site: to its data and to its law."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import Distribution

from .._types import Message, ModelFn
from ..distributions import base_of, convolved
from ..language import Program, handled, is_ours, rng_key
from ..traces import Recorder


def perturb(program: ModelFn, site: str, noise: Distribution) -> Program:
    """The program with noise added to a site: its law is that of x + e, its data have draws e of their own in each run.

    What is estimated is the program without the noise, so that a law that has no density of use (on a curve, at points) is fitted
    by maximum likelihood, as with the perturbed sieve estimator.

    Args:
        program: a program, or a function of sample statements.
        site: an observed site outside of scans; where it is not observed its draws have the noise as well.
        noise: Normal for each coordinate, or MultivariateNormal.

    Raises:
        ValueError: the program has no such site, the site is in a scan or a branch, or its law and the noise have no sum in
            closed form.

    Validity: exact for normals, multivariate ones, mixtures of them, points and, with one Normal noise for all coordinates,
        curves (`Polyline`); other laws are refused.

    Reference: Chae, Kim, Kim and Lin 2023, arXiv:2105.04046 (perturbed data).
    """

    def check(active: _Perturb) -> None:
        met = set(active.frame.infos)
        if site not in met:
            raise ValueError(
                f"ppl.perturb: no site named '{site}'; the program's sites are {sorted(met)}. Name one of these."
            )

    return handled(program, lambda: _Perturb(site, noise), check)


class _Perturb(Recorder):
    is_final = False

    def __init__(self, site: str, noise: Distribution) -> None:
        super().__init__()
        self.site, self.noise = site, noise

    def control_flow(self, msg: Message) -> None:
        if is_ours():
            super().control_flow(msg)

    def numbers_of(self, msg: Message) -> dict[str, Array]:
        return {}

    def visit(self, msg: Message) -> None:
        if msg["name"] != self.site:
            return
        if len(self.frames) > 1:
            raise ValueError(
                f"Site '{self.site}': ppl.perturb adds noise to sites outside of scans and branches. Write the noise into the "
                "step's law, and add it to the data."
            )
        law = msg["fn"]
        msg["fn"] = convolved(law, self.noise)
        if msg["fn"] is None:
            kinds = [type(base_of(x)).__name__ for x in (law, self.noise)]
            raise ValueError(
                f"Site '{self.site}': ppl.perturb knows no law of the sum of a {kinds[0]} and a {kinds[1]}. Write the noise as "
                "a latent site. Known are Normal, MultivariateNormal, Delta, mixtures of them and Polyline, with noise that is "
                "Normal or MultivariateNormal."
            )
        if not msg["is_observed"]:
            return
        # A value for all draws has noise for each.
        value = jnp.broadcast_to(msg["value"], law.shape())
        lead = law.shape()[: len(law.shape()) - len(self.noise.shape())]
        msg["value"] = value + self.noise.sample(rng_key(f"noise of {self.site}"), lead)
