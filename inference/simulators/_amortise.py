"""Learned posteriors: a guide of all latent sites given the data, trained on stored simulations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import Tracer, typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._show import shown
from ...ppl._single import checked
from ...ppl._types import Choices, Key, ModelFn, ParamMap
from ...ppl.language import ChoiceMismatch, Keywords, matched
from ..fitting import Posterior
from ..fitting.storage import structure_of
from ..posterior_checks import (
    LocalCoverage,
    PosteriorReport,
    RankCheck,
    Simulations,
    ZScores,
    check_simulations,
)
from ._learn import Learned, RowProblem, learn, losses_on
from ._normal_scores import NormalScores
from ._region import scored
from ._rounds import Round, Rounds, in_rounds
from ._saved import LearnedFile, save_learned
from ._simulators import numbers_of
from ._table import Part, ReferenceTable

_CHECKED, _DRAWS = 400, 99  # held-out data sets that the report is on, and draws for each
_BATCH = 500
_PRIOR, _SURE = 10_000, 1e-7  # draws that given rows are compared with, and p-values of no chance
_RECORDS = (PosteriorReport, Simulations, RankCheck, LocalCoverage, ZScores, Round, Rounds)
_LEAST_EPSILON = 1e-5  # a threshold needs ten draws beyond it, out of a million


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Amortised:
    """A posterior for any data of a model, and what judges it. Made by `amortise`.

    Attributes:
        table: what it was learned from.
        guide: the program of the latent sites, trained; its arguments are the observed sites by name.
        held_out: mean of log q(theta | x) over pairs that nothing was trained on, and its standard error, nats.
        report: the checks of its posteriors on these pairs.
        training: the run, its looks at the validation rows, which parameters were kept.
        rounds: what was done in rounds at one observation, of which alone it is the posterior then; None: it is for any.
    """

    table: ReferenceTable
    guide: ppl.Program
    held_out: tuple[float, float]
    report: PosteriorReport
    training: Learned
    rounds: Rounds | None = None

    def draws(
        self, key: Key, data: Mapping[str, PyTree], num_samples: int = 4_000
    ) -> dict[str, np.ndarray]:
        """Draws of the guide at given data: latent site -> [S, *site shape].

        Args:
            key: PRNG key.
            data: observed site -> value.
            num_samples: S.

        Raises:
            ValueError: data have other names or shapes than the simulations, or are not finite.
        """
        check_counts("Amortised.draws", num_samples=num_samples)
        data = self._checked(data)
        draw = lambda key: dict(self.guide.simulate(key, **data).choices)
        keys = jax.random.split(typed_key(key), num_samples)
        run = shared_jit(lambda keys: jax.lax.map(draw, keys, batch_size=min(_BATCH, num_samples)))
        return {name: np.asarray(x) for name, x in run(keys).items()}

    def log_density(self, choices: Choices, data: Mapping[str, PyTree]) -> Array:
        """The guide's log-density of one value of each latent site, nats.

        Args:
            choices: latent site -> value.
            data: observed site -> value.
        """
        return scored(self.guide, choices, **self._checked(data))

    def posterior(
        self, key: Key, *args: PyTree, num_samples: int = 4_000, model: ModelFn | None = None
    ) -> Posterior:
        """Draws of the guide with the log-weights that lead to the exact posterior, for a model with a density.

        `diagnostics.importance_diagnostics(found.log_weights)` has the evidence, and k-hat says whether they suffice.

        Args:
            key: PRNG key.
            args: arguments of the model, with the data.
            num_samples: S.
            model: a program with a density of the data; default the simulated one. `Surrogate.model` and `Ratio.model` are such.

        Raises:
            ValueError: the model's data are a point mass, whose density says nothing; the model has other latent sites.
        """
        check_counts("Amortised.posterior", num_samples=num_samples)
        program = self.table.model if model is None else ppl.as_program(model)
        seen = program.simulate(jax.random.key(0), *args)
        points = [
            n for n, s in seen.sites.items() if s.kind == "observed" and s.distribution == "Delta"
        ]
        if points:
            raise ValueError(
                f"Amortised.posterior: sites {points} of {program!r} are simulated, a point mass, so that there is no density to "
                "weigh draws by. Use draws(key, data), or the program of a surrogate or a ratio, model=."
            )
        data = self._checked(dict(self.table.model.simulate(jax.random.key(0), *args).observed))

        def weighted(key: Key) -> tuple[dict[str, Array], Array]:
            trace = self.guide.simulate(key, **data)
            choices = trace.shared_choices
            return choices, scored(program, choices, *args) - trace.log_density

        keys = jax.random.split(typed_key(key), num_samples)
        run = shared_jit(
            lambda keys: jax.lax.map(weighted, keys, batch_size=min(_BATCH, num_samples))
        )
        choices, log_weights = jax.device_get(run(keys))
        return Posterior(dict(choices), np.asarray(log_weights))

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write the guide's parameters, the rows and the report to one file, whole or not at all.

        The programs are code and are given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        facts = {"held_out": self.held_out, "report": self.report, "rounds": self.rounds}
        given = _structure(self.table, self.guide)
        save_learned(path, "Amortised", self.table, self.training, given, facts, _RECORDS)

    @classmethod
    @checked_call
    def load(
        cls,
        path: str | os.PathLike,
        model: ModelFn,
        args: tuple | None = None,
        *,
        guide: ModelFn | None = None,
    ) -> Amortised:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the program, or the prior of a simulator that is a function, as given to `reference_table`.
            args: its arguments, likewise.
            guide: as given to `amortise`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or has changed since; the model or the guide is another, each difference
                named.
        """
        file = LearnedFile.read(path, "Amortised", model, args)
        table = file.table
        own = ppl.as_program(guide or _default_guide(table, jax.random.key(0)))
        _check_guide(table, own)
        training = file.training(_problem(table, own))
        bound = own.bind(training.params)
        file.check(_structure(table, bound), {"guide"} if guide is None else ())
        return cls(table=table, guide=bound, training=training, **file.facts(_RECORDS))

    def _checked(self, data: Mapping[str, PyTree]) -> dict[str, ArrayLike]:
        arrays = _checked_data(self.table, data)
        if self.rounds is None:
            _tell_far(self.table, arrays)
            return arrays
        own = self.rounds.data
        same = lambda n, x: not isinstance(x, Tracer) and np.array_equal(x, own[n])
        if other := [n for n, x in arrays.items() if not same(n, x)]:
            raise ValueError(
                f"Amortised: the posterior was learned in rounds at one observation, and the data of {other} are others, of "
                "which it knows nothing. Call amortise with at= these data, or without at= for any."
            )
        return arrays

    def __str__(self) -> str:
        return f"{self!r}\n\n{self.report}"

    def _facts(self) -> dict[str, PyTree]:
        objections = ", ".join(self.report.objections)
        return {
            "simulations": self.table.num_simulations,
            "failed": f"{self.table.num_failed}: {self.table.reason}"
            if self.table.num_failed
            else None,
            "held out": f"log q {self.held_out[0]:.4g} +- {self.held_out[1]:.2g} nats",
            "training": str(self.training),
            **({} if self.rounds is None else self.rounds.facts()),
            "checks": f"{objections} object"
            if objections
            else "none objects; print(...) shows each",
        }


