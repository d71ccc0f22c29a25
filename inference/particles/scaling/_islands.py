"""Islands: particle systems side by side, resampled within and between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._show import shown
from ....ppl._types import Key
from ..._made_for import MadeFor, drops_origin, made_for
from ..._meshes import over_auto_axes
from ...inputs import checked
from ..engine import (
    ONE_DEVICE,
    Axes,
    Exchange,
    FeynmanKac,
    History,
    Placement,
    Settings,
    as_placement,
    check_even,
    check_increments,
    check_sizes,
    run_engine,
    warn_of_lost,
)
from ..population import evidence, voided, weighted_mean
from ..resampling import (
    Look,
    Policy,
    Resampling,
    Scheme,
    Twist,
    as_resampling,
    as_scheme,
    ess_below,
)

Array = jax.Array
AXIS = "lapilli_islands"
# The exchanges' key: salted, since fold_in(key, m) may equal split(key)[m], an island's own.
SALT = 0x69736C65
# Where islands stand in the fields of a run; None: the same in all.
AXES = {
    "particles": 0,
    "log_weights": 0,
    "paths": 0,
    "ess": 1,
    "is_resampled": 1,
    "ancestors": 1,
    "step_log_weights": 1,
    "increments": None,
    "islands": {"parents": 1, "is_exchanged": None, "log_weights": None, "ess": None},
}


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class IslandsResult:
    """Weighted particles of all islands and the record of their run; a pytree. Axis order: weighings, islands, particles.

    Attributes:
        particles: as in `SMCResult`, [islands, particles, ...].
        log_weights: normalised over all islands, [islands, particles], nats.
        log_evidence: log of the estimate of the normalising constant, nats; its exponential is unbiased.
        increments: log-evidence increments, one per weighing.
        island_log_weights: the islands' shares of the weight after each weighing, normalised, [weighings, islands].
        island_ess: effective number of islands after each weighing.
        is_exchanged: whether islands met before each weighing.
        ess: effective sample size inside each island after each weighing, [weighings, islands].
        is_resampled: whether an island's particles were resampled before each weighing, [weighings, islands].
        ancestors: parents as numbers island * K + particle, [weighings, islands, particles]; None with `history="none"`.
        step_log_weights: normalised over all islands, [weighings, islands, particles]; None with `history="none"`.
        paths: for a `FeynmanKac` with `history="full"`, [islands, particles, steps + 1, ...].
        failed_at: number of the first weighing after which no particle had positive weight, or one was NaN; -1 if there is none.
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    particles: PyTree
    log_weights: Array
    log_evidence: Array
    increments: Array
    island_log_weights: Array
    island_ess: Array
    is_exchanged: Array
    ess: Array
    is_resampled: Array
    ancestors: Array | None
    step_log_weights: Array | None
    paths: Any
    failed_at: Array
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def mean(self, fn: Callable[[PyTree], PyTree]) -> Any:
        """sum_mk W_mk fn(particle_mk); NaN where all particles were lost."""
        values = jax.vmap(jax.vmap(fn))(self.particles)
        return voided(weighted_mean(self.log_weights, values), self.failed_at >= 0)

    def sample(self, key: Array, num_samples: int) -> PyTree:
        """Equally weighted particles, drawn by systematic resampling of all, void where all were lost; [samples, ...]."""
        weights = self.log_weights.reshape(-1)
        index = as_scheme("systematic").ancestors(typed_key(key), weights, num_samples)
        drawn = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[index], self.particles)
        return voided(drawn, self.failed_at >= 0)


