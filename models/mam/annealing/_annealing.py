"""Learning a law known up to its constant from particles that came to it by temperature.

A model that learns from its own draws (`energy`) never hears of a mode that it does not draw, and nothing it can compute says
so. Here draws come from elsewhere:

1. tempered SMC from the uniform law to f / Z, moved by Gibbs sweeps at each temperature (`inference.tempered_smc`), twice and
   independently: one run to learn from, one to judge by;
2. the conditional network learns from the particles by the order-agnostic bound (`any_order`), which is KL(p || q) up to a
   constant: a mode left out costs without bound;
3. the marginal network is fitted to the chain of the conditional one (`distilled`), until held-out rows say that it is enough;
4. states that hold much of the law are known by heart, with their exact relative masses, as far as particles of the other run
   like it (`Remembered`);
5. the evidence is bounded from both sides, by draws of the model and by particles of the other run (`bracket`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .... import inference
from ....inference.diagnostics import EvidenceBracket
from ....inference.particles.resampling import as_scheme
from ....ppl._compat import typed_key
from ....ppl._show import shown
from .._bracket import bracket
from .._distribution import MaM
from .._objectives import any_order
from .._tempering import LogTarget, tempered_rows
from ..networks import Networks, Pair
from ._distilled import Distilled, distilled, scored
from ._remembered import Remembered, best_share

_NUM_JUDGED, _LEAST_SHARE = (
    2_000,
    1e-3,
)  # rows that choose the weight of the memory; one that is not worth its cost


@shown
@dataclasses.dataclass(frozen=True)
class Annealed:
    """What `anneal` returns.

    Attributes:
        networks: the trained networks: a pair, or a `Remembered` one.
        rows: particles of both runs, values 0 to K - 1, [2, particles, D], drawn by their weights where these differ; the
            networks have learned from the first.
        log_evidence: log Z by each run, nats, [2]: where they differ, modes were missed.
        temperatures: exponents of each run, [2, max_steps], filled up with 1.
        share: weight of the states that are known by heart, 0 if there are none.
        distillation: how the training of the marginal network ended.
        bracket: log Z from both sides; its `unseen` is the share of the law that the model hardly ever draws.
    """

    networks: Networks
    rows: Int[Array, "runs particles variables"]
    log_evidence: Float[Array, " runs"]
    temperatures: Float[Array, "runs steps"]
    share: float
    distillation: Distilled
    bracket: EvidenceBracket

    def _facts(self) -> dict[str, PyTree]:
        one, two = (float(x) for x in self.log_evidence)
        facts = self.bracket._facts()
        return {
            "log Z": f"{one:.4f} and {two:.4f} nats, by tempered particles",
            "lower": facts["lower"],
            "upper": facts["upper"],
            "unseen": facts["unseen"],
            "share": f"{self.share:.3g} of the model's mass on states that are known by heart",
            "distillation": f"{self.distillation.error:.3g} nats rms on held-out rows",
        }


def anneal(
    networks: Pair,
    log_target: LogTarget,
    key: Array,
    *,
    num_particles: int = 16_384,
    tempering: Mapping[str, PyTree] | None = None,
    num_steps: int = 3_000,
    batch: int = 512,
    remember: bool = True,
    rate: float = 1e-2,
    progress: bool = False,
    **options: PyTree,
) -> Annealed:
    """Learn a law p = f / Z known up to its constant from tempered particles: the steps 1 to 5 of the module's text.

    Args:
        networks: the pair to start from.
        log_target: log f of one row `[D] -> scalar`, nats; also of rows that p hardly ever draws.
        key: PRNG key of either kind.
        num_particles: particles of each of two tempering runs.
        tempering: options of `inference.tempered_smc` for these runs. By default `num_moves` of 2, Gibbs sweeps at each
            temperature of D (K - 1) evaluations of f for each particle, and a `target_ess` of 0.8, for small steps.
        num_steps: steps of the conditional network.
        batch: rows of a step.
        remember: whether heavy states may be known by heart (`Remembered`), for laws that no network fits as well; a law spread
            over many more states than particles gives them no weight.
        rate: Adam's rate, which falls to zero along a cosine.
        progress: show progress bars.
        options: of `distilled`.

    Returns:
        An `Annealed`.

    Raises:
        ValueError: as `inference.tempered_smc`, `any_order` and `distilled`.
        RuntimeError: the tempering runs have no finite evidence.

    Warns:
        UserWarning: draws of the target lie where the model hardly ever draws (`evidence_bracket`).

    Validity: particles are consistent for p, and the networks learn what the particles say: a mode that no particle finds at any
    temperature is lost to them, and the bracket does not show it. Runs with other keys and more particles, whose log Z agree,
    say that none is. `mam.feynman_kac` corrects what the networks have not learned.

    Example:
        >>> import jax
        >>> from lapilli.models import ising, mam
        >>> lattice = ising.Ising(3, 3, coupling=0.2, field=0.2)
        >>> networks = mam.residual_mlps(9, 2, width=8, key=jax.random.key(0))
        >>> options = {"num_particles": 500, "num_steps": 20, "batch": 64, "max_steps": 20, "patience": 10}
        >>> found = mam.anneal(networks, lattice.log_density, jax.random.key(1), **options)  # doctest: +SKIP

    Reference: Del Moral, Doucet and Jasra 2006 (tempered SMC); Blessing et al. 2024, arXiv:2406.07423 (EUBO).
    """
    smc_key, fit_key, distil_key, share_key, bracket_key = jax.random.split(typed_key(key), 5)
    of_runs = {"num_particles": num_particles, "target_ess": 0.8, **(tempering or {})}
    sizes = networks.num_variables, networks.num_values
    temper = lambda key: tempered_rows(log_target, *sizes, key, **of_runs)
    runs = jax.jit(lambda keys: jax.lax.map(temper, keys))(jax.random.split(smc_key))
    if not jnp.isfinite(runs.log_evidence).all():
        raise RuntimeError(
            f"anneal: the tempering runs give log Z {runs.log_evidence}: at some temperature no particle had a finite weight, or "
            "100 temperatures were not enough. Make log_target finite where rows may go, or give `tempering`."
        )
    row_keys = jax.random.split(jax.random.fold_in(smc_key, 1))
    learned, judged = rows = jnp.stack(
        [
            _of_equal_weight(*run, num_particles)
            for run in zip(runs.particles["x"], runs.log_weights, row_keys, strict=True)
        ]
    )
    import optax

    fit = inference.fit(
        any_order(networks), optax.adam(optax.cosine_decay_schedule(rate, num_steps)), (learned,),
        num_steps=num_steps, key=fit_key, subsample={"rows": min(batch, num_particles)}, progress=progress,
    )  # fmt: skip
    pair = networks.with_params(fit.params)
    distillation = distilled(pair, learned, distil_key, progress=progress, **options)
    found, share = _with_memory(distillation.networks, log_target, rows, share_key, remember)
    return Annealed(
        networks=found,
        rows=rows,
        log_evidence=runs.log_evidence,
        temperatures=runs.temperatures,
        share=share,
        distillation=distillation,
        bracket=bracket(MaM(found), log_target, judged, bracket_key),
    )


def _of_equal_weight(rows: Array, log_weights: Array, key: Array, num: int) -> Array:
    """The rows of a run; as many drawn by their weights, where these differ (several islands, all temperatures)."""
    if np.ptp(np.asarray(log_weights)) < 1e-4:
        return rows
    return rows[as_scheme("systematic").ancestors(key, log_weights, num)]


def _with_memory(
    networks: Pair, log_target: LogTarget, rows: Array, key: Array, is_wanted: bool
) -> tuple[Networks, float]:
    """The networks beside states of the first run, with the weight that rows of the second one like best; and that weight."""
    if not is_wanted:
        return networks, 0.0
    learned, judged = rows[0], rows[1, :_NUM_JUDGED]
    log_f = jax.jit(jax.vmap(log_target))(learned)
    remember = functools.partial(Remembered, networks, np.asarray(learned), np.asarray(log_f))
    log_steps = scored(networks, judged, key)[2]
    share = best_share(
        remember(0.5).log_masses(np.asarray(judged)), np.asarray(log_steps.sum(1), float)
    )
    if share < _LEAST_SHARE:
        return networks, 0.0
    return remember(share), share
