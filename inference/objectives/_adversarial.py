"""Adversarial training: a critic learns log p/q between draws of two programs, and a generator follows it to less divergence.

With f = log p/q at hand, D(q) = E_q[g(log p/q)] of a convex function phi(u) = g(log u) changes with q by its first variation,

    dD = int dq h(f),   h(l) = phi(u) - u phi'(u) = g(l) - g'(l),   u = exp(l):

the generator's objective is E_q[h(f)] with f held. It is not E_q[g(f)], whose gradient with f held is another one: of
KL(p || q), where g(l) = l exp(l), h is -exp(l).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._types import ModelFn
from .._game import Game, game
from ._f_divergence import GENERATORS
from ._factory import objective

type Divergence = str | Callable[[Array], Array]
CriticLoss = Literal["logistic", "exponential"]

# (f at real rows, f at generated rows) -> rows' losses, least at f = log p/q
_LOSSES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "logistic": (lambda f: jax.nn.softplus(-f), jax.nn.softplus),
    "exponential": (lambda f: -f, jnp.expm1),
}
_PROBED = np.linspace(
    -3.0, 3.0, 64, dtype=np.float32
)  # log-ratios at which the first variation must have a slope


class RowCritic(Protocol):
    """f of one row, a number: an equinox module, to be trained. Of programs that return tuples it takes their entries."""

    def __call__(self, *row: Array) -> Array: ...


@checked_call
def adversarial(
    real: ModelFn,
    generated: ModelFn,
    critic: RowCritic,
    *,
    divergence: Divergence = "reverse_kl",
    loss: CriticLoss = "logistic",
    penalty: float = 0.0,
    steps: int = 1,
    strategies: Mapping[str, object] | str | None = None,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Game:
    """A game of two players, "critic" and "generator", at whose equilibrium draws of two programs have one law.

    With p the law of `real` and q that of `generated`, the critic f is trained to log p/q, and the generator, whose density
    nobody needs to know, to less of the f-divergence D(p || q), by the derivative of D at f.

    Args:
        real: a program, or a function of data, that returns rows: an array with rows first, or a tuple of such.
        generated: a program with parameters that returns rows of the same kind; its sites are drawn, and never scored.
        critic: f of one row, an equinox module; its parameters are called "critic".
        divergence: what the generator lowers: "reverse_kl" KL(q || p), "forward_kl" KL(p || q), "jensen_shannon", "chi2",
            "hellinger", or a function g of the log-ratio, elementwise, with D = E_q[g(log p/q)], see `f_divergence`; or
            "non_saturating", the usual one, -log of the critic's probability, whose gradient is that of KL(q || p) - 2 JS.
        loss: of the critic: "logistic", the cross-entropy of two classes, or "exponential", the bound of KL(p || q) of Nguyen,
            Wainwright and Jordan; the ratio is the one optimum of both.
        penalty: weight of E_p |grad f|^2 / 2 beside the loss (R1), which keeps steps from going round; with it f is no longer the
            ratio, but still constant at the equilibrium.
        steps: of the critic for each of the generator.
        strategies: of the generator's sites, see `ppl.expectation`; of discrete ones such as have a gradient.
        check_jumps: see `ppl.expectation`.

    Returns:
        A `Game` of the parameters "critic", and all others, which are the generator's. With the logistic loss, and no penalty,
        log 2 - value / 2 of the critic's value on fresh draws bounds JS(p, q) from below, and is JS where f is the ratio.

    Raises:
        ValueError: the divergence is unknown, or leaves the generator without a gradient; the penalty is negative; the programs
            return different rows.

    Validity: the generator's gradient is that of the divergence where f is the ratio, and biased by what f lacks; nothing
        says how far it is. f is the log of no density: `simulators.ratio` has checks of one.

    Reference: Nowozin, Cseke and Tomioka 2016, arXiv:1606.00709; Nguyen, Wainwright and Jordan 2010, arXiv:0809.0853; the
    penalty, Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406.
    """
    if not penalty >= 0:
        raise ValueError(f"adversarial: penalty is {penalty}. Give a weight of at least 0.")
    descended = first_variation(divergence)
    of_real, of_generated = _LOSSES[loss]
    source = ppl.as_program(real)

    @objective(direction="min", weighing="refused")
    def critic_loss(generator: ppl.Program, _: None, *args: PyTree) -> Array:
        f = ppl.module("critic", critic)
        given = _rows(ppl.draw(ppl.detached(source), *args).retval, "real")
        made = _rows(ppl.draw(ppl.detached(generator), *args).retval, "generated")
        _check_alike(given, made)
        value = of_real(_at(f, given)).mean() + of_generated(_at(f, made)).mean()
        return value + penalty / 2 * _slope(f, given) if penalty else value

    @objective(direction="min", weighing="refused")
    def generator_loss(generator: ppl.Program, _: None, *args: PyTree) -> Array:
        f = ppl.module("critic", critic)
        return descended(_at(f, _rows(ppl.draw(generator, *args).retval, "generated"))).mean()

    players = {
        "critic": critic_loss(generated, check_jumps=check_jumps),
        "generator": generator_loss(generated, strategies=strategies, check_jumps=check_jumps),
    }
    return game(players, params={"critic": "critic"}, steps={"critic": steps})


def first_variation(divergence: Divergence) -> Callable[[Array], Array]:
    """What the generator lowers on average: h, with d E_q[g(log p/q)] = int dq h(log p/q), elementwise."""
    if divergence == "non_saturating":
        return lambda f: jax.nn.softplus(-f)
    if not callable(divergence) and divergence not in GENERATORS:
        raise ValueError(
            f"adversarial: divergence {divergence!r} is unknown. Use 'non_saturating', one of {list(GENERATORS)}, or a function "
            "of the log-ratio."
        )
    g = divergence if callable(divergence) else GENERATORS[divergence]
    slope = jax.grad(lambda l: g(l).sum())
    h = lambda l: g(l) - slope(l)
    if not jnp.any(jax.vmap(jax.grad(h))(_PROBED) != 0):
        raise ValueError(
            f"adversarial: divergence {divergence!r} changes by the same for all ratios on one side of 1, so that its first "
            "variation has no slope, and the generator no gradient. Use another, e.g. 'reverse_kl' or 'jensen_shannon'."
        )
    return h


def _rows(returned: PyTree, which: str) -> tuple[Array, ...]:
    rows = returned if isinstance(returned, tuple) else (returned,)
    sizes = [jnp.shape(x)[:1] for x in rows]
    if not rows or () in sizes or len(set(sizes)) > 1:
        raise ValueError(
            f"adversarial: '{which}' returns {[jnp.shape(x) for x in rows]}, and rows are wanted: an array whose first axis they "
            "are, or a tuple of such with as many. Return draws, e.g. x[None] for a single one."
        )
    return tuple(jnp.asarray(x) for x in rows)


def _check_alike(given: tuple[Array, ...], made: tuple[Array, ...]) -> None:
    if [x.shape[1:] for x in given] != [x.shape[1:] for x in made]:
        raise ValueError(
            f"adversarial: a row of 'real' has the shapes {[x.shape[1:] for x in given]}, and one of 'generated' "
            f"{[x.shape[1:] for x in made]}. Return rows of one kind from both."
        )


def _at(critic: RowCritic, rows: tuple[Array, ...]) -> Float[Array, " rows"]:
    return jax.vmap(lambda *row: jnp.reshape(critic(*row), ()))(*rows)


def _slope(critic: RowCritic, rows: tuple[Array, ...]) -> Array:
    """The mean square of the critic's gradient in the rows' numbers."""
    moving = [i for i, x in enumerate(rows) if jnp.issubdtype(x.dtype, jnp.floating)]

    def of(floats: list[Array], row: tuple[Array, ...]) -> Array:
        full = list(row)
        for i, x in zip(moving, floats, strict=True):
            full[i] = x
        return jnp.reshape(critic(*full), ())

    grads = jax.vmap(jax.grad(of))([rows[i] for i in moving], rows)
    return sum((jnp.square(g).reshape(len(g), -1).sum(1).mean() for g in grads), jnp.zeros(()))
