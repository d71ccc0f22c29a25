"""Options that must be given: a call without them says which, and how."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from lapilli import inference
from lapilli.ppl._calls import checked_call
from lapilli.ppl._checks import check_counts


def test_a_call_without_a_needed_option_names_it():
    with pytest.raises(
        TypeError,
        match=r"iwelbo: num_particles must be given, by name\. Call iwelbo\(\.\.\., num_particles=100\)",
    ):
        inference.iwelbo(None, None)
    with pytest.raises(TypeError, match=r"Fit\.predict: num_samples must be given"):
        inference.Fit.predict(None, jax.random.key(0))
    with pytest.raises(TypeError, match="pmmh: parameters, num_samples must be given"):
        inference.particles.pmmh(None, jax.random.key(0), num_particles=10)


def test_what_is_given_passes_and_the_signature_stays():
    @checked_call
    def fn(a, *, b, c=3):
        """Text."""
        return a, b, c

    assert fn(1, b=2) == (1, 2, 3) and fn.__doc__ == "Text."
    assert str(inspect.signature(fn)) == "(a, *, b, c=3)"
    with pytest.raises(
        TypeError, match=r"there is no argument 'd'\. Choose from \['a', 'b', 'c'\]"
    ):
        fn(1, b=2, d=4)
    with pytest.raises(TypeError, match="missing a required argument: 'a'. Call it as .*fn"):
        fn(b=2)


class Box:
    """A class of a user's."""


@checked_call
def called(
    key: Any,
    array: Float[Array, " n"] | None = None,
    *,
    count: int = 1,
    size: float | Literal["auto"] = 1.0,
    is_on: bool = True,
    side: Literal["lower", "upper"] = "lower",
    names: Sequence[str] = (),
    fn: Callable[[float], float] | None = None,
    table: Mapping[str, int] | None = None,
    policy: inference.particles.resampling.Scheme | None = None,
    box: Box | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    return kwargs


KEY = jax.random.key(0)
RIGHT = [
    {"array": np.zeros(2)}, {"array": [1.0]}, {"count": np.int64(3)}, {"size": 2}, {"size": np.float32(2)},
    {"size": jnp.array(2.0)},
    {"size": "auto"}, {"is_on": np.bool_(True)}, {"side": "upper"}, {"names": ["a"]}, {"names": {"a"}}, {"fn": len},
    {"table": {}}, {"box": 3}, {"other": 3},
]  # fmt: skip
WRONG = [
    ({"count": 1.5}, r"count must be an integer, got 1\.5"),
    ({"count": True}, "count must be an integer, got True"),
    ({"count": 10**10}, "count must be an integer, got 10000000000"),
    ({"size": "big"}, "size must be a number or 'auto', got 'big'"),
    ({"size": float("nan")}, "size must be a number or 'auto', got nan"),
    ({"size": np.zeros(3)}, r"got an array of float64, shape \(3,\)"),
    ({"is_on": 1}, "is_on must be True or False, got 1"),
    ({"side": "lowr"}, "side must be 'lower' or 'upper', got 'lowr'. Did you mean 'lower'?"),
    ({"names": "ab"}, "names must be a list of names, got 'ab'"),
    ({"names": [1]}, r"names must be a list of names, got \[1\] \(list\)"),
    ({"fn": 3}, "fn must be a function or None, got 3"),
    ({"table": [1]}, "table must be a mapping, e.g. a dict or None"),
    ({"policy": 3}, "policy must be of type Scheme or None, got 3"),
]


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_arguments_of_their_kind_pass(options):
    assert set(called(KEY, **options)) <= {"other"}


@pytest.mark.parametrize("options, message", WRONG, ids=[str(o) for o, _ in WRONG])
def test_arguments_of_another_kind_are_named(options, message):
    with pytest.raises(
        ValueError, match=f"called: {message}" if " must be" in message else message
    ):
        called(KEY, **options)


def test_a_key_and_a_count_are_what_they_are():
    with pytest.raises(ValueError, match="key must be one PRNG key, jax.random.key"):
        called(3)
    with pytest.raises(ValueError, match=r"n must be an integer >= 1 and < 2\^31, got 4294967296"):
        check_counts("fn", n=2**32)
    assert called(jax.random.PRNGKey(0)) == {}
    assert jax.jit(lambda size: called(KEY, size=size, other=size)["other"])(2.0) == 2.0


def test_every_needed_option_is_asked_for():
    """Functions of the faces with a keyword that has no default."""
    faces = [inference, inference.fitting, inference.particles, inference.local]
    functions = {f for face in faces for f in vars(face).values() if inspect.isfunction(f)}
    functions |= {f for f in vars(inference.Fit).values() if inspect.isfunction(f)}
    needing = [f for f in functions if _needs(f)]
    assert len(needing) >= 25
    for function in needing:
        with pytest.raises(TypeError, match="must be given, by name"):
            function()


def _needs(function):
    kinds = inspect.signature(function).parameters.values()
    return any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in kinds)
