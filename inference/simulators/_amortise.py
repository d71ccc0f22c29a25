"""Learned posteriors: a guide of all latent sites given the data, trained on stored simulations."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._show import shown
from ...ppl._types import Choices, Key, ModelFn, ParamMap
from ...ppl.language import ChoiceMismatch, matched
from ..fitting import Posterior
from ..posterior_checks import PosteriorReport, Simulations, check_simulations
from ._learn import Learned, learn
from ._table import ReferenceTable

_CHECKED, _DRAWS = 400, 99  # held-out data sets that the report is on, and draws for each
_BATCH = 500


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
    """

    table: ReferenceTable
    guide: ppl.Program
    held_out: tuple[float, float]
    report: PosteriorReport
    training: Learned

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
        return _scored(self.guide, choices, **self._checked(data))

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
            return choices, _scored(program, choices, *args) - trace.log_density

        keys = jax.random.split(typed_key(key), num_samples)
        run = shared_jit(
            lambda keys: jax.lax.map(weighted, keys, batch_size=min(_BATCH, num_samples))
        )
        choices, log_weights = jax.device_get(run(keys))
        return Posterior(dict(choices), np.asarray(log_weights))

    def _checked(self, data: Mapping[str, PyTree]) -> dict[str, Array]:
        arrays = {name: jnp.asarray(x) for name, x in data.items()}
        wanted = {name: x.shape[1:] for name, x in self.table.data.items()}
        given = {name: x.shape for name, x in arrays.items()}
        if given != wanted:
            raise ValueError(
                f"Amortised: data have the shapes {given}, and the simulations {wanted}. Give each observed site by name, of one "
                "data set."
            )
        wrong = [n for n, x in arrays.items() if not np.isfinite(np.asarray(x, float)).all()]
        if wrong:
            raise ValueError(
                f"Amortised: the data of {wrong} are not finite, and no simulation was like that. Simulate what was seen, e.g. "
                "with missing cells as zeros and their mask beside them."
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
            "checks": f"{objections} object"
            if objections
            else "none objects; print(...) shows each",
        }


@checked_call
def amortise(
    table: ReferenceTable,
    *,
    guide: ModelFn | None = None,
    key: Key | None = None,
    num_steps: int | None = None,
    progress: bool = True,
) -> Amortised:
    """The posterior given any data, learned from simulations, with its calibration report: neural posterior estimation (NPE).

    The loss is that of `sleep`, -E_{p(theta, x)} log q(theta | x), on stored pairs instead of fresh ones.

    Args:
        table: simulations, of `simulators.reference_table`.
        guide: a program of the latent sites, whose arguments are the observed sites by name. Default: site after site a spline
            flow on unconstrained, standardised values, given the data and the sites before; it begins as a Normal whose mean is
            linear.
        key: PRNG key; default `jax.random.key(0)`.
        num_steps: as for `ratio`.
        progress: show a bar.

    Returns:
        An `Amortised`: `draws(key, data)`, the guide, the report. Where the model has a density, `posterior(key, *args)` has the
        weights that lead to the exact posterior.

    Raises:
        ValueError: the guide does not match the model; a discrete site has no guide; a support moves with another draw.

    Validity: the guide is exact at the optimum of a family without limit, given unlimited simulations. What was learned is
    judged by `Amortised.report`, of `posterior_checks.check_simulations` on pairs that nothing was trained on.

    Reference: Papamakarios and Murray 2016, arXiv:1605.06376; Greenberg, Nonnenmacher and Macke 2019, arXiv:1905.07488 (NPE);
    the checks, see `inference.posterior_checks`.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def model(x):
        ...     m = ppl.sample("m", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> table = inference.simulators.reference_table(model, (0.0,))  # doctest: +SKIP
        >>> found = inference.amortise(table)  # doctest: +SKIP
        >>> draws = found.draws(jax.random.key(1), {"x": 2.0})  # doctest: +SKIP
    """
    key = jax.random.key(0) if key is None else typed_key(key)
    net_key, learn_key, draw_key, check_key = jax.random.split(key, 4)
    own = _default_guide(table, net_key) if guide is None else ppl.as_program(guide)
    _check_guide(table, own)
    rows = lambda part: {
        **{f"parameters/{n}": x for n, x in table.rows(part)[0].items()},
        **{f"data/{n}": x for n, x in table.rows(part)[1].items()},
    }

    def log_densities(params: ParamMap, rows: Mapping[str, ArrayLike]) -> Array:
        def one(row: Mapping[str, Array]) -> Array:
            return _scored(own.bind(params), _named(row, "parameters"), **_named(row, "data"))

        return jax.vmap(one)({n: jnp.asarray(x) for n, x in rows.items()})

    first = {n: jnp.asarray(x[0]) for n, x in table.data.items()}
    learned = learn(
        "amortise",
        lambda key: own.init(key, **first),
        lambda params, key, rows: -log_densities(params, rows),
        rows("training"), rows("validation"), learn_key,
        num_steps=num_steps, progress=progress,
    )  # fmt: skip
    bound = own.bind(learned.params)
    held = rows("held out")
    scores = np.asarray(log_densities(learned.params, held), float)
    report = _report(bound, table, draw_key, check_key)
    mean, error = float(scores.mean()), float(scores.std(ddof=1) / len(scores) ** 0.5)
    return Amortised(table, bound, (mean, error), report, learned)


def _scored(program: ppl.Program, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Array:
    """`log_density`, with a key: networks may be made from one before their parameters are bound."""
    return program.generate(jax.random.key(0), choices, *args, **kwargs)[0].log_density


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
    row = {n: jnp.asarray(x[0]) for n, x in table.data.items()}

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
    keys = jax.random.split(key, len(of_parameters.sizes))
    for k, (name, size) in zip(keys, of_parameters.sizes.items(), strict=True):
        values = np.asarray(of_parameters.part(name, parameters[name]))
        flows[name] = ConditionalFlow(size, context.shape[1], key=k).fitted(context, values)
        context = np.concatenate([context, values], 1)

    def posterior(**data: Array) -> None:
        context = of_data.flat(data)
        for name, flow in flows.items():
            law = ppl.module(f"flow_{name}", flow).law(context)
            value = ppl.sample(name, of_parameters.law(name, law))
            context = jnp.concatenate([context, of_parameters.part(name, value)])

    posterior.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in table.data]
    )
    return ppl.Program(posterior)
