"""What to_arviz can read: fits, draws, traces, MCMC runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ... import ppl
from ...ppl._compat import mcmc_arguments
from ...ppl._data import as_data, named_data
from ...ppl._types import Key, ModelFn
from ...ppl.language import joined
from .._made_for import MadeFor
from .._meshes import on_mesh
from ..fitting import Fit, Posterior
from ..fitting.prediction import check_axes, check_rows, is_of_fit, of_other_rows
from ..particles.diagnostics import evidence_variance
from ..particles.engine import SMCResult
from ..particles.parameters import LiuWestResult, ParticleGibbsResult, PMMHResult, SMC2Result
from ..particles.samplers import TemperedResult
from ..particles.scaling import IslandsResult
from ..posteriors import Draws
from ._arviz_tree import Content
from ._draws import draw_guide, whole_events
from ._summed import scaled_sites

_ONE_RUN = (
    "one run, so that R-hat says nothing of its fit, and ArviZ writes NaN: arviz.summary(kind='stats') leaves it out; "
    "fit(num_seeds=4) makes a chain of each seed"
)
_OTHER_ROWS = "Leave 'args' out, for the rows of the fit; predict new ones by fit.predict(key, ..., keep=[...]), or fit them too."
PARTICLES = SMCResult | SMC2Result | TemperedResult | IslandsResult | LiuWestResult


@dataclasses.dataclass(frozen=True)
class ArvizSource:
    """Draws, and what is known of them without running the model.

    Attributes:
        choices: latent sites [S, ...].
        origin: where the draws are from.
        model: program that can be run on them, or None; `args` are its arguments.
        stats: per-draw numbers [S].
        given: group -> site -> [S, ...]; "deterministic" goes into the draws' own group.
        content: what a trace knows of its own sites.
        no_weight: why a fit's draws have no weights.
        num_chains: chains that the axis S is made of, outermost.
        mcmc: the MCMC whose statistics ArviZ shall read.
        attrs: further attributes of the draws' group.
        weighing: what the weights say, attributes of "sample_stats".
        is_whole: whether these are all draws that there are; of a fit more can be made.
    """

    choices: dict[str, Any]
    origin: str
    model: ppl.Program | None = None
    args: tuple = ()
    stats: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    given: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    content: Content = dataclasses.field(default_factory=Content)
    no_weight: str | None = None
    num_chains: int = 1
    mcmc: Any = None
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    weighing: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_whole: bool = True

    @property
    def num_draws(self) -> int:
        """Of each chain."""
        return len(next(iter(self.choices.values()), ())) // self.num_chains

    def of(self, rows: slice) -> ArvizSource:
        """These draws of each chain."""
        index = np.arange(self.num_chains * self.num_draws).reshape(self.num_chains, -1)
        index = index[:, rows].ravel()
        pick = lambda tree: jax.tree.map(lambda x: np.asarray(x)[index], tree)
        return dataclasses.replace(
            self, choices=pick(self.choices), stats=pick(self.stats), given=pick(self.given)
        )

    @property
    def log_weights(self) -> np.ndarray | None:
        return self.stats.get("log_weight")


def make_source(
    result, keys, num_samples, args, model, log_weights, batch_size, mesh, rows
) -> ArvizSource:
    """What `result` holds; the arguments are those of `to_arviz`, one key for each use. Of a fit these `rows` are drawn."""
    if isinstance(result, Fit):
        return _from_fit(result, keys, num_samples, args, batch_size, mesh, rows)
    if is_mcmc(result):
        return _from_mcmc(result, args)
    if isinstance(result, PMMHResult):
        return _from_chains(result, args, model)
    if isinstance(result, Draws):
        return _from_draws(result, args)
    if isinstance(result, PARTICLES):
        return _from_particles(result, keys, num_samples, args, model)
    program = None if model is None else ppl.as_program(model)
    if isinstance(result, Posterior | ParticleGibbsResult):
        args = _args_of(result, program, result.choices, args)
    if isinstance(result, Posterior):
        result, log_weights = result.choices, result.log_weights
    if isinstance(result, ParticleGibbsResult):
        result = result.choices
    stats = {} if log_weights is None else {"log_weight": np.asarray(log_weights)}
    if isinstance(result, ppl.Trace) and program is None:
        source = _from_trace(result, stats)
    else:
        choices = result.shared_choices if isinstance(result, ppl.Trace) else result
        given = named_data(choices, "The value of site '{}'")
        choices = {name: np.asarray(value) for name, value in given.items()}
        source = ArvizSource(choices, "as given", program, args or (), stats)
    _check_lengths(source)
    return source


def _from_fit(
    fit: Fit,
    keys: dict[str, Key],
    num_samples: int,
    args: tuple | None,
    batch_size: int,
    mesh: Mesh | None,
    rows: slice,
) -> ArvizSource:
    if keys is None:
        raise ValueError(
            "to_arviz: argument 'key' is missing: a fit has no draws yet. Pass key=jax.random.key(0)."
        )
    if fit.num_seeds is not None:
        return _from_seeds(fit, keys, num_samples, args, batch_size, mesh, rows)
    if mesh is not None:
        fit = dataclasses.replace(fit, params=on_mesh(fit.params, mesh))
    model, guide = fit.model, fit.guide
    if model is None or guide is None:
        raise ValueError(
            f"to_arviz: the fit's objective has no {'model' if model is None else 'guide'}, so there is "
            "nothing to draw its posterior from. Fit an objective of model and guide, or pass draws as a mapping with "
            "model=fit.model."
        )
    args = fit.args if args is None else args
    if args is None:
        raise ValueError(
            "to_arviz: argument 'args' is missing: the fit's data came from an iterable and was not kept. Pass "
            "args=(...) with all of it."
        )
    if not (fit.args is None or is_of_fit(model, args, fit.args)):
        check_rows("to_arviz", model, guide, args, fit.args, remedy=_OTHER_ROWS)
    own = jax.random.split(keys["guide"], num_samples)[rows]
    draws = draw_guide(model, guide, own, args, batch_size, mesh)
    if not draws.choices:
        raise ValueError(
            f"to_arviz: {model!r} has no latent site under these arguments, and so no posterior. Use fit.predict(key, "
            "num_samples=...) for draws of its observations."
        )
    stats = {"lp": draws.log_p, "log_q": draws.log_q}
    if draws.no_weight is None:
        stats["log_weight"] = draws.log_p - draws.log_q
    return ArvizSource(
        draws.choices, "from the guide", model, args, stats, {"deterministic": draws.deterministic},
        Content(sites=draws.sites), no_weight=draws.no_weight,
        attrs={"objective": fit.label, "chains": _ONE_RUN}, is_whole=False,
    )  # fmt: skip


def _from_seeds(
    fit: Fit,
    keys: Any,
    num_samples: int,
    args: tuple | None,
    batch_size: int,
    mesh: Mesh | None,
    rows: slice,
) -> ArvizSource:
    """The draws of each seed's guide as a chain: R-hat then tells whether the seeds found the same."""
    known = fit.args if args is None else args
    model = fit.objective.model
    own = [] if model is None or known is None else list(model.init(jax.random.key(0), *known))
    if own:
        raise ValueError(
            f"to_arviz: this fit holds {fit.num_seeds} runs, each with a model of its own: its parameters are {own}. Choose a "
            "run, fit.best() or fit.seed(0), or fit a model without parameters."
        )
    parts = [
        _from_fit(
            fit.seed(s), {**keys, "guide": jax.random.fold_in(keys["guide"], s)}, num_samples, args, batch_size,
            mesh, rows,
        )
        for s in range(fit.num_seeds or 0)
    ]  # fmt: skip
    chain = lambda *arrays: np.concatenate(arrays)
    stack = lambda field: jax.tree.map(chain, *(getattr(p, field) for p in parts))
    text = "one for each seed: R-hat compares what they found, and not how a chain moves"
    return dataclasses.replace(
        parts[0], choices=stack("choices"), stats=stack("stats"), given=stack("given"),
        num_chains=len(parts), attrs={**parts[0].attrs, "chains": text},
    )  # fmt: skip