@checked_call
def amortise(
    table: ReferenceTable,
    *,
    guide: ModelFn | None = None,
    at: Mapping[str, PyTree] | None = None,
    num_rounds: int = 4,
    epsilon: float = 1e-4,
    tolerance: float = 0.05,
    key: Key | None = None,
    num_steps: int | None = None,
    progress: bool = True,
) -> Amortised:
    """The posterior given any data, learned from simulations, with its calibration report: neural posterior estimation (NPE).

    The loss is that of `sleep`, -E_{p(theta, x)} log q(theta | x), on stored pairs instead of fresh ones.

    With `at` it is the posterior at these data alone, learned in rounds (TSNPE): each simulates as many pairs as the table has,
    with parameters drawn from the prior where the posterior of the round before has all of its mass but epsilon, and learns from
    all pairs that lie there. What is learned then is right up to this mass, without any correction.

    Args:
        table: simulations, of `simulators.reference_table`; with `at` the first round.
        guide: a program of the latent sites, whose arguments are the observed sites by name. Default: site after site a spline
            flow on unconstrained, standardised values, given the data and the sites before; it begins as a Normal whose mean is
            linear. Its networks see each continuous number of the data by its rank among the training rows.
        at: one observation, site -> value.
        num_rounds: at most so many, for `at`.
        epsilon: mass that the posterior of a round may have outside of the region of the next, at least 1e-5.
        tolerance: rounds end when the posterior at the data moves by less than so many nats, the mean of both KL divergences.
        key: PRNG key; default `jax.random.key(0)`.
        num_steps: as for `ratio`, in each round.
        progress: show a bar.

    Returns:
        An `Amortised`: `draws(key, data)`, the guide, the report. Where the model has a density, `posterior(key, *args)` has the
        weights that lead to the exact posterior.

    Raises:
        ValueError: the guide does not match the model; a discrete site has no guide; a support moves with another draw; numbers
            are impossible; nothing is known to make more of the table's rows, or they are of rounds at other
            data.

    Validity: the guide is exact at the optimum of a family without limit, given unlimited simulations. What was learned is
    judged by `Amortised.report`, of `posterior_checks.check_simulations` on pairs that nothing was trained on. In rounds these
    are pairs of the region; a round whose tails are too light on them is the last, and `Amortised.rounds` says so.

    Reference: Papamakarios and Murray 2016, arXiv:1605.06376; Greenberg, Nonnenmacher and Macke 2019, arXiv:1905.07488 (NPE);
    Deistler, Goncalves and Macke 2022, arXiv:2210.04815 (rounds); the checks, see `inference.posterior_checks`.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def model(x):
        ...     m = ppl.sample("m", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> table = inference.simulators.reference_table(model, (0.0,))  # doctest: +SKIP
        >>> found = inference.amortise(table)  # doctest: +SKIP
        >>> draws = found.draws(jax.random.key(1), {"x": 2.0})  # doctest: +SKIP
        >>> found = inference.amortise(table, at={"x": 2.0})  # doctest: +SKIP
    """
    key = jax.random.key(0) if key is None else typed_key(key)
    if table.region is not None:
        raise ValueError(
            "amortise: the table has draws of the prior cut to where one posterior can be, which are wrong for other data. Give "
            "the table that the rounds began with."
        )
    learned = functools.partial(_learned, guide=guide, num_steps=num_steps, progress=progress)
    if at is None:
        return learned(table, key)
    check_counts("amortise", num_rounds=num_rounds)
    if not _LEAST_EPSILON <= epsilon < 1 or not tolerance >= 0:
        raise ValueError(
            f"amortise: epsilon is {epsilon} and tolerance {tolerance}. Give a mass from {_LEAST_EPSILON} to 1, which draws can "
            "tell from nothing, and a number of nats that is not negative."
        )
    if table.simulate is None:
        raise ValueError(
            "amortise: rounds simulate, and the table's rows are from a file or given, so that nothing is known to make others. "
            "Make the table by reference_table."
        )
    data = _checked_data(table, at)
    found, rounds = in_rounds(
        learned, table, data, num_rounds=num_rounds, epsilon=epsilon, tolerance=tolerance, key=key
    )
    return dataclasses.replace(found, rounds=rounds)


