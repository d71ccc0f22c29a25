"""Particle Gibbs: a chain of conditional runs, and of moves of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import is_concrete, typed_key
from ....ppl._show import shown
from ....ppl._types import Args, Key, ModelFn
from ..._made_for import MadeFor, drops_origin, made_for
from ...inputs import checked
from ..engine import FeynmanKac, FilterOptions, smc
from ..moves import HMC, Kernel
from ..population import voided
from ..smoothing import Model, Path, conditional_smc, pick
from ._parameter_moves import ParameterMoves
from ._parameters import given, make_parameters

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class GibbsBlock:
    """Latent sites that move together, given all others.

    Args:
        sites: their names; continuous.
        kernel: moves them, in unconstrained coordinates.
        num_moves: moves for each move of the others.

    Raises:
        ValueError: no move.
    """

    sites: Sequence[str]
    kernel: Kernel = HMC()
    num_moves: int = 1

    def __post_init__(self) -> None:
        check_counts("GibbsBlock", num_moves=self.num_moves)


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class ParticleGibbsResult:
    """Draws of a chain; a pytree.

    Attributes:
        choices: latent site -> values, [samples, ...]; of a `FeynmanKac` paths, [samples, steps + 1, ...].
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    choices: Any
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)


@checked_call
def particle_gibbs(
    model: Model,
    key: Key,
    *args: PyTree,
    num_samples: int,
    num_particles: int,
    num_warmup: int = 0,
    init: PyTree = None,
    parameters: Sequence[str] | GibbsBlock = (),
    path: Path = "genealogy",
    filter: FilterOptions = FilterOptions(),  # noqa: B008, frozen
    **kwargs: PyTree,
) -> ParticleGibbsResult:
    """A chain of `conditional_smc` moves, and of moves of parameters.

    Without `parameters` every latent site is part of a particle. A site that all steps share is better named a parameter: the
    chain then alternates between states given parameters, by `conditional_smc`, and parameters given states, by a kernel.

    Args:
        model: a `FeynmanKac` or a program.
        key: PRNG key of either kind.
        args: the program's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_samples: states to return.
        num_particles: K of each move.
        num_warmup: moves before the first returned state. The kernel of the parameters adapts in them only.
        init: the first state, values of all latent sites; by default a path drawn by an unconditional run.
        parameters: latent sites, continuous, drawn before the scans; or a `GibbsBlock`, which says how they move.
        path: how a path is made, see `conditional_smc`.
        filter: how particles go through the model, see `conditional_smc`.

    Returns:
        The draws after warmup.

    Raises:
        ValueError: as for `conditional_smc`; a number of samples or moves below 1; a parameter that is missing, discrete, in or
            after a scan; an `init` of density 0 (under jit the draws are NaN then).

    Validity: the chain after warmup leaves the posterior of all latent sites invariant for every K >= 2.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def walk(ys):
        ...     a = ppl.sample("a", dist.Uniform(-1.0, 1.0))
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(a * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> result = inference.particles.particle_gibbs(
        ...     walk, jax.random.key(0), jnp.ones(3), parameters=["a"], path="ancestor", num_samples=20, num_particles=5
        ... )
        >>> result.choices["a"].shape, result.choices["x"].shape
        ((20,), (20, 3))

    Reference: Andrieu, Doucet and Holenstein 2010, section 2.4.3; Lindsten, Jordan and Schön 2014, arXiv:1401.0604.
    """
    origin = made_for(model, args, kwargs)
    args = checked(particle_gibbs, model, args, kwargs)
    check_counts("particle_gibbs", num_samples=num_samples)
    check_counts("particle_gibbs", 0, num_warmup=num_warmup)
    init_key, tune_key, chain_key = jax.random.split(typed_key(key), 3)
    options = {"num_particles": num_particles, "path": path, **vars(filter)}
    block = parameters if isinstance(parameters, GibbsBlock) else GibbsBlock(tuple(parameters))
    moves = _moves_of(model, args, block)
    state = _first(model, init_key, args, options) if init is None else init
    state = _as_drawn(model, jax.tree.map(jnp.asarray, state), init_key, args)
    is_wrong = jnp.asarray(False)
    if init is not None and not isinstance(model, FeynmanKac):
        is_wrong = _check_start(model, state, args)

    def of_states(state: PyTree, inputs: tuple[Array, Array]) -> PyTree:
        new = conditional_smc(model, inputs[1], state, *args, **options)
        return new, new

    move, start = of_states, state
    if moves is not None:
        move = _alternate(moves, num_warmup, options)
        states = {name: x for name, x in state.items() if name not in block.sites}
        start = states, moves.start(tune_key, state)
    total = num_warmup + num_samples
    inputs = jnp.arange(total), jax.random.split(chain_key, total)
    _, draws = jax.lax.scan(move, start, inputs)
    kept = jax.tree.map(lambda x: x[num_warmup:], draws)
    return ParticleGibbsResult(voided(kept, is_wrong), origin)


