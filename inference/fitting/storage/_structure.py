"""What a fit belongs to: its objective, programs and libraries, in words that a file can hold and that can be compared.

A site is known by its kind, law and shapes, and by a hash of the traced computation of its log-density, arrays that the program
closes over included. The hash is of use only between equal versions of the libraries: others may trace the same program to
other operations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ppl._compat import ClosedJaxpr, Literal
from ....ppl.jaxprs import needed
from ....ppl.language import Program
from ..._arguments import Arguments, shapes

_LIBRARIES = "lapilli", "jax", "numpyro"
_ADDRESS = re.compile(
    r"0x[0-9a-f]+"
)  # of Python functions, in the parameters of custom derivatives
_PLAIN = bool | int | float | str | None


def versions() -> dict[str, str]:
    """Library -> version."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def structure(objective: Any, params: Any, args: tuple) -> dict[str, Any]:
    """The objective's options, its programs' sites and its parameters; `args` are arguments or their shapes.

    Returns:
        "objective": option -> value. "params": name -> shapes. "model" and "guide", if there are: site -> [words, hash].
    """
    found: dict[str, Any] = {"objective": _options(objective)}
    constraints = getattr(params, "constraints", {})
    found["params"] = {
        name: ", ".join(
            [
                *shapes([*map(_array, jax.tree.leaves(params[name]))]),
                *_constraint(constraints.get(name)),
            ]
        )
        for name in params
    }
    for which in ("model", "guide"):
        program = getattr(objective, which, None)
        if isinstance(program, Program):
            found[which] = _sites(program, params, args)
    return found


def differences(was: Mapping[str, Any], now: Mapping[str, Any], *, hashes: bool) -> list[str]:
    """One line for each thing that differs; with `hashes`, also where only numbers of a site's law do."""
    lines = []
    for part in dict.fromkeys([*was, *now]):
        old, new = was.get(part, {}), now.get(part, {})
        for name in dict.fromkeys([*old, *new]):
            before, after = old.get(name, "absent"), new.get(name, "absent")
            label = f"{part}, '{name}'"
            if isinstance(before, list) and isinstance(after, list):
                (before, old_hash), (after, new_hash) = before, after
                if before == after and hashes and old_hash != new_hash:
                    what = "value" if before.startswith("deterministic") else "log-density"
                    lines.append(f"{label}: another computation of its {what}")
                    break  # the sites after it read its value
            if before != after:
                as_text = lambda x: x[0] if isinstance(x, list) else x
                lines.append(f"{label}: {as_text(before)} in the file, {as_text(after)} now")
    return lines


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _constraint(constraint: Any) -> list[str]:
    return [] if constraint is None else [type(constraint).__name__.strip("_")]


def _options(objective: Any) -> dict[str, Any]:
    options = {"name": objective.name, "direction": objective.direction}
    if dataclasses.is_dataclass(objective):
        options |= {
            f.name: value
            for f in dataclasses.fields(objective)
            if f.repr and _is_plain(value := getattr(objective, f.name))
        }
    return options


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(n, str) and isinstance(x, _PLAIN) for n, x in value.items())
    return isinstance(value, _PLAIN)


def _sites(program: Any, params: Any, args: tuple) -> dict[str, Any]:
    split = Arguments(args)
    infos = {}

    def run(params: Any, arrays: Any) -> dict[str, Any]:
        trace = program.bind(params).simulate(jax.random.key(0), *split.join(arrays))
        infos.update(trace.sites)
        return {**trace.log_probs, **trace.deterministic}

    closed, out = jax.make_jaxpr(run, return_shape=True)(params, split.arrays(args))
    numbers = jax.tree.unflatten(jax.tree.structure(out), range(len(closed.jaxpr.outvars)))
    found = {}
    for name, info in infos.items():
        batch = [f"{d or '?'}={n}" for d, n in zip(info.dims, info.batch_shape, strict=True)]
        words = f"{info.kind} {info.distribution}, batch [{', '.join(batch)}], event {list(info.event_shape)}"
        found[name] = [words, _hash(closed, numbers[name]) if name in numbers else ""]
    return found


def _hash(closed: ClosedJaxpr, number: int) -> str:
    """Of what computes an output, whatever its variables are called."""
    eqns, live = needed(closed.jaxpr.eqns, [closed.jaxpr.outvars[number]])
    names: dict[Any, int] = {}
    digest = hashlib.blake2b(digest_size=12)
    consts = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    for variable in known:
        if variable in live:
            digest.update(f"{variable.aval} {len(names)};".encode())
            names[variable] = len(names)
            if variable in consts:
                digest.update(_bytes(consts[variable]))
    for eqn in eqns:
        read = [f"{v.val!r}" if isinstance(v, Literal) else names[v] for v in eqn.invars]
        digest.update(f"{eqn.primitive} {read} {_ADDRESS.sub('', str(eqn.params))};".encode())
        for const in _inner_consts(eqn.params.values()):
            digest.update(_bytes(const))
        names |= {v: len(names) + i for i, v in enumerate(eqn.outvars)}
    return digest.hexdigest()


def _inner_consts(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner_consts(value)
        elif isinstance(value, ClosedJaxpr):
            yield from value.consts
            for eqn in value.jaxpr.eqns:
                yield from _inner_consts(eqn.params.values())


def _bytes(const: Any) -> bytes:
    if not hasattr(const, "dtype"):
        return repr(const).encode()
    if jax.dtypes.issubdtype(const.dtype, jax.dtypes.prng_key):
        const = jax.random.key_data(const)
    return np.ascontiguousarray(np.asarray(const)).tobytes()
