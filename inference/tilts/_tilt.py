"""A program tilted by a reward: the target of every way to alter a trained model.

    p*(x) = p(x) exp(r(x) / b) / Z

Input: a program with density p, a reward r of what the program returns (nats once divided by the temperature b). Output: a
program with the same sites and one factor more, of log-weight r / b.
Invariants: p is fixed, all its parameters bound; the factor counts whole, whatever is subsampled; a tilt of a tilt is one tilt of
the first program, with r1 / b1 + r2 / b2.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._compat import is_concrete, no_handlers
from ...ppl._types import Message, ModelFn, ParamMap
from ...ppl.densities import StochasticProgram
from ...ppl.language import joined, name_of
from ...ppl.traces import drawn_before
from ..inputs import check_new
from ._rewards import Reward, as_log_weight, try_reward
from ._start import StartMemory, check_start


class TiltedProgram(ppl.Program):
    """The program of p(x) exp(r(x) / b). Made by `tilt`.

    Attributes:
        base: the program of p, its parameters bound.
        reward: r, a function of what `base` returns.
        temperature: b.
        site: name of the factor site.
    """

    def __init__(
        self, base: ppl.Program, reward: Reward, temperature: ArrayLike, site: str, num_tried: int
    ) -> None:
        super().__init__(self._statements)
        self.base, self.reward, self.temperature = base, reward, temperature
        self.site, self.num_tried = site, num_tried
        self.__name__ = f"tilt[{getattr(base, '__name__', 'program')}]"
        self._tried: set[object] = set()
        self._starts: dict[str, float] = {}

    def bind(self, params: ParamMap) -> TiltedProgram:
        bound = TiltedProgram(self.base, self.reward, self.temperature, self.site, self.num_tried)
        bound._tried, bound._starts, bound._seen = self._tried, self._starts, self._seen
        bound.params = params
        return bound

    def reweighted(self, weights: object) -> ppl.Program:
        return ppl.Program(self.fn, self.params).reweighted(weights)

    def log_weight(self, retval: PyTree) -> Float[jax.Array, ""]:
        """The log-weight r / b of one value that `base` returned, nats; -inf where a constraint is broken.

        Args:
            retval: what `base` returns.
        """
        return as_log_weight(self.reward, retval) / self.temperature

    def _statements(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        self.try_reward(*args, **kwargs)
        with _NothingTrained(self), StartMemory(self._starts):
            retval = self.base(*args, **kwargs)
            log_weight = self.log_weight(retval)
        ppl.factor(self.site, log_weight)
        return retval

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> ppl.Trace:
        trace = super()._score(choices, *args, **kwargs)
        check_start(self, trace, drawn_before(), self._starts)
        return trace

    def try_reward(self, *args: PyTree, **kwargs: PyTree) -> None:
        """Try the reward at some draws of the base, once for arguments of these shapes, where their values are known.

        Args:
            args: the program's arguments.
            kwargs: its keyword arguments.

        Raises:
            ValueError: see `tilt`.
        """
        if not self.num_tried or not is_concrete((args, kwargs, self.base.params)):
            return
        shapes = tuple(np.shape(x) for x in jax.tree.leaves((args, kwargs)))
        if shapes not in self._tried:
            with no_handlers():
                check_new("tilt", self.base, joined(args, kwargs))
            try_reward(self.base, self.reward, self.num_tried, args, kwargs)
            self._tried.add(shapes)


class _NothingTrained(Messenger):
    """Refuse a parameter of the base or the reward that is bound to nothing: an objective would move it along."""

    only_watches = True

    def __init__(self, tilt: TiltedProgram) -> None:
        super().__init__()
        self.tilt = tilt

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "param" and msg["value"] is None and msg["args"] != (None,):
            raise ValueError(
                f"{self.tilt!r}: parameter '{msg['name']}' of the base or the reward is not bound. The tilt is what is aimed at, "
                "and would move with what is trained. Bind it: inference.tilt(program.bind(params), reward), params those of the "
                "trained model (fit.model, fit.guide are bound), or program.bind(program.init(key, *args)); hand a reward the "
                "values, not ppl.param."
            )


@checked_call
def tilt(
    model: ModelFn, reward: Reward, temperature: ArrayLike = 1.0, *, site: str = "reward",
    num_tried: int = 32,
) -> TiltedProgram:  # fmt: skip
    """The program of p(x) exp(reward(x) / temperature) / Z: what a trained model becomes by a reward, a constraint, a preference.

    It has the sites of `model` and one factor, so that everything that takes a program takes it: `elbo` over a guide
    (KL-regularised policy gradients: temperature x ELBO = E[reward] - temperature x KL(guide || model)), `log_variance`
    (trajectory balance with the model as the prior), `forward_kl` (reward-weighted regression), `smc`, `tempered_smc`,
    `ppl.normalize`, `ppl.eliminate`. `tilts.report` tells how far a law is from it, whichever way it came about.

    Rewards by kind: a classifier, log p(y | x); a constraint, a function that returns a boolean (true: log-weight 0, false:
    -inf); examples to forget, log(1 - p(negative | x)), by log-odds -softplus(log-odds); preferences, the difference of two
    rewards being the log-odds of the one preferred (Bradley and Terry); moments, `tilts.match_moments`.

    Args:
        model: the program of p, with its parameters bound (`fit.model`, `program.bind(params)`): it is the reference and stays as
            it is. Observations and other factors count: the tilt is then one of its posterior.
        reward: r, a function of what the program returns, to a number or a boolean, traced by JAX. To read sites, return them:
            `def model(): ...; return {"z": z, "x": x}`.
        temperature: b > 0: the smaller, the nearer to the maxima of the reward.
        site: name of the factor.
        num_tried: draws of the model at which the reward is tried before anything is computed with it, once for arguments of one
            shape; 0: none.

    Returns:
        A `TiltedProgram`, with `base`, `reward`, `temperature`. A tilt of a tilt is one tilt: rewards add, each by its
        temperature.

    Raises:
        ValueError: the temperature is not positive; a parameter of the model is not bound; the model returns nothing; the reward
            has another shape than (); at draws of the model it is NaN, or infinite, or -inf at all of 1,000; (in an objective) a
            guide begins at the same noise as the model, whose chain remembers it (`models.diffusion.memory`).
        TypeError: the density of the model is estimated; the reward is a function of NumPy's arrays, or returns no number.

    Validity: the law is the tilt for any reward that is finite or -inf and whose Z is finite, which no draw can prove: rewards
    that grow without bound can have none. Gradients of the reward are needed by pathwise strategies alone.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> def model():
        ...     return ppl.sample("x", dist.Normal(0.0, 1.0))
        >>> target = inference.tilt(model, lambda x: 2 * x)  # Normal(2, 1)
        >>> round(float(target.log_density({"x": 1.0}) - target.log_density({"x": 3.0})), 5)
        0.0

    Reference: Korbak, Perez and Buckley 2022, arXiv:2205.11275 (RL with a KL penalty as inference); Venkatraman et al. 2024,
    arXiv:2405.20971 (relative trajectory balance).
    """
    if is_concrete(temperature) and not (
        np.ndim(temperature) == 0 and 0 < np.asarray(temperature) < np.inf
    ):
        raise ValueError(
            f"tilt: temperature must be a positive number, got {temperature!r}. Give the reward's unit in nats, e.g. 1.0; for "
            "the maximum of a reward alone use inference.search."
        )
    base = ppl.as_program(model)
    if isinstance(base, StochasticProgram):
        raise TypeError(
            f"tilt: the density of {base!r} is estimated, and a tilt is one run of statements. Tilt the program that it was made "
            "of, and make the estimate of the tilt: ppl.normalize(inference.tilt(program, reward), proposal=...)."
        )
    if isinstance(base, TiltedProgram):
        first, second = base, reward
        both = lambda x: first.log_weight(x) + as_log_weight(second, x) / temperature
        both.__name__ = (
            f"{name_of(first.reward)} / {first.temperature} + {name_of(second)} / {temperature}"
        )
        return TiltedProgram(first.base, both, 1.0, first.site, num_tried)
    return TiltedProgram(base, reward, temperature, site, num_tried)