def _from_particles(
    result: Any, keys: Any, num_samples: int, args: tuple | None, model: ModelFn
) -> ArvizSource:
    """Equally weighted particles: their weights are those of a whole history, not ratios of two densities."""
    if keys is None:
        raise ValueError(
            "to_arviz: argument 'key' is missing: weighted particles are resampled. Pass key=jax.random.key(0)."
        )
    check_not_lost("to_arviz", result)
    drawn = result.sample(keys["guide"], num_samples)
    choices = {"x": drawn} if isinstance(drawn, jax.Array) else drawn
    if not isinstance(choices, Mapping):
        raise ValueError(
            "to_arviz: the particles of this FeynmanKac have no names. Pass result.sample(key, num_samples) as a mapping "
            "from names to arrays."
        )
    attrs: dict[str, Any] = {
        "log_evidence": float(result.log_evidence),
        "min_ess": float(result.ess.min()),
    }
    attrs["log_evidence_std_error"] = _evidence_error(result)
    if hasattr(result, "evidence"):
        attrs["evidence"] = result.evidence
    program = None if model is None else ppl.as_program(model)
    args = _args_of(result, program, choices, args)
    return ArvizSource(
        {name: np.asarray(x) for name, x in choices.items()}, "by sequential Monte Carlo, resampled", program, args or (),
        attrs=attrs,
    )  # fmt: skip