def _learned(
    table: ReferenceTable, key: Key, *, guide: ModelFn | None, num_steps: int | None, progress: bool
) -> Amortised:
    """The posterior that one table tells."""
    net_key, learn_key, draw_key, check_key = jax.random.split(key, 4)
    own = _default_guide(table, net_key) if guide is None else ppl.as_program(guide)
    _check_guide(table, own)
    if table.simulate is None and table.region is None:
        _check_prior(table, check_key)
    problem = _problem(table, own)
    learned = learn(problem, learn_key, num_steps=num_steps, progress=progress)
    bound = own.bind(learned.params)
    held = losses_on(_as_rows(table, "held out"), problem.loss)
    scores = -np.asarray(held(learned.params, learn_key), float)
    report = _report(bound, table, draw_key, check_key)
    mean, error = float(scores.mean()), float(scores.std(ddof=1) / len(scores) ** 0.5)
    return Amortised(table, bound, (mean, error), report, learned)


def _as_rows(table: ReferenceTable, part: Part) -> dict[str, np.ndarray]:
    """Parameters and data of one part in one mapping."""
    parameters, data = table.rows(part)
    return {
        **{f"parameters/{n}": x for n, x in parameters.items()},
        **{f"data/{n}": x for n, x in data.items()},
    }


def _first(table: ReferenceTable) -> dict[str, Array]:
    """The data of one row, which show their shapes."""
    return {n: jnp.asarray(x[0]) for n, x in table.data.items()}


