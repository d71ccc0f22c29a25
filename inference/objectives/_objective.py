"""Objectives: small programs over a model and a guide, with an unbiased gradient."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import ArrayLike, PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete
from ...ppl._show import shown
from ...ppl._types import Key, ParamMap
from ...ppl.estimation import plate_sizes, run_once
from ...ppl.language import InlineGuide, SiteWeights, apply, joined, set_up
from ...ppl.strategies import Engine
from ...ppl.traces import init_params, plates_met
from .._abstract_objective import AbstractObjective, Direction
from .._host_keys import default_key
from ..inputs import check_new

Array = jax.Array
Weighing = Literal["scaled", "functional", "refused"]


class RecordedCall(NamedTuple):
    """A call of a function that can be found by its names, with the defaults of its arguments."""

    module: str
    name: str
    args: tuple
    kwargs: Mapping[str, Any]

    @property
    def is_global(self) -> bool:
        """Whether the function stands in a module, and not inside of another function."""
        return "<locals>" not in self.name


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Objective(AbstractObjective):
    """L(params) = E[fn(model, guide, *args)], to be maximised or minimised. Made by `elbo`, `iwelbo` or `@objective`.

    Its methods take `params`, name -> unconstrained arrays, as `init` gives them; a PRNG key of either kind; the `state` of
    baselines, by `init_state` or the step before, None to start afresh; and the arguments of model and guide, by position or by
    name.

    Attributes:
        fn: `(model, guide, *args) -> scalar`, drawing with `ppl.draw`.
        model: the generative program.
        guide: the proposal program, or None.
        strategies: pattern -> gradient strategy, see `ppl.expectation`.
        num_replicates: independent runs whose mean is the estimate.
        direction: "max" or "min".
        name: shown in reports.
        check_jumps: see `ppl.expectation`.
        full_sizes: full sizes of minibatched plates.
        examples: see `ppl.expectation`.
        checks: outcomes of checks, shared by objectives that `dataclasses.replace` makes of one another.
        site_weights: pattern on site names -> weight of the site's log-probs, or a function of the arguments that returns such a
            mapping; see `with_site_weights`.
        weighing: what weights make of the objective: "scaled" (one weight c for all sites gives c times the objective),
            "functional" (another number, estimated without bias), or "refused".
        gradient: "full", the derivative of the value at its draws; or the name of one that only has the same mean.
        bias: of what size, for which number and why value or gradient are biased; empty where they are not.
        recipe: the call that made it, by which it goes into a pickle: model and guide must be functions of a module then.

    Raises:
        ValueError: the direction is unknown, or `num_replicates` no integer of at least 1.

    Validity: of the program as it was traced, once for each shape of the arguments. What model and guide read from outside,
    functions and numbers, stays as it was then: after one was defined anew (a cell of a notebook run again), make the objective
    anew.
    """

    fn: Callable[..., PyTree]
    model: ppl.Program
    guide: ppl.Program | None
    strategies: Mapping[str, object] | str | None = None
    num_replicates: int = 1
    direction: Direction = "max"
    name: str = "objective"
    check_jumps: ppl.checks.CheckJumps = True
    full_sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    examples: list[Any] = dataclasses.field(default_factory=list, repr=False)
    checks: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
    site_weights: Mapping[str, PyTree] | Callable[..., Mapping[str, PyTree]] | None = None
    weighing: Weighing = "functional"
    gradient: str = "full"
    # A fact of the code, not an option: in no file.
    bias: str = dataclasses.field(default="", repr=False)
    recipe: RecordedCall | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_counts(self.name, num_replicates=self.num_replicates)
        if self.direction not in ("max", "min"):
            raise ValueError(
                f"{self.name}: direction must be 'max' or 'min', got {self.direction!r}."
            )
        if self.site_weights is not None and self.weighing == "refused":
            raise ValueError(
                f"{self.name}: site_weights would make its gradient that of another number, since it uses the normalised "
                "densities of model and guide. Use elbo, iwelbo(gradient='full') or another objective that is a function of "
                "log-weights."
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.recipe is None or not self.recipe.is_global:
            return super().__reduce_ex__(protocol)
        # What may have been changed since; the rest is what the call makes of its arguments.
        kept = ("model", "guide", "num_replicates", "full_sizes", "site_weights")
        return recreate, (self.recipe, {name: getattr(self, name) for name in kept})

    def _facts(self) -> dict[str, PyTree]:
        return {
            "name": f"{self.name}, {self.direction}imised",
            "model": repr(self.model),
            "guide": None if self.guide is None else repr(self.guide),
            "strategies": self.strategies,
            "num_replicates": self.num_replicates,
            "plate sizes": self.full_sizes or None,
            "site weights": self.site_weights,
            "biased": self.bias or None,
        }

    @functools.cached_property
    def expectation(self) -> ppl.Expectation:
        """The objective as an expectation over parameters."""
        without_expectation = dataclasses.replace(self)  # see `ppl.estimation.Expectation`
        return ppl.expectation(
            without_expectation._run,
            strategies=self.strategies,
            num_replicates=self.num_replicates,
            check_jumps=self.check_jumps,
            examples=self.examples,
            checks=self._shared_checks(),
        )

    def _shared_checks(self) -> dict[str, PyTree] | None:
        """What checks have found for the same objective: `fit` makes a new one for its minibatches each time."""
        weights = tuple(sorted(self.full_sizes.items())), self.site_weights
        try:
            same = (
                self.fn,
                self.model,
                self.guide,
                _hashable(self.strategies),
                self.num_replicates,
                weights,
            )
            return self.checks.setdefault((*same, self.check_jumps), {})
        except TypeError:  # something that cannot be compared
            return None

    def _run(self, params: ParamMap, *args: PyTree) -> PyTree:
        return self.run_at(ppl.traces.Whole(params), *args)

    def run_at(self, params: ParamMap, *args: PyTree) -> PyTree:
        """One run at these parameters; those that are left out have their initial values, if `params` are not `Whole`."""
        model, guide = self._programs(params, args)
        # Statements of the function's own have the parameters, too; what model and guide are bound to comes first there.
        with ppl.traces.BoundParams(params) if params else contextlib.nullcontext():
            result = apply(self.fn, (model, guide, *args))
        if self.site_weights is not None:
            self._check_weights(model, guide)
        plates = plates_met()
        unknown = sorted(set(self.full_sizes) - set(plates))
        if unknown:
            raise ValueError(
                f"{self.name}: plate sizes are given for {unknown}, but the plates are {plates}; nothing would be "
                "scaled. Use the name of a plate."
            )
        return result

    def _programs(self, params: ParamMap, args: tuple) -> tuple[Any, Any]:
        """Model and guide with parameters, plate sizes and site weights."""
        weights = self.site_weights
        weights = apply(weights, args) if callable(weights) else weights

        def made(program: ppl.Program | None) -> Any:
            program = ready(program, params, self.full_sizes)
            return program if weights is None or program is None else ppl.reweight(program, weights)

        model = made(self.model)
        if isinstance(self.guide, InlineGuide) and self.guide.model is self.model:
            # The guide of the very program that is scored: one run serves both.
            guide = ppl.guide_of(model)
            guide._seen = self.guide._seen
            return model, guide
        return model, made(self.guide)

    def _check_weights(self, *programs: PyTree) -> None:
        sites = [s for p in programs if p is not None for s in p.sites_seen()]
        unmatched = programs[0].site_weights.unmatched(sites)
        if unmatched:
            raise ValueError(
                f"{self.name}: site_weights {unmatched} match no site. The sites are {list(dict.fromkeys(sites))}; use "
                "their names, or shell-style wildcards such as 'z*' that match one."
            )

    def with_site_weights(
        self, site_weights: Mapping[str, Any] | Callable[..., Mapping[str, Any]]
    ) -> Objective:
        """This objective with weighted log-probs: w_s log p(s) and w_s log q(s) in place of log p(s) and log q(s).

        For the `elbo` this is sum over observed sites of w_x E[log p(x)] - sum over latent sites of w_z KL(z), the weights of
        beta-VAEs, of free bits by schedule, and the meta-prior of predictive-coding networks. Draws and their gradient
        strategies are the same; value and gradient are unbiased for the weighted number.

        Args:
            site_weights: fnmatch pattern on site names (of model and guide) -> number >= 0, or an array with the shape of the
                site's first batch axes: a schedule over the steps of a scan has shape [steps]. Sites without a pattern have
                weight 1. Or a function of the program's arguments that returns this mapping.

        Raises:
            ValueError: the objective uses normalised densities; a pattern matches no site; a weight has another shape; (when
                it runs) a site is matched by two patterns.
            TypeError: the density of model or guide is estimated.

        Validity: unless all weights are equal the value bounds nothing; `label` says so.
        """
        return dataclasses.replace(self, site_weights=site_weights)

    def label(self, *args: PyTree, **kwargs: PyTree) -> str:
        """The objective's name, and what site weights make of it (abstract evaluation).

        "elbo"; "elbo x 0.5" where all sites have one weight and the objective is linear in log-densities; else "elbo with site
        weights (not a bound)". Weights that are computed from arguments, or not known, count as unequal.
        """
        if self.site_weights is None:
            return self.name
        common = None
        if not callable(self.site_weights) and is_concrete(self.site_weights):
            sites: list[str] = []

            def visit() -> PyTree:
                result = self._run({}, *joined(args, kwargs, self.model))
                for program in (self.model, self.guide):
                    sites.extend(() if program is None else program.sites_seen())
                return result

            plate_sizes(visit, self.strategies)
            common = SiteWeights(self.site_weights).common(sites)
        if common == 1:
            return self.name
        if common is not None and self.weighing == "scaled":
            return f"{self.name} x {common:g}"
        return f"{self.name} with site weights (not a bound)"

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> ppl.Params:
        """Initial parameters of model and guide: name -> unconstrained arrays (`ppl.constrain` maps them)."""
        args = joined(args, kwargs, self.model)
        if self.guide is not None:
            set_up(self.guide, key, args)
        params = init_params(
            lambda: self._run({}, *args),
            key,
            lambda key: Engine(key, self.strategies, exploring=True),
        )
        if not self.examples and is_concrete((params, args)):
            self.examples.append((params, args))
        return params

    def value(
        self, params: dict[str, ArrayLike] | ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> Array:
        """One estimate of L (scalar, nats).

        Raises:
            ValueError: `params` lack a parameter of model or guide; {} stands for all initial values.
        """
        return self.expectation.value(params, key, *joined(args, kwargs, self.model))

    def grad(
        self, params: dict[str, Array] | ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, PyTree] | ppl.Params:
        """One unbiased estimate of dL/dparams."""
        return self.expectation.grad(params, key, *joined(args, kwargs, self.model))

    def value_and_grad(
        self, params: dict[str, Array] | ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, dict[str, Array] | ppl.Params]:
        """One estimate of L and of its gradient, with fresh baselines."""
        return self.expectation.value_and_grad(params, key, *joined(args, kwargs, self.model))

    def init_state(
        self, params: ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, PyTree]:
        """Initial state of baselines; `key` is there for objectives whose state is random."""
        return self.expectation.init_state(params, *joined(args, kwargs, self.model))

    def step(
        self,
        params: ppl.Params,
        state: dict[str, PyTree] | None,
        key: Key,
        *args: PyTree,
        **kwargs: PyTree,
    ) -> tuple[Array, PyTree, PyTree]:
        """Value, gradient and next state: pure and traceable."""
        return self.expectation.step(params, state, key, *joined(args, kwargs, self.model))

    def plan(self, params: ppl.Params, *args: PyTree, **kwargs: PyTree) -> ppl.Plan:
        """What each site gets, why, and what it costs; runs every check ahead of the first step."""
        given = joined(args, kwargs, self.model)
        for program in (self.model, self.guide):
            check_new(f"{self.name}.plan", program, given)
        plan = self.expectation.plan(params, *given)
        label = self.label(*args, **kwargs) + (f" (biased: {self.bias})" if self.bias else "")
        return dataclasses.replace(plan, label=label)

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> Objective:
        """This objective for minibatches: plate `name` stands for `sizes[name]` rows, whatever number it is run on.

        With `math.inf` rows the objective is that of one row, in nats per row: the limit of L / N for a growing number of rows N,
        in which terms inside the plate are averaged and terms outside of it count zero. An infinite size stays: the rows at
        hand, all or a minibatch, are then a pool drawn from the population.

        Args:
            sizes: plate name -> number of rows, or `math.inf`.
        """
        endless = {name: size for name, size in self.full_sizes.items() if math.isinf(size)}
        return dataclasses.replace(self, full_sizes={**self.full_sizes, **sizes, **endless})

    def plate_sizes(self, *args: PyTree, **kwargs: PyTree) -> dict[str, int]:
        """Plates of model and guide with the number of rows that they have under these arguments (abstract evaluation)."""
        args = joined(args, kwargs, self.model)
        if self.guide is not None:
            set_up(self.guide, default_key(), args)
        return plate_sizes(lambda: self._run({}, *args), self.strategies)

    def traces(
        self, model: ppl.Program, guide: ppl.Program | None, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, ppl.Trace]:
        """One run inside `ppl.expectation`: the guide's trace, and the model's at its choices."""
        args = joined(args, kwargs)
        if guide is None:
            return {"model": ppl.draw(model, *args)}
        trace = ppl.draw(guide, *args)
        return {"guide": trace, "model": ppl.score(model, trace, *args)}

    def site_report(
        self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, dict[str, Array]]:
        """Value and log-prob of every site of one run, in program order: "guide.<site>", then "model.<site>"."""
        args = joined(args, kwargs)
        report: dict[str, dict[str, Array]] = {}
        order: dict[str, list[str]] = {}

        def run(params: PyTree) -> PyTree:
            model, guide = self._programs(params, args)
            traces = self.traces(model, guide, *args)
            order.update(
                {program: list(trace.log_probs) for program, trace in traces.items()}
            )  # jax sorts dictionaries
            return traces

        traces = run_once(run, params, key, self.strategies)
        for program, names in order.items():
            trace = traces[program]
            values = {**trace.choices, **trace.observed}
            for name in names:
                log_prob = trace.log_probs[name]
                report[f"{program}.{name}"] = {
                    "log_prob": log_prob,
                    "value": values.get(name, log_prob),
                }
        return report

    # NumPyro's SVI accepts the objective as its loss.

    can_infer_discrete = True
    multi_sample_guide = False

    def loss(
        self,
        rng_key: Key,
        param_map: Mapping[str, Array],
        model: ppl.Program,
        guide: ppl.Program,
        *args: PyTree,
        **kwargs: PyTree,
    ) -> Array:
        """The loss that `numpyro.infer.SVI(model, guide, optim, loss=objective)` minimises; its gradient is this estimator."""
        args = joined(args, kwargs, self.model)
        own = dataclasses.replace(self, model=ppl.as_program(model), guide=ppl.as_program(guide))
        # SVI hands over constrained values; their constraints come from an initialisation.
        known = own.init(jax.random.key(0), *args)
        params = ppl.unconstrain(param_map, known.constraints)
        value = own.value(params, rng_key, *args)
        return -value if self.direction == "max" else value


def recreate(recipe: RecordedCall, fields: Mapping[str, object]) -> Any:
    """The objective that a call makes, with other fields."""
    made: PyTree = importlib.import_module(recipe.module)
    for name in recipe.name.split("."):
        made = getattr(made, name)
    return dataclasses.replace(made(*recipe.args, **recipe.kwargs), **fields)


def _hashable(strategies: object) -> Any:
    return tuple(strategies.items()) if isinstance(strategies, Mapping) else strategies


def ready(program: ppl.Program | None, params: ParamMap, sizes: Mapping[str, float]) -> Any:
    """The program with parameters and plate sizes bound; None for None."""
    if program is None:
        return None
    bound = program.bind(params) if params else program
    return ppl.rescale_plates(bound, sizes) if sizes else bound
