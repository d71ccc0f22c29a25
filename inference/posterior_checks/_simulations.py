"""Truths, data and posterior draws of many simulations, on which every check stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike, typed_key
from ...ppl._data import as_numbers
from ...ppl._show import shown
from ...ppl._types import Choices, Key
from .._simulated import draws_of, refuse_unlike_draws
from ..inputs import checked

Array = jax.Array


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Simulations:
    """Parameters and data drawn from a model together, and posterior draws given the data. Made by `simulate`, or from arrays.

    Attributes:
        truths: latent site -> [S, ...], what the data were drawn with.
        observed: observed site -> [S, ...].
        draws: latent site -> [S, L, ...], from the posterior that is checked.

    Raises:
        ValueError: sites of truths and draws differ, shapes that do not belong together, fewer than 20 simulations, or values
            that are not finite.

    Validity: that draws are as if independent is believed; thin those of a Markov chain.

    Example:
        >>> import numpy as np
        >>> from lapilli.inference.posterior_checks import Simulations
        >>> m = np.zeros(20)
        >>> Simulations({"m": m}, {"x": m}, {"m": np.zeros((20, 9))}).num_draws
        9
    """

    truths: Mapping[str, ArrayLike]
    observed: Mapping[str, ArrayLike]
    draws: Mapping[str, ArrayLike]

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_simulations(self) -> int:
        """S."""
        return len(np.asarray(next(iter(self.truths.values()))))

    @property
    def num_draws(self) -> int:
        """L, of each simulation."""
        return np.shape(next(iter(self.draws.values())))[1]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the latent coordinates: "m" of a scalar, "m[0, 1]" of an element."""
        return names_of({name: np.shape(x)[1:] for name, x in self.truths.items()})

    @property
    def data_coordinates(self) -> tuple[str, ...]:
        """Names of the observed coordinates."""
        return names_of({name: np.shape(x)[1:] for name, x in self.observed.items()})

    @property
    def truth_matrix(self) -> Float[np.ndarray, "simulations coordinates"]:
        """Truths side by side."""
        return flat(self.truths, 1)

    @property
    def data_matrix(self) -> Float[np.ndarray, "simulations data"]:
        """Data side by side."""
        return flat(self.observed, 1)

    @property
    def draw_matrix(self) -> Float[np.ndarray, "simulations draws coordinates"]:
        """Posterior draws side by side."""
        return flat({name: self.draws[name] for name in self.truths}, 2)

    def _facts(self) -> dict[str, PyTree]:
        shapes = lambda values: {name: np.shape(x)[1:] for name, x in values.items()}
        return {
            "simulations": self.num_simulations,
            "num_draws": f"{self.num_draws} for each",
            "latent": shapes(self.truths),
            "observed": shapes(self.observed),
        }


