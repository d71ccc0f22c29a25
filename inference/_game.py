"""Games: several objectives, each trained in parameters of its own, by one run of `fit`.

Input: named objectives over one set of parameters, and who owns which. A step of `fit` is a step of one player, the others held
with their optimisers' states (alternating); or one of all at the same parameters (simultaneous). Output: as of any objective.

Invariants: a parameter moves by the gradient of its owner's objective and of no other; where a player is not in turn neither its
parameters nor what its optimiser remembers change; which player is in turn is a matter of the steps taken alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .. import ppl
from ..ppl._calls import checked_call
from ..ppl._checks import check_counts
from ..ppl._show import shown
from ..ppl._types import Key
from ._abstract_objective import AbstractObjective, Array, CompositeObjective, Direction

if TYPE_CHECKING:
    from .fitting import Fit

Order = Literal["alternating", "simultaneous"]


class PlayerTurn(NamedTuple):
    """When a player moves: at steps t with `first <= t % period < end`; and +1 if its value is minimised, -1 if maximised."""

    player: str
    first: int
    end: int
    period: int
    sign: float


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Game(CompositeObjective):
    """Several objectives, each with parameters of its own. Made by `game` or `adversarial`.

    Attributes:
        players: name -> objective, in the order of their turns.
        owns: player -> patterns on names of parameters; one player may have none, and owns the rest.
        steps: player -> steps in a turn.
        order: "alternating" or "simultaneous".
    """

    players: Mapping[str, AbstractObjective]
    owns: Mapping[str, tuple[str, ...]]
    steps: Mapping[str, int]
    order: Order

    direction: Direction = dataclasses.field(default="min", init=False, repr=False)

    def _facts(self) -> dict[str, PyTree]:
        rest = lambda name: ", ".join(self.owns[name]) if name in self.owns else "the rest"
        turn = lambda name: "" if self.order == "simultaneous" else f", {self.steps[name]} a turn"
        return {
            "order": self.order,
            "players": {
                name: f"{part.name}, {part.direction}imised in {rest(name)}{turn(name)}"
                for name, part in self.players.items()
            },
        }

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The players' names."""
        return f"game of {', '.join(self.players)}"

    @property
    def parts(self) -> Sequence[AbstractObjective]:
        """The players' objectives."""
        return tuple(self.players.values())

    def init(self, key: Key, *args: PyTree) -> ppl.Params:
        """Initial parameters of all players; where two players have one, those of the first."""
        params = super().init(key, *args)
        self.owners(params)
        return params

    def owners(self, params: Mapping[str, PyTree]) -> dict[str, str]:
        """Parameter -> the player that it moves for.

        Args:
            params: as `init` gives them, of which only the names are read.

        Raises:
            ValueError: a parameter has no owner or several; a player or a pattern has no parameter.
        """
        found = {
            name: [p for p, patterns in self.owns.items() for x in patterns if fnmatchcase(name, x)]
            for name in params
        }
        rest = [name for name in self.players if name not in self.owns]
        owners = {name: (players or rest)[:1] for name, players in found.items()}
        problems = [f"parameter '{n}' belongs to {p}" for n, p in found.items() if len(p) > 1]
        problems += [f"parameter '{n}' belongs to nobody" for n, p in owners.items() if not p]
        problems += [
            f"player '{p}' has no parameter"
            for p in self.players
            if not any(p in names for names in owners.values())
        ]
        problems += [
            f"pattern '{x}' of '{p}' matches none"
            for p, patterns in self.owns.items()
            for x in patterns
            if not any(fnmatchcase(name, x) for name in params)
        ]
        if problems:
            raise ValueError(
                f"{self.name}: {'; '.join(problems)}. Parameters: {list(params)}. Give each to one player, params={{player: "
                "pattern}; one player may be left out there and owns the rest; what is to stay is 'frozen' in fit's optimizer."
            )
        return {name: players[0] for name, players in owners.items()}

    def turns(self, params: Mapping[str, PyTree]) -> dict[str, PlayerTurn]:
        """Parameter -> when it moves.

        Args:
            params: as `init` gives them, of which only the names are read.
        """
        ends = np.cumsum([self.steps[name] for name in self.players]).tolist()
        of = {}
        for (name, part), end in zip(self.players.items(), ends, strict=True):
            when = (end - self.steps[name], end, ends[-1])
            when = (0, 1, 1) if self.order == "simultaneous" else when
            of[name] = PlayerTurn(name, *when, _sign(part))
        return {name: of[player] for name, player in self.owners(params).items()}

    def init_state(
        self, params: ppl.Params, key: Key, *args: PyTree
    ) -> tuple[Array, tuple[PyTree, ...]]:
        """The number of steps taken, none, and the states of the players."""
        return jnp.int32(0), super().init_state(params, key, *args)

    def step(
        self, params: ppl.Params, state: tuple[Array, tuple[PyTree, ...]], key: Key, *args: PyTree
    ) -> tuple[Array, PyTree, tuple[Array, tuple[PyTree, ...]]]:
        """The value of the player in turn, of a simultaneous game of the first; the gradient of what is minimised; next state."""
        count, states = state
        if self.order == "simultaneous":
            value, grads, states = self._together(params, states, key, args)
            return value, grads, (count + 1, states)
        owners = self.owners(params)

        def of(number: int, name: str, part: AbstractObjective):
            def move(states: tuple[PyTree, ...]) -> tuple[Array, PyTree, tuple[PyTree, ...]]:
                value, grads, new = part.step(params, states[number], key, *args)
                own = self._field({name: grads}, owners)
                after = tuple(new if i == number else s for i, s in enumerate(states))
                return value.astype(jnp.result_type(float)), own, after

            return move

        moves = [of(i, name, part) for i, (name, part) in enumerate(self.players.items())]
        order = self._order
        player = jnp.asarray(order)[count % len(order)]
        value, grads, states = jax.lax.switch(player, moves, states)
        return value, grads, (count + 1, states)

    def _together(
        self, params: ppl.Params, states: tuple[PyTree, ...], key: Key, args: tuple
    ) -> tuple[Array, PyTree, tuple[PyTree, ...]]:
        """The first player's value, and of each parameter the gradient of what its owner minimises."""
        steps = self._steps(params, states, key, args)
        grads = {name: own for name, (_, own, _) in zip(self.players, steps, strict=True)}
        field = self._field(grads, self.owners(params))
        return steps[0][0], field, tuple(new for _, _, new in steps)

    def _field(self, grads: Mapping[str, PyTree], owners: Mapping[str, str]) -> PyTree:
        """Of each parameter the gradient of what its owner minimises; zeros where only others' gradients are given."""
        given = next(iter(grads.values()))
        field: PyTree = jax.tree.map(lambda g: g, given)  # of its own class
        for name, player in owners.items():
            if player in grads:
                sign = _sign(self.players[player])
                field[name] = jax.tree.map(lambda g, sign=sign: sign * g, grads[player][name])
            else:
                field[name] = jax.tree.map(jnp.zeros_like, given[name])
        return field

    @property
    def _order(self) -> np.ndarray:
        """The number of the player at each step of a round."""
        return np.repeat(np.arange(len(self.players)), [self.steps[name] for name in self.players])

    def value_and_grad(
        self, params: ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, ppl.Params]:
        """The first player's value; and the game's field, of each parameter the gradient of what its owner minimises.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
            kwargs: those by keyword.
        """
        args = ppl.language.joined(args, kwargs)
        _, states = self._first_state(params, key, args)
        return self._together(params, states, key, args)[:2]

    def values(self, fit: Fit) -> dict[str, np.ndarray]:
        """The values of each player at its own steps: player -> [its steps], or [its steps, seeds].

        Args:
            fit: what `fit` returned for this game.

        Raises:
            ValueError: steps were skipped, so that turns are not known; the game is simultaneous, of which the first player's
                values alone are kept.
        """
        if self.order == "simultaneous" or np.sum(fit.num_skipped):
            what = (
                "the players move at once" if self.order == "simultaneous" else "steps were skipped"
            )
            raise ValueError(
                f"{self.name}: {what}, so that fit.history cannot be told apart by player. Read it as it is, or compute "
                "players[name].value(fit.params, key, *args) in a callback."
            )
        values = fit.history["value"]
        whose = np.resize(self._order, len(values))
        return {name: values[whose == number] for number, name in enumerate(self.players)}

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> Game:
        """This game for minibatches: each of its players must have each of the plates."""
        return dataclasses.replace(
            self, players={n: part.with_plate_sizes(sizes) for n, part in self.players.items()}
        )

    def site_report(self, params: PyTree, key: Key, *args: PyTree) -> dict[str, dict[str, Array]]:
        """The reports of all players, with the player's name in front of each site."""
        return {
            f"player {name}: {site}": row
            for name, part in self.players.items()
            for site, row in part.site_report(params, key, *args).items()
        }