def _as_drawn(model: Model, state: PyTree, key: Array, args: Args) -> PyTree:
    """The state with real numbers where the model draws them: whole ones among them are values, too."""

    def draw(key: Array) -> PyTree:
        if isinstance(model, FeynmanKac):
            return model.init(key)
        return dict(ppl.as_program(model).simulate(key, *args).choices)

    def one(x: Array, like: jax.ShapeDtypeStruct) -> Array:
        is_whole = jnp.issubdtype(x.dtype, jnp.integer) and jnp.issubdtype(like.dtype, jnp.floating)
        return x.astype(like.dtype) if is_whole else x

    drawn = jax.eval_shape(draw, key)
    if isinstance(model, FeynmanKac):
        is_same = jax.tree.structure(drawn) == jax.tree.structure(state)
        return jax.tree.map(one, state, drawn) if is_same else state
    return {name: one(x, drawn[name]) if name in drawn else x for name, x in state.items()}


def _check_start(model: ModelFn, state: PyTree, args: Args) -> Array:
    """Whether a chain starts where the density is zero, which it might never leave: the prior of a retained site is not weighed.

    Raises:
        ValueError: it is known to.
    """
    log_density = ppl.as_program(model).log_density(state, *args)
    is_wrong = ~jnp.isfinite(log_density)
    if is_concrete(is_wrong) and bool(is_wrong):
        raise ValueError(
            f"particle_gibbs: init has log-density {float(log_density)} under the program, and the chain might stay there. "
            "Start at values of positive density, or leave init out."
        )
    return is_wrong


def _alternate(
    moves: ParameterMoves, num_warmup: int, options: dict[str, Any]
) -> Callable[[PyTree, PyTree], PyTree]:
    """States given parameters, then parameters given states."""
    proposal = options.get("proposal")
    guide = None if proposal is None else ppl.as_program(proposal)

    def move(carry: PyTree, inputs: tuple[Array, Array]) -> PyTree:
        (states, tuned), (number, key) = carry, inputs
        state_key, parameter_key = jax.random.split(key)
        program, fixed = given(moves.program, guide, moves.space.values(tuned.point))
        states = conditional_smc(
            program, state_key, states, *moves.args, **{**options, "proposal": fixed}
        )
        gain = jnp.where(number < num_warmup, (number + 10.0) ** -0.6, 0.0)
        tuned = moves(parameter_key, tuned, states, gain)
        return (states, tuned), {**states, **moves.space.values(tuned.point)}

    return move


def _moves_of(
    model: Model,
    args: Args,
    block: GibbsBlock,
) -> ParameterMoves | None:
    """How the parameters move, None without any."""
    if not block.sites:
        return None
    if isinstance(model, FeynmanKac):
        raise ValueError(
            "particle_gibbs: a FeynmanKac has no sites, so no parameters. Write the model as a program."
        )
    program = ppl.as_program(model)
    space = make_parameters("particle_gibbs", program, args, block.sites)
    return ParameterMoves(program, args, space, block.kernel, block.num_moves)


def _first(model: Model, key: Array, args: Args, options: dict[str, Any]) -> Any:
    """A path of an unconditional run."""
    run_key, choice_key = jax.random.split(key)
    keep = {name: x for name, x in options.items() if name not in ("policy", "path")}
    result = smc(model, run_key, *args, **keep)
    if is_concrete(result.failed_at) and int(result.failed_at) >= 0:
        raise RuntimeError(
            f"particle_gibbs: the run that gives the first path lost all its particles at weighing {int(result.failed_at)}. "
            "Give a path by init=, or raise num_particles, or give a proposal that looks at the data."
        )
    return voided(pick(choice_key, model, result), result.failed_at >= 0)