@checked_call
def simulate(
    model: ppl.Program | Callable[..., PyTree],
    posterior_fn: Callable[[Array, Mapping[str, Array]], Mapping[str, PyTree]],
    key: Key | None,
    *args: PyTree,
    num_simulations: int = 400,
    batch_size: int | None = None,
    loop: Literal["compiled", "python"] = "compiled",
    **kwargs: PyTree,
) -> Simulations:
    """Draw parameters and data from the model, and infer, many times.

    Args:
        model: the program.
        posterior_fn: `(key, observed) -> draws`, as `inference.diagnostics.calibrate` has it: observed sites by name as the model
            drew them; latent sites by name, [L, ...] (a subset will do).
        key: PRNG key of either kind.
        args: the model's arguments; observations in them give shapes only.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_simulations: S.
        batch_size: simulations that run at once in a compiled loop; None for all.
        loop: "compiled" traces `posterior_fn` once (a guide, an exact posterior); "python" calls it with numbers, one simulation
            after the other (`fit`, `smc`, `numpyro.infer.MCMC`).

    Returns:
        `Simulations`.

    Raises:
        ValueError: fewer than 20 simulations, an unknown loop, draws of unknown sites or none, a model with a factor or a scaled
            log-prob, draws of other sites or in other numbers for one simulation than for another, and what `Simulations`
            refuses.
        TypeError: `posterior_fn` returns no mapping.

    Validity: draws of a Markov chain must be thinned until they are nearly independent.

    Reference: Talts et al. 2018, arXiv:1804.06788.
    """
    args = checked(simulate, model, args, kwargs)
    program = ppl.as_program(model)
    check_counts("simulate", 20, num_simulations=num_simulations)
    check_counts("simulate", batch_size=1 if batch_size is None else batch_size)

    def forward(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        trace = program.predict_trace(key, {}, *args)
        refuse_unlike_draws("simulate", program, trace.sites)
        return dict(trace.choices), dict(trace.observed)

    def infer(key: Array, choices: Choices, observed: Mapping[str, Any]) -> PyTree:
        draws = draws_of("simulate", posterior_fn(key, observed))
        _check_names(draws, choices)
        return {name: jnp.asarray(x) for name, x in draws.items()}

    model_key, posterior_key = jax.random.split(typed_key(key))
    keys = jax.random.split(posterior_key, num_simulations)
    truths, observed = jax.jit(jax.vmap(forward))(jax.random.split(model_key, num_simulations))
    if loop == "compiled":
        each = lambda inputs: infer(*inputs)
        run = jax.jit(lambda *all: jax.lax.map(each, all, batch_size=batch_size or len(keys)))
        draws = run(keys, truths, observed)
    else:
        at = lambda values, i: {name: x[i] for name, x in values.items()}
        rows = [infer(k, at(truths, i), at(observed, i)) for i, k in enumerate(keys)]
        draws = _stacked(rows)
    numbers = lambda values: {name: np.asarray(x) for name, x in values.items()}
    kept = {name: np.asarray(x) for name, x in truths.items() if name in draws}
    return Simulations(kept, numbers(observed), numbers(draws))


def _stacked(rows: list[dict[str, Array]]) -> dict[str, np.ndarray]:
    """Draws of all simulations, [S, L, ...].

    Raises:
        ValueError: they differ in their sites or shapes.
    """
    shapes = [{name: np.shape(x) for name, x in row.items()} for row in rows]
    if other := [i for i, shape in enumerate(shapes) if shape != shapes[0]]:
        raise ValueError(
            f"simulate: posterior_fn returned draws of the shapes {shapes[0]} for the first simulation, and {shapes[other[0]]} "
            f"for number {other[0]}. Return as many draws of the same sites each time, e.g. the first L of a thinned chain."
        )
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def flat(values: Mapping[str, PyTree], num_axes: int) -> np.ndarray:
    """Values side by side behind their first axes, as doubles."""
    parts = [as_numbers(f"Site '{name}'", x) for name, x in values.items()]
    return np.concatenate([x.reshape(*x.shape[:num_axes], -1) for x in parts], axis=-1)


def names_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Names of coordinates in the order of `flat`."""
    return tuple(
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name, shape in shapes.items()
        for index in np.ndindex(*shape)
    )


def generator(key: Key | None) -> np.random.Generator:
    """NumPy's generator of a JAX key: ranks, references and permutations are drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(typed_key(key))).ravel().tolist())


def _check_names(draws: Mapping[str, object], choices: Choices) -> None:
    unknown = sorted(set(draws) - set(choices))
    if unknown or not draws:
        raise ValueError(
            f"simulate: posterior_fn returned sites {unknown or 'none'}, and the latent sites of the model are "
            f"{sorted(choices)}. Let it return a dict from these names to draws, [draws, *site shape]."
        )


def _check(simulations: Simulations) -> None:
    truths, draws, observed = simulations.truths, simulations.draws, simulations.observed
    if not truths or not observed or set(truths) != set(draws):
        raise ValueError(
            f"Simulations: truths of {sorted(truths)}, draws of {sorted(draws)}, observed {sorted(observed)}. Give at least "
            "one latent and one observed site, and draws of each latent one."
        )
    shapes = {name: (np.shape(truths[name]), np.shape(draws[name])) for name in truths}
    sizes = {np.shape(x)[:1] for values in (truths, draws, observed) for x in values.values()}
    lengths = {shape[1:2] for _, shape in shapes.values()}
    fits = all(t[1:] == d[2:] for t, d in shapes.values())
    if (
        len(sizes) > 1
        or () in sizes
        or len(lengths) > 1
        or () in lengths
        or not fits
        or (0,) in lengths
    ):
        raise ValueError(
            f"Simulations: shapes of truths and draws are {shapes}, of observed sites "
            f"{ {name: np.shape(x) for name, x in observed.items()} }. Give truths [S, ...], draws [S, L, ...] with one S and "
            "one L >= 1 for all, observed [S, ...]."
        )  # fmt: skip
    if next(iter(sizes)) < (20,):
        raise ValueError(
            f"Simulations: {next(iter(sizes))[0]} of them, and no check can tell anything. Give at least 20."
        )
    for kind, values in (("truths", truths), ("draws", draws), ("observed", observed)):
        for name, x in values.items():
            given = as_numbers(f"Simulations: {kind} of site '{name}'", x)
            if not np.isfinite(given).all():
                raise ValueError(
                    f"Simulations: {kind} of site '{name}' are not finite in "
                    f"{int((~np.isfinite(given.reshape(len(given), -1))).any(1).sum())} simulations, so "
                    "they have no rank. Mend posterior_fn or the model where it fails."
                )