@checked_call
def game(
    players: Mapping[str, AbstractObjective],
    *,
    params: Mapping[str, str | Sequence[str]],
    steps: Mapping[str, int] | None = None,
    order: Order = "alternating",
) -> Game:
    """Several objectives that `fit` trains together, each in parameters of its own: what one player learns the others meet.

    In turn, player i takes `steps[i]` steps on its own objective L_i in its own parameters, while those of the others, and what
    their optimisers remember, are held. Each has an optimiser of its own where `fit` is given a dict, player -> transformation or
    "frozen" (or pattern on names of parameters, as ever); the transformation counts the player's own steps.

    Args:
        players: name -> objective; the order is that of their turns. Parameters of one name are one parameter.
        params: player -> fnmatch pattern, or several, on names of parameters. One player may be left out, and owns the rest.
        steps: player -> steps in a turn; default 1.
        order: "alternating", or "simultaneous": all players step at the same parameters, once each.

    Returns:
        A `Game`, for `fit(game, optimizer, args, num_steps=...)`, of which `num_steps` counts the steps of all players.
        `Game.values(fit)` has the values by player.

    Raises:
        ValueError: fewer than two players; names of players that there are not; numbers are impossible; (when it is fitted) a
            parameter belongs to nobody or to two.

    Validity: a fixed point is a point where no player gains to first order, and no maximum of anything: whether steps lead there
        is a matter of the game, order and rates. In x y (one player minimises in x, the other maximises in y) simultaneous steps
        of gradient descent move away from it at every rate, and alternating ones go round.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from lapilli import inference, ppl
        >>> def gap(model, guide):
        ...     x, y = ppl.param("x", 1.0), ppl.param("y", 0.0)
        ...     return x**2 / 2 + 2 * x * y - y**2 / 2
        >>> lower = inference.objective(gap, direction="min")(lambda: None)
        >>> upper = inference.objective(gap, direction="max")(lambda: None)
        >>> found = inference.game({"lower": lower, "upper": upper}, params={"lower": "x", "upper": "y"})
        >>> fit = inference.fit(found, optax.sgd(0.1), num_steps=400, progress=False)
        >>> bool(abs(fit.params["x"]) < 1e-3)
        True

    Reference: Goodfellow et al. 2014, arXiv:1406.2661; orders of steps, Gidel et al. 2018, arXiv:1802.10551.
    """
    if len(players) < 2:
        raise ValueError(
            f"game: the players are {list(players)}, and a game has at least two. Pass a single objective to fit itself."
        )
    steps = {} if steps is None else steps
    for what, given in (("params", params), ("steps", steps)):
        if unknown := [name for name in given if name not in players]:
            raise ValueError(
                f"game: {what} names {unknown}, and the players are {list(players)}. Name some of these."
            )
    check_counts("game", **{f"steps[{name!r}]": n for name, n in steps.items()})
    left = [name for name in players if name not in params]
    if len(left) > 1:
        raise ValueError(
            f"game: players {left} have no params, and one alone can own the rest. Give patterns to the others."
        )
    if order == "simultaneous" and any(n != 1 for n in steps.values()):
        raise ValueError(
            f"game: steps are {dict(steps)}, and players that move at once take one step each. Use order='alternating'."
        )
    owns = {n: (p,) if isinstance(p, str) else tuple(p) for n, p in params.items()}
    return Game(dict(players), owns, {name: steps.get(name, 1) for name in players}, order)


def _sign(part: AbstractObjective) -> float:
    return 1.0 if part.direction == "min" else -1.0