def _problem(table: ReferenceTable, guide: ppl.Program) -> RowProblem:
    """What the guide is to learn from a table."""

    def loss(params: ParamMap, key: Key, rows: Mapping[str, ArrayLike]) -> Array:
        def one(row: Mapping[str, Array]) -> Array:
            return scored(guide.bind(params), _named(row, "parameters"), **_named(row, "data"))

        return -jax.vmap(one)({n: jnp.asarray(x) for n, x in rows.items()})

    init = lambda key: guide.init(key, **_first(table))
    parts = _as_rows(table, "training"), _as_rows(table, "validation")
    return RowProblem("amortise", init, loss, *parts)


def _structure(table: ReferenceTable, guide: ppl.Program) -> dict[str, PyTree]:
    """What a file says of the guide, whose parameters are bound."""
    return {"guide": structure_of(guide, (Keywords(_first(table)),))["model"]}


def _checked_data(table: ReferenceTable, data: Mapping[str, PyTree]) -> dict[str, ArrayLike]:
    """One observation, of the simulations' shapes and finite."""
    if not isinstance(data, Mapping):
        raise TypeError(
            f"Amortised: the data are {type(data).__name__}, and the sites {list(table.data)} are observed. Give each by name, "
            f"{{{next(iter(table.data))!r}: ...}}."
        )
    arrays: dict[str, ArrayLike] = {
        name: x if isinstance(x, Tracer) else _on_host(name, x) for name, x in data.items()
    }
    wanted = {name: x.shape[1:] for name, x in table.data.items()}
    given = {name: np.shape(x) for name, x in arrays.items()}
    if given != wanted:
        raise ValueError(
            f"Amortised: data have the shapes {given}, and the simulations {wanted}. Give each observed site by name, of one "
            "data set."
        )
    seen = {n: x for n, x in arrays.items() if not isinstance(x, Tracer)}
    wrong = [n for n, x in seen.items() if not np.isfinite(np.asarray(x, float)).all()]
    if wrong:
        raise ValueError(
            f"Amortised: the data of {wrong} are not finite, and no simulation was like that. Simulate what was seen, e.g. "
            "with missing cells as zeros and their mask beside them."
        )
    return arrays


def _check_prior(table: ReferenceTable, key: Key) -> None:
    """Refuse rows, of a file or given, whose parameters are no draws of the prior: of each number the largest gap of ranks."""
    from scipy.stats import ks_2samp  # on use: a fifth of a second

    draw = lambda key: dict(table.model.simulate(key, *table.args).choices)
    drawn = shared_jit(jax.vmap(draw))(jax.random.split(key, _PRIOR))
    for name, rows in table.parameters.items():
        # Where simulations failed the prior of the others is cut.
        every = np.concatenate([rows, table.failed[name]]) if table.failed else rows
        of_rows, of_prior = (
            np.asarray(x, float).reshape(len(x), -1).T for x in (every, drawn[name])
        )
        for one, other in zip(of_rows, of_prior, strict=True):
            apart, p_value = np.asarray(ks_2samp(one, other), float)
            if p_value < _SURE:
                raise ValueError(
                    f"amortise: the table's parameters of site '{name}' are no draws of its prior: distribution functions of "
                    f"{len(one)} rows and of {_PRIOR} draws are up to {apart:.2g} apart, p {p_value:.1g}. What "
                    "would be learned is a posterior under the law that they come from. Give the model that law, or draw from "
                    "the prior (and give parameters of simulations that failed as failed=); a likelihood may be learned from "
                    "any parameters, by surrogate."
                )


def _on_host(name: str, value: PyTree) -> np.ndarray:
    """The numbers that a device would have, where the checks need no device."""
    label = f"Amortised: data '{name}'"
    found = checked(label, np.asarray(numbers_of(label, value)))
    return found.astype(jax.dtypes.canonicalize_dtype(found.dtype))


