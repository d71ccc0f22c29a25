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
from ..language import Program
from ..traces import Params, Recorder, Trace, refuse_inside_engine
from ._outside import check_left, check_outside, check_stack, declared, is_predicting
from ._stochastic import as_arrays

Array = jax.Array
PLAIN, TILTED, CENTRED = Emit(), Emit(has_tilts=True), Emit(has_tilts=True, is_centred=True)
POINTED = Emit(has_points=True)
KINDS = (" shift", " linear", " square", " linearised")


class Integrated(Program):
    """A program over the choices that are left, made of statements given those before. Part of what `ppl.eliminate` makes.

    Args:
        program: the program with its sites.
        sites: those that are integrated out.
        label: its name.
        emit: how its statements are made.
        approximation: of means that are not affine; None: they are refused.
        parallel: whether all steps of a scan are filtered at once.
    """

    def __init__(
        self,
        program: Program,
        sites: tuple[str, ...],
        label: str,
        emit: Emit = PLAIN,
        approximation: str | None = None,
        parallel: bool = False,
    ) -> None:
        super().__init__(self._statements)
        self.__name__ = self.label = label
        self.program, self.sites, self.approximation = program, sites, approximation
        self.emit = emit._replace(approximation=approximation, parallel=parallel)

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
        check_left(self.label, self.sites, choices, "integrated")
        return super()._traced(choices, *args, **kwargs)

    def posterior(
        self, key: Any, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Array]:
        """One joint draw of the integrated sites given the choices and the data.

        The mean of a normal law whose data and prior means are perturbed by noise of their own is a draw from it.
        """
        refuse_inside_engine("posterior")
        return _Moments(self, choices, args, kwargs).draw(typed_key(key))

    def posterior_marginals(
        self, choices: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, dist.Normal]:
        """The law of each number of the integrated sites given the choices and the data: site -> Normal of the site's shape.

        A scale is NaN where rounding has left less than two digits of it: where the data tell of the site to less than
        0.3 % of its scale before in single precision, 2e-7 in double precision.
        """
        return _Moments(self, choices, args, kwargs).marginals()

    def means(self, choices: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Posterior means of the integrated sites, which are their most probable values."""
        return _Moments(self, choices, args, kwargs).means()

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"


class _Moments:
    """Moments of integrated sites given everything else: derivatives of the log-density in tilts (`gaussian/_integrator.py`)."""

    def __init__(
        self, program: Integrated, choices: Mapping[str, Any], args: Any, kwargs: Any
    ) -> None:
        if program.approximation == "ukf":
            raise TypeError(
                f"{program.label}: the unscented approximation keeps no law of {list(program.sites)} given later data. Use "
                'approximation="ekf", or particles: inference.smc(program, ..., proposal="ukf") and inference.particles.smooth.'
            )
        self.program, self.choices = program, as_arrays(choices)
        self.args, self.kwargs = args, kwargs
        tilted = self._with(TILTED)
        drawn = lambda: tilted.simulate(jax.random.key(0), *args, **kwargs).choices
        self.beside = {
            name: jnp.zeros(x.shape, x.dtype)
            for name, x in jax.eval_shape(drawn).items()
            if name.endswith(KINDS) and name not in self.choices
        }
        if (
            program.approximation
        ):  # means are linearised where the data put them, whatever the tilts
            pointed = self._with(POINTED).trace(self.choices, *args, **kwargs)
            found = pointed.deterministic
            self.beside |= {n: found[n] for n in self.beside if n.endswith(" linearised")}
        # Those that were named, and missing cells that go with them.
        self.sites = [n.removesuffix(" linear") for n in self.beside if n.endswith(" linear")]

    def _with(self, emit: Emit) -> Integrated:
        made = self.program
        return Integrated(made.program, made.sites, made.label, emit, made.approximation)

    def _derivatives(
        self, kind: str, emit: Emit, given: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Those in the tilts of a kind, by site; and the sites' variances given what comes before them."""
        tilted = self._with(emit)
        at = {site: self.beside[f"{site} {kind}"] for site in self.sites}

        def log_density(at: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            tilts = {f"{site} {kind}": x for site, x in at.items()}
            choices = {**self.choices, **self.beside, **given, **tilts}
            trace = tilted.trace(choices, *self.args, **self.kwargs)
            return trace.log_density, trace.deterministic

        found, beside = jax.grad(log_density, has_aux=True)(at)
        return found, {site: beside[f"{site} variance"] for site in self.sites}

    def means(self) -> dict[str, Array]:
        """Posterior means."""
        return self._derivatives("linear", TILTED, {})[0]

    def marginals(self) -> dict[str, dist.Normal]:
        """Posterior marginals."""
        means = self.means()
        halves, before = self._derivatives("square", CENTRED, {})
        return {
            site: dist.Normal(
                mean, _known_scale(2 * halves[site], before[site]), validate_args=False
            )
            for site, mean in means.items()
        }

    def draw(self, key: Array) -> dict[str, Array]:
        """One joint draw."""
        shifts = sorted(name for name in self.beside if name.endswith(" shift"))
        keys = jax.random.split(key, max(1, len(shifts)))
        drawn = {
            name: jax.random.normal(k, self.beside[name].shape, self.beside[name].dtype)
            for k, name in zip(keys, shifts, strict=False)
        }
        return self._derivatives("linear", TILTED, drawn)[0]


def _known_scale(variance: Array, before: Array) -> Array:
    """The standard deviation; NaN where rounding has left less than two digits of it.

    What is seen later is subtracted from the variance before, whose rounding stays.
    """
    is_known = variance > 100 * jnp.finfo(before.dtype).eps * before
    return jnp.where(is_known, jnp.sqrt(jnp.where(is_known, variance, 1)), jnp.nan)