def check_not_lost(method: str, result: Any) -> None:
    """Refuse a particle run of which no particle was left: nothing stands for the posterior."""
    lost = np.asarray(result.failed_at)
    if (lost >= 0).any():
        raise ValueError(
            f"{method}: the {type(result).__name__} lost all its particles at weighing {int(lost.max())} (failed_at), and what "
            "is left are draws of nothing. Take more particles, a proposal that looks at the data, or densities with tails that "
            "reach them."
        )


def _evidence_error(result: Any) -> float | str:
    """The standard error of a run's log evidence from its genealogy, nats, or why one run does not show it."""
    for form in ("unbiased", "upper") if isinstance(result, SMCResult) else ():
        with contextlib.suppress(ValueError):  # no genealogy, or a scheme of which it says nothing
            variance = float(evidence_variance(result, form=form))
            if variance >= 0 and np.isfinite(variance):
                return variance**0.5
    return "not known from this run; inference.particles.replicate tells it from several"


def _from_chains(result: PMMHResult, args: tuple | None, model: ModelFn) -> ArvizSource:
    """One chain, or several of one length, [chains, samples, ...]."""
    num_chains = result.log_joint.shape[0] if result.log_joint.ndim == 2 else 1
    in_a_row = lambda x: np.asarray(x).reshape(-1, *x.shape[result.log_joint.ndim :])
    stats = {"log_joint": in_a_row(result.log_joint), "is_accepted": in_a_row(result.is_accepted)}
    program = None if model is None else ppl.as_program(model)
    choices = {name: in_a_row(x) for name, x in result.choices.items()}
    args = _args_of(result, program, choices, args)
    return ArvizSource(choices, "by PMMH", program, args or (), stats, num_chains=num_chains)


def _from_draws(draws: Draws, args: tuple | None) -> ArvizSource:
    args = _args_of(draws, draws.model, draws.choices, args)
    if args is None:
        raise ValueError(
            "to_arviz: argument 'args' is missing: the draws were saved without their data. Pass args=(...) with all of it."
        )
    certificate = draws.certificate
    attrs = {
        "certified": int(certificate.is_certified),
        "problems": "; ".join(certificate.problems),
    }
    return ArvizSource(
        draws.choices, f"of the posterior, by {certificate.method}", draws.model, args, dict(draws.statistics),
        num_chains=draws.num_chains, attrs=attrs,
    )  # fmt: skip


def origin_of(result: Any) -> MadeFor:
    """What the draws of any result were made for, as far as it is known."""
    if isinstance(result, Draws | Fit):
        return MadeFor(result.args, result.labels)
    if is_mcmc(result) and result.last_state is not None:
        return MadeFor(as_data(joined(*mcmc_arguments(result))))
    return getattr(result, "made_for", None) or MadeFor()


def _args_of(
    result: Any, program: ppl.Program | None, choices: Mapping[str, Any], args: tuple | None
) -> tuple | None:
    """The arguments given, refused if the draws belong to other rows, or those of the result; None if these are not known."""
    before = origin_of(result).args
    if program is not None and args is not None and before is not None:
        _check_same_rows(program, choices, args, before)
    return before if args is None else args


def _check_same_rows(
    model: ppl.Program, choices: Mapping[str, Any], args: tuple, before: tuple
) -> None:
    """Refuse log-likelihoods of new rows under draws of sites that belong to the rows before, as a fit does."""
    check_axes("to_arviz", model, args, before)
    if is_of_fit(model, args, before):
        return
    if other := of_other_rows(model, list(choices), args, before, with_steps=True):
        shapes = {name: np.shape(choices[name])[1:] for name in other}
        raise ValueError(
            f"to_arviz: the sites {shapes} (name and shape) belong to the rows that the draws were made for, and argument 'args' "
            "has others: their log-likelihoods would be those of new rows under the old rows' own draws. Leave 'args' out, for "
            "the rows of the draws; predict new rows by inference.predict(model, draws, key, ...), or draw for them too."
        )