def _tell_far(table: ReferenceTable, data: Mapping[str, ArrayLike]) -> None:
    """Say of data that lie further beyond all simulations than these lie apart."""
    for name, x in data.items():
        if isinstance(x, Tracer):
            continue
        rows = np.asarray(table.data[name], float)
        low, high = rows.min(0), rows.max(0)
        beyond = np.maximum(low - x, x - high)
        if np.any((beyond > 0) & (beyond >= high - low)):
            warnings.warn(
                f"Amortised: data of site '{name}' lie further beyond all {table.num_simulations} simulations than these lie "
                "apart. Posteriors there are a guess of the networks that no simulation has shown to be right, and no check of "
                "the report is about them. Look at posterior_checks.misspecification, or simulate from a prior under which such "
                "data can be.",
                stacklevel=4,
            )


def _named(row: Mapping[str, Array], group: str) -> dict[str, Array]:
    prefix = f"{group}/"
    return {n.removeprefix(prefix): x for n, x in row.items() if n.startswith(prefix)}


def _report(guide: ppl.Program, table: ReferenceTable, draw_key: Key, key: Key) -> PosteriorReport:
    """Checks of the guide's draws at held-out data against the parameters that made them."""
    truths, data = ({n: x[:_CHECKED] for n, x in v.items()} for v in table.rows("held out"))

    def posterior(inputs: tuple[Key, dict[str, Array]]) -> dict[str, Array]:
        key, data = inputs
        draw = lambda key: dict(guide.simulate(key, **data).choices)
        return jax.vmap(draw)(jax.random.split(key, _DRAWS))

    keys = jax.random.split(draw_key, len(next(iter(data.values()))))
    draws = shared_jit(lambda *all: jax.lax.map(posterior, all, batch_size=100))(keys, data)
    found = {n: np.asarray(x) for n, x in draws.items() if n in truths}
    return check_simulations(Simulations(truths, data, found), key)


def _check_guide(table: ReferenceTable, guide: ppl.Program) -> None:
    """Refuse a guide whose draws are not the model's parameters."""
    row = _first(table)

    def compare(key: Key) -> None:
        drawn = guide.simulate(key, **row)
        scored, _ = table.model.generate(key, drawn.shared_choices, *table.args)
        matched(scored, drawn, ("covers",))

    try:
        jax.eval_shape(compare, jax.random.key(0))
    except ChoiceMismatch as err:
        raise ValueError(
            f"amortise: the guide {guide!r} misses the latent sites {err.missing} and draws {err.extra} besides. Draw those of "
            f"the model, {list(table.parameters)}."
        ) from err


def _default_guide(table: ReferenceTable, key: Key) -> ppl.Program:
    """Site after site, a flow given the data and the sites before."""
    from ._networks import ConditionalFlow

    discrete = [n for n, x in table.parameters.items() if not np.issubdtype(x.dtype, np.floating)]
    if discrete:
        raise ValueError(
            f"amortise: the latent sites {discrete} are discrete, and the default guide has spline flows. Give a guide, or sum "
            "them out of the model by ppl.eliminate where they have densities."
        )
    of_parameters, of_data = table.coordinates
    parameters, data = table.rows("training")
    flows, context = {}, np.asarray(of_data.flat(data))
    scores = NormalScores.of(np.asarray(of_data.flat(data, is_scaled=False)))
    keys = jax.random.split(key, len(of_parameters.sizes))
    for k, (name, size) in zip(keys, of_parameters.sizes.items(), strict=True):
        values = np.asarray(of_parameters.part(name, parameters[name]))
        flows[name] = ConditionalFlow(size, context.shape[1], key=k).fitted(context, values)
        context = np.concatenate([context, values], 1)

    def posterior(**data: Array) -> None:
        context = of_data.flat(data)
        seen = scores(of_data.flat(data, is_scaled=False))
        for name, flow in flows.items():
            law = ppl.module(f"flow_{name}", flow).law(context, seen)
            part = of_parameters.part(name, ppl.sample(name, of_parameters.law(name, law)))
            context = jnp.concatenate([context, part])
            seen = jnp.concatenate([seen, jnp.arcsinh(part)])

    posterior.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in table.data]
    )
    return ppl.Program(posterior)
