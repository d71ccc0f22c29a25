"""Programs without some of their normal sites, which are integrated out exactly: part of `ppl.eliminate`.

Input: a program p(z, v), z the named sites, normal with means affine in each other. Output: the program over v with

    log p(v) = log integral p(z, v) dz = sum_i log p(v_i | v_<i),

whose statements have these laws (`gaussian/`): Kalman's filter. What is known of z afterwards is found on the way back through
the program (`gaussian/beliefs`).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree

from .._compat import handler_stack, typed_key
from .._shared_jit import shared_call
from .._types import Choices, Key
from ..gaussian import BESIDE, BESIDE_SCALE, Emit, SmoothingRequest, integrate
from ..language import Program
from ..traces import Recorder, Trace, refuse_inside_engine
from ._lost_digits import has_nan
from ._outside import check_left, check_outside, check_reach, check_stack, declared, is_predicting
from ._stochastic import as_arrays
from ._without import Without

Array = jax.Array
PLAIN = Emit()


class Integrated(Without):
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
        super().__init__(program, sites, label)
        self.approximation = approximation
        self.emit = emit._replace(approximation=approximation, parallel=parallel)

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> ArrayLike | None:
        if any(isinstance(h, Recorder) for h in handler_stack()):
            check_stack(self.label)
        else:
            check_outside(self.label)
        if is_predicting():
            return self.program(*args, **kwargs)
        check_reach(self.label, self.program, self.sites, args, kwargs)
        params = declared(self.program, args, kwargs)[0]
        return integrate(self.label, self.program, self.sites, params, args, kwargs, self.emit)

    def _traced(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        check_left(self.label, self.sites, choices, "integrated")
        return super()._traced(choices, *args, **kwargs)

    def posterior(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """One joint draw of the integrated sites given the choices and the data."""
        refuse_inside_engine("posterior")
        return _Moments(self, SmoothingRequest(key=typed_key(key)), choices, args, kwargs).means

    def posterior_marginals(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, dist.Normal]:
        """The law of each number of the integrated sites given the choices and the data: site -> Normal of the site's shape."""
        if isinstance(self.program, Integrated):
            raise TypeError(
                f"{self.label}: {list(self.program.sites)} were integrated out by an earlier call, and their marginals need "
                f"those of {list(self.sites)}. Draw them, posterior(key, choices, *args, num_samples=...), or name all in one "
                "call."
            )
        return _Moments(self, SmoothingRequest(), choices, args, kwargs).marginals

    def posterior_probs(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """Refused: normal sites have densities."""
        raise TypeError(
            f"{self.label}: its sites are normal and have no table of probabilities. Use posterior_marginals."
        )

    def mode(
        self, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> tuple[dict[str, Array], Array]:
        """The mean of the joint normal law, which is its mode, and its log-density with everything else (nats)."""
        found: dict[str, Array] = {}
        program: Program = self
        # Those of the last call, then the earlier ones' given them.
        while isinstance(program, Integrated):
            moments = _Moments(program, SmoothingRequest(), {**choices, **found}, args, kwargs)
            found |= moments.means
            program = program.program
        if has_nan(found):
            return found, jnp.full((), jnp.nan)
        return found, program.log_density({**choices, **found}, *args, **kwargs)


class _Moments:
    """Moments of integrated sites given everything else: derivatives in sites beside them (`gaussian/beliefs`).

    Args:
        program: without the sites.
        smoothing: what is asked for.
        choices: of the sites that are left.
        args: the program's arguments.
        kwargs: its keyword arguments.
    """

    def __init__(
        self,
        program: Integrated,
        smoothing: SmoothingRequest,
        choices: Mapping[str, PyTree],
        args: PyTree,
        kwargs: Mapping[str, PyTree],
    ) -> None:
        if program.approximation == "ukf":
            raise TypeError(
                f"{program.label}: the unscented approximation keeps no law of {list(program.sites)} given later data. Use "
                'approximation="ekf", or particles: inference.smc(program, ..., proposal="ukf") and inference.particles.smooth.'
            )
        # The same program with sites of value 0 beside the asked ones, in which the log-density's gradient is the moment.
        emit = Emit(smoothing=smoothing)
        asked = Integrated(
            program.program, program.sites, program.label, emit, program.approximation
        )
        given = as_arrays(choices)
        # Their names and shapes come from a run of which nothing is computed.
        drawn = lambda: asked.simulate(jax.random.key(0), *args, **kwargs).choices
        beside = {
            name: jnp.zeros(x.shape, x.dtype)
            for name, x in jax.eval_shape(drawn).items()
            if name.endswith((BESIDE, BESIDE_SCALE)) and name not in given
        }
        log_density = lambda beside: asked.log_density({**given, **beside}, *args, **kwargs)
        self.found: dict[str, Array] = shared_call(jax.grad(log_density), beside)

    @property
    def means(self) -> dict[str, Array]:
        """Means, or a draw: of the sites that were named, and of missing cells that go with them."""
        found = self.found.items()
        return {name.removesuffix(BESIDE): x for name, x in found if name.endswith(BESIDE)}

    @property
    def marginals(self) -> dict[str, dist.Normal]:
        """Marginal laws."""
        scales = {name: self.found[f"{name}{BESIDE_SCALE}"] for name in self.means}
        return {
            name: dist.Normal(mean, scales[name], validate_args=False)
            for name, mean in self.means.items()
        }