@over_auto_axes
@checked_call
def islands(
    model: FeynmanKac | ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    num_islands: int,
    num_particles: int,
    proposal: ppl.Program | Callable[..., PyTree] | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    island_resampling: str | Scheme = "systematic",
    island_policy: Policy | None = None,
    exchange: Literal["islands", "butterfly"] = "islands",
    history: History = "full",
    batch_size: int | None = None,
    twist: Twist | None = None,
    mesh: jax.sharding.Mesh | None = None,
    mesh_axes: Axes = None,
    **kwargs: PyTree,
) -> IslandsResult:
    """M particle systems of K particles, each run as by `smc`, that are themselves resampled like particles.

    Island m has the share V_m of the weight, its particles the weights W_mk inside it. A weighing by G multiplies

        V_m by sum_k W_mk G_mk,   Z by sum_m V_m sum_k W_mk G_mk.

    Before a step the islands meet where `island_policy` says so: with `exchange="islands"` whole islands are replaced by
    offspring of islands; with "butterfly" pairs of islands resample their particles together, in log2 M stages of other
    pairs, after which each island has the same share and equally weighted particles of any descent. Then each island
    resamples its own particles where `policy` says so. Devices that hold islands exchange particles only where islands meet.
    (On a mesh XLA makes both ways of meeting an exchange of all with all; a butterfly does not spare communication there.)

    Args:
        model: a `FeynmanKac` or a program.
        key: PRNG key of either kind.
        args: the program's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_islands: M.
        num_particles: K, the particles of one island.
        proposal: as in `smc`.
        resampling: scheme inside islands, as in `smc`.
        policy: when particles of an island are resampled, `ess_below(0.5)` by default.
        island_resampling: scheme for islands, or for the particles of a pair.
        island_policy: when islands are resampled, by their shares; `ess_below(0.5)` by default, `never()` for islands that do
            not meet.
        exchange: how islands meet; see above.
        history: as in `smc`.
        batch_size: particles of an island that take a step at once.
        twist: look-ahead of resampling inside islands, as in `smc`; islands are resampled without.
        mesh: devices to split the run over, with the numbers of one device, see `smc`.
        mesh_axes: axes of the mesh that split the islands, all of them by default; others split the particles of each island.

    Returns:
        An `IslandsResult`.

    Raises:
        ValueError: what `smc` refuses; a butterfly of a number of islands that is no power of two; a mesh whose devices do not
            divide the islands, or the particles of one.
        TypeError: a derivative is taken through resampling.

    Validity: E[exp(log_evidence)] = Z for unbiased schemes at both levels and all policies that look at weights only.
    Weighted averages are consistent as K grows, and as M grows with K fixed if islands are resampled. Without exchange
    (`never()`) the shares are those of `replicate`: the average over islands then has bias O(1 / (M K)) too, but its
    variance grows with time as that of K particles does. Retained paths and gradient strategies are left to `smc`.

    Example:
        >>> from lapilli import inference
        >>> import jax
        >>> half = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: -x**2, 0)
        >>> run = inference.particles.islands(half, jax.random.key(0), num_islands=20, num_particles=100)
        >>> round(float(jax.numpy.exp(run.log_evidence) * 3**0.5), 1), run.particles.shape
        (1.0, (20, 100))

    Reference: Vergé, Dubarry, Del Moral and Moulines 2015, arXiv:1306.3911; Heine, Whiteley and Cemgil 2020,
    arXiv:1812.01502 (butterfly).
    """
    origin, args = made_for(model, args, kwargs), checked(islands, model, args, kwargs)
    check_counts("islands", num_islands=num_islands)
    _check_exchange(exchange, num_islands)
    check_sizes("islands", num_particles, batch_size, mesh)
    key = typed_key(key)
    place, spmd = _inner_placement(num_islands, num_particles, mesh, mesh_axes, key)
    between = as_scheme(island_resampling)
    settings = Settings(
        num_particles, as_resampling(resampling).ancestors, policy or ess_below(0.5), history, batch_size,
        look=None if twist is None else Look(twist, None), place=place,
    )  # fmt: skip

    def run_all(key: Array, *args: PyTree) -> IslandsResult:
        exchanges = Exchange(
            AXIS, num_islands, num_particles, jax.random.fold_in(key, SALT), between.ancestors,
            island_policy or ess_below(0.5), place, exchange == "butterfly", history != "none",
        )  # fmt: skip
        meeting = dataclasses.replace(settings, islands=exchanges)

        def one(key: Array) -> dict[str, PyTree]:
            fields = run_engine("islands", model, proposal, key, args, meeting)
            return {name: fields[name] for name in AXES}

        keys = jax.random.split(key, num_islands)
        axes = dict(AXES)
        if history == "none":
            axes["islands"] = {k: v for k, v in AXES["islands"].items() if k != "parents"}
        mapped = jax.vmap(one, out_axes=axes, axis_name=AXIS, spmd_axis_name=spmd)
        return _result(mapped(keys))

    result = place.compiled(run_all)(key, *args)
    check_increments(result.increments, twist is not None)
    warn_of_lost("islands", result.failed_at)
    return dataclasses.replace(result, made_for=origin)


def _check_exchange(exchange: str, num_islands: int) -> None:
    if exchange == "butterfly" and num_islands & (num_islands - 1):
        near = 1 << num_islands.bit_length()
        raise ValueError(
            f"islands: a butterfly pairs islands by the binary digits of their numbers, and {num_islands} is no power of two. "
            f"Use {near // 2} or {near} islands, or exchange='islands'."
        )


def _inner_placement(
    num_islands: int,
    num_particles: int,
    mesh: jax.sharding.Mesh | None,
    mesh_axes: Axes,
    key: Array,
) -> tuple[Placement, tuple[str, ...] | None]:
    """The placement inside an island, and the axes over which islands are split."""
    outer = as_placement("islands", "islands", num_islands, mesh, mesh_axes, key)
    if outer.mesh is None:
        return ONE_DEVICE, None
    rest = tuple(axis for axis in outer.mesh.axis_names if axis not in outer.axes)
    check_even("islands", "particles", num_particles, outer.mesh, rest)
    return Placement(outer.mesh, rest), outer.axes


def _result(fields: dict[str, Any]) -> IslandsResult:
    of_islands = fields.pop("islands")
    shares = of_islands["log_weights"]
    fields["log_weights"] = shares[-1, :, None] + fields["log_weights"]
    if fields["ancestors"] is not None:
        fields["ancestors"] = jnp.take_along_axis(of_islands["parents"], fields["ancestors"], 2)
        fields["step_log_weights"] = shares[..., None] + fields["step_log_weights"]
    log_evidence, failed_at = evidence(fields["increments"])
    return IslandsResult(
        **fields,
        log_evidence=log_evidence,
        island_log_weights=shares,
        island_ess=of_islands["ess"],
        is_exchanged=of_islands["is_exchanged"],
        failed_at=failed_at,
    )