def is_mcmc(result: object) -> bool:
    from numpyro.infer import MCMC

    return isinstance(result, MCMC)


def _from_mcmc(mcmc: Any, args: tuple | None) -> ArvizSource:
    if mcmc.last_state is None:
        raise ValueError("to_arviz: the MCMC holds no draws. Call mcmc.run(key, *args) first.")
    samples = mcmc.get_samples(group_by_chain=True)
    if not isinstance(samples, Mapping):  # a potential without a model: ArviZ names its parts
        return ArvizSource({}, "by MCMC", mcmc=mcmc)
    choices = {name: np.asarray(v).reshape(-1, *v.shape[2:]) for name, v in samples.items()}
    model, (run_args, kwargs) = mcmc.sampler.model, mcmc_arguments(mcmc)
    if model is not None:
        model = ppl.as_program(functools.partial(model, **kwargs) if kwargs else model)
    if args is not None and model is not None:
        _check_same_rows(model, choices, args, run_args)
    args = run_args if args is None else args
    return ArvizSource(choices, "by MCMC", model, args or (), num_chains=mcmc.num_chains, mcmc=mcmc)


def _from_trace(trace: ppl.Trace, stats: dict[str, np.ndarray]) -> ArvizSource:
    """A batch of traces speaks for itself: axes, log-probs and data are in it."""
    trace = jax.tree.map(np.asarray, dataclasses.replace(trace, retval=None))
    sites = dict(trace.sites)
    values = {**trace.choices, **trace.observed, **trace.deterministic}
    for name, value in values.items():
        rank = len(sites[name].dims) + len(sites[name].event_shape)
        if value.ndim != rank + 1:
            raise ValueError(
                f"Site '{name}': the trace holds an array of shape {value.shape}, but one run of the program has "
                f"{rank} axes there, and one leading axis of draws is needed. Make many runs: "
                "jax.vmap(lambda k: program.simulate(k, *args))(keys)."
            )
    for name, value in trace.observed.items():
        if not ((value == value[:1]) | (value != value)).all():
            raise ValueError(
                f"Site '{name}': its observed value differs between the draws, so that there is no one data set. "
                "Give every run the same data, or pass trace.choices with model=program, args=(...)."
            )
    of_kind = lambda kind: {n: lp for n, lp in trace.log_probs.items() if sites[n].kind == kind}
    scaled = scaled_sites(sites)
    given = {
        "deterministic": trace.deterministic,
        "log_likelihood": {n: x for n, x in of_kind("observed").items() if n not in scaled},
        "log_prior": of_kind("latent"),
    }
    observed = {name: value[0] for name, value in trace.observed.items()}
    content = Content(sites=sites, data={"observed_data": observed}, cells=_cells_of(trace))
    return ArvizSource(trace.choices, "as given", stats=stats, given=given, content=content)


def _cells_of(trace: ppl.Trace) -> dict[str, np.ndarray]:
    """Cells of observations under a mask, and of sites with `obs_mask`.

    Of these, a cell is missing where the whole follows the imputed site (ties are told by its log-prob).
    """
    observed = {n: x.any(0) for n, x in trace.masks.items() if trace.sites[n].kind == "observed"}
    cells: dict[str, Any] = {n: x for n, x in observed.items() if not x.all()}
    for name, whole in trace.deterministic.items():
        drawn = trace.choices.get(f"{name}_unobserved")
        seen = trace.observed.get(f"{name}_observed")
        if drawn is not None and seen is not None:
            log_prob = trace.log_probs[f"{name}_unobserved"]
            follows, fixed = (whole == drawn).all(0), (whole == seen).all(0)
            missing = whole_events(np.asarray(follows & ~fixed), log_prob.ndim - 1)
            if missing.ndim < log_prob.ndim:
                axes = tuple(range(log_prob.ndim - 1, follows.ndim))
                follows, fixed = follows.all(axes), fixed.all(axes)
                missing = follows & (~fixed | (log_prob != 0).any(0))
            cells |= {f"{name}_unobserved": missing, f"{name}_observed": ~missing}
    return cells


def _check_lengths(source: ArvizSource) -> None:
    shapes = {name: np.shape(v) for name, v in {**source.choices, **source.stats}.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if not source.choices or len(lengths) != 1 or () in lengths:
        raise ValueError(
            "to_arviz: the draws need one leading axis of equal length at every site and in "
            f"log_weights; got the shapes {shapes}. Stack the draws along axis 0."
        )
