"""Programs without some of their normal sites, which are integrated out exactly: part of `ppl.eliminate`.

Input: a program p(z, v), z the named sites, normal with means affine in each other. Output: the program over v with

    log p(v) = log integral p(z, v) dz = sum_i log p(v_i | v_<i),

whose statements have these laws (`gaussian/`): Kalman's filter. What is known of z afterwards is found without a backward pass:
the derivatives of log integral p(z, v) exp(b z) dz in b are the moments of z given v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._compat import handler_stack, typed_key
from ..gaussian import Emit, integrate
from ..language import ChoiceMismatch, Program
from ..traces import Params, Recorder, Trace, refuse_inside_engine
from ._outside import check_outside, check_stack, declared, is_predicting
from ._stochastic import as_arrays

Array = jax.Array
PLAIN, TILTED, CENTRED = Emit(), Emit(has_tilts=True), Emit(has_tilts=True, is_centred=True)
KINDS = (" shift", " linear", " square")


class Integrated(Program):
    """A program over the choices that are left, made of statements given those before. Part of what `ppl.eliminate` makes.

    Args:
        program: the program with its sites.
        sites: those that are integrated out.
        label: its name.
        emit: how its statements are made.
    """

    def __init__(
        self, program: Program, sites: tuple[str, ...], label: str, emit: Emit = PLAIN
    ) -> None:
        super().__init__(self._statements)
        self.__name__ = self.label = label
        self.program, self.sites, self.emit = program, sites, emit

    def _statements(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(h, Recorder) for h in handler_stack()):
            check_stack(self.label)
        else:
            check_outside(self.label)
        if is_predicting():
            return self.program(*args, **kwargs)
        params = declared(self.program, args, kwargs)[0]
        return integrate(self.label, self.program, self.sites, params, args, kwargs, self.emit)

    def init(self, key: Any, *args: Any, **kwargs: Any) -> Params:
        return self.program.init(key, *args, **kwargs)

    def _traced(self, choices: Mapping[str, Any], *args: Any, **kwargs: Any) -> Trace:
        given = sorted(set(choices) & set(self.sites))
        if given:
            raise ChoiceMismatch(
                f"{self.label}: {given} are integrated out and take no value. Give the sites that are left only, or use the "
                "program it was made of, which has them all.",
                [],
                given,
            )
        return super()._traced(choices, *args, **kwargs)

    def posterior(
        self,
        key: Any,
        choices: Mapping[str, Any],
        *args: Any,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Joint draws of the integrated sites given the choices and the data.

        The mean of a normal law whose data and prior means are perturbed by noise of their own is a draw from it.
        """
        refuse_inside_engine("posterior")
        moments = _Moments(self, choices, args, kwargs)
        if num_samples is None:
            return moments.draw(typed_key(key))
        return jax.vmap(moments.draw)(jax.random.split(typed_key(key), num_samples))

    def posterior_marginals(
        self, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, dist.Normal]:
        """The law of each number of the integrated sites given the choices and the data: site -> Normal of the site's shape."""
        return _Moments(self, choices, args, kwargs).marginals()

    def mode(
        self, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Array], Array]:
        """The most probable values of the integrated sites, their means, and the log-density with everything else (nats)."""
        found = _Moments(self, choices, args, kwargs).means()
        return found, self.program.log_density({**choices, **found}, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


class _Moments:
    """Moments of integrated sites given everything else: derivatives of the log-density in tilts (`gaussian/_integrator.py`)."""

    def __init__(
        self, program: Integrated, choices: Mapping[str, Any], args: Any, kwargs: Any
    ) -> None:
        self.program, self.choices = program, as_arrays(choices)
        self.args, self.kwargs = args, kwargs
        tilted = self._with(TILTED)
        drawn = lambda: tilted.simulate(jax.random.key(0), *args, **kwargs).choices
        self.beside = {
            name: jnp.zeros(x.shape, x.dtype)
            for name, x in jax.eval_shape(drawn).items()
            if name.endswith(KINDS) and name not in self.choices
        }

    def _with(self, emit: Emit) -> Integrated:
        return Integrated(self.program.program, self.program.sites, self.program.label, emit)

    def _derivatives(self, kind: str, emit: Emit, given: Mapping[str, Array]) -> dict[str, Array]:
        """Those in the tilts of a kind, by site."""
        tilted = self._with(emit)
        at = {site: self.beside[f"{site} {kind}"] for site in self.program.sites}

        def log_density(at: dict[str, Array]) -> Array:
            tilts = {f"{site} {kind}": x for site, x in at.items()}
            choices = {**self.choices, **self.beside, **given, **tilts}
            return tilted.log_density(choices, *self.args, **self.kwargs)

        return jax.grad(log_density)(at)

    def means(self) -> dict[str, Array]:
        """Posterior means."""
        return self._derivatives("linear", TILTED, {})

    def marginals(self) -> dict[str, dist.Normal]:
        """Posterior marginals."""
        squares = self._derivatives("square", CENTRED, {})
        return {
            site: dist.Normal(mean, jnp.sqrt(2 * squares[site]))
            for site, mean in self.means().items()
        }

    def draw(self, key: Array) -> dict[str, Array]:
        """One joint draw."""
        shifts = sorted(name for name in self.beside if name.endswith(" shift"))
        keys = jax.random.split(key, max(1, len(shifts)))
        drawn = {
            name: jax.random.normal(k, self.beside[name].shape, self.beside[name].dtype)
            for k, name in zip(keys, shifts, strict=False)
        }
        return self._derivatives("linear", TILTED, drawn)
