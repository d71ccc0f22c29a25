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


class Integrated(Program):
    """A program over the choices that are left, made of statements given those before. Part of what `ppl.eliminate` makes.

    Args:
        program: the program with its sites.
        sites: those that are integrated out.
        label: its name.
        has_tilts: whether sites stand beside the statements that shift and tilt them.
    """

    def __init__(
        self, program: Program, sites: tuple[str, ...], label: str, *, has_tilts: bool = False
    ) -> None:
        super().__init__(self._statements)
        self.__name__ = self.label = label
        self.program, self.sites, self.has_tilts = program, sites, has_tilts

    def _statements(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(h, Recorder) for h in handler_stack()):
            check_stack(self.label)
        else:
            check_outside(self.label)
        if is_predicting():
            return self.program(*args, **kwargs)
        params = declared(self.program, args, kwargs)[0]
        emit = Emit(has_tilts=self.has_tilts)
        return integrate(self.label, self.program, self.sites, params, args, kwargs, emit)

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
        tilted = Integrated(program.program, program.sites, program.label, has_tilts=True)
        self.sites, self.choices = program.sites, as_arrays(choices)

        def drawn() -> Any:
            return tilted.simulate(jax.random.key(0), *args, **kwargs).choices

        shapes = jax.eval_shape(drawn)
        self.beside = {
            name: jnp.zeros(x.shape, x.dtype)
            for name, x in shapes.items()
            if name.endswith(KINDS) and name not in self.choices
        }
        self.density = lambda tilts: tilted.log_density(
            {**self.choices, **self.beside, **tilts}, *args, **kwargs
        )

    def named(self, kind: str) -> dict[str, str]:
        """Site -> the one beside it of this kind."""
        return {site: f"{site} {kind}" for site in self.sites}

    def _derivatives(self, kind: str, given: Mapping[str, Array]) -> dict[str, Array]:
        names = self.named(kind)
        at = {name: self.beside[name] for name in names.values()}
        found = jax.grad(lambda tilts: self.density({**given, **tilts}))(at)
        return {site: found[name] for site, name in names.items()}

    def means(self) -> dict[str, Array]:
        """Posterior means."""
        return self._derivatives("linear", {})

    def marginals(self) -> dict[str, dist.Normal]:
        """Posterior marginals."""
        means = self.means()
        centres = {name: means[site] for site, name in self.named("centre").items()}
        squares = self._derivatives("square", centres)
        return {
            site: dist.Normal(means[site], jnp.sqrt(2 * square)) for site, square in squares.items()
        }

    def draw(self, key: Array) -> dict[str, Array]:
        """One joint draw."""
        shifts = sorted(name for name in self.beside if name.endswith(" shift"))
        keys = jax.random.split(key, max(1, len(shifts)))
        drawn = {
            name: jax.random.normal(k, self.beside[name].shape, self.beside[name].dtype)
            for k, name in zip(keys, shifts, strict=False)
        }
        return self._derivatives("linear", drawn)


KINDS = (" shift", " centre", " linear", " square")
