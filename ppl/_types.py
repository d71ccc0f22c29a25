"""The types that everything is made of, by the names that signatures use.

A reader and a type checker see through them; at run time they are aliases that say nothing of a value, so that no call is refused
for them. Arrays are `Array` with their axes (`Float[Array, "particles"]`), trees of them `PyTree`, both of jaxtyping; a program
is a `Program` where it has to be one. Every layer imports them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

# One typed PRNG key, jax.random.key(seed); where a docstring says so, an array of them.
type Key = PRNGKeyArray
# Anything that NumPyro takes for a model: a `Program`, or a function with statements.
type ModelFn = Callable[..., PyTree]
# Positional arguments of a program.
type Args = tuple[PyTree, ...]
# Parameters by name, each a tree of unconstrained arrays; `ppl.Params` is one that knows its constraints.
type ParamMap = Mapping[str, PyTree]
# Values of latent sites by name.
type Choices = Mapping[str, Array]
# Log-weights of particles or draws, in nats.
type LogWeights = Float[Array, " particles"]
# The carry of a scan and the slice of a step -> the carry afterwards and what is stacked.
type StepFn = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
# NumPyro's message of one statement, which handlers change on its way.
type Message = dict[str, Any]
