"""Whether a program is told anything: given nothing its posterior is the prior, and a fit of it looks like any other.

Data are forgotten in two ways. A statement without `obs` is latent, and so is one whose `obs` is an argument that is None. The
second is seen by running the program with an array in the place of the None: a latent site that then is observed is what the
argument stands for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ...ppl._compat import ClosedJaxpr, Var, is_concrete, jaxpr_as_fun
from ...ppl._types import Key
from ...ppl.language import Program, joined, parted, where_not_finite
from ...ppl.traces import SiteInfo, Trace, stand_ins
from .._arguments import Arguments, array_names, leaf_names, simulated
from .._depends import depends
from ._held import has_nan, is_real
from ._readers import Readers
from ._runs import TracedRun, check_codes


def check_observed(method: str, program: Program, *, is_told: bool, more: str = "") -> None:
    """Refuse to look for the posterior of a program that observes nothing.

    Raises:
        ValueError: `is_told` is false; `more` ends the message.
    """
    if not is_told:
        raise ValueError(
            f"{method}: {program!r} has no observation and no factor, so that there is nothing to weigh. Pass the data, if they "
            "were forgotten (a statement whose obs is None is latent); draws from the program are made by its simulate."
            + more
        )


def check_branches(method: str, trace: Trace) -> None:
    """Refuse a continuous latent site of a branch: where the branch is not taken it has no law, and the rest no density in it.

    Raises:
        ValueError: with the site's name.
    """
    for name, x in trace.choices.items():
        in_branch = any(r.kind == "cond" and r.size < 2 for r in trace.sites[name].regions)
        if in_branch and jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{method}: site '{name}' is drawn in a branch (ppl.cond), and has no law where that is not taken, so that there "
                "is no posterior density of it. Draw it before the branch and use it inside, which tells the same, or use "
                "inference.smc."
            )


def check_free(method: str, run: TracedRun) -> None:
    """Refuse latent sites whose value is fixed: by NumPyro's `substitute`, which a sampler would override, or by a point mass.

    Raises:
        ValueError: with the site's name.
    """
    is_drawn = depends(run.closed.jaxpr, [True, *[False] * len(run.arrays)])  # by the key
    marks = jax.tree.unflatten(jax.tree.structure(run.trace), is_drawn).choices
    for name, is_free in marks.items():
        if not is_free or run.trace.sites[name].distribution == "Delta":
            raise ValueError(
                f"{method}: site '{name}' of {run.program!r} is latent and has one value, by handlers.substitute or by a Delta "
                "law, so that there is nothing to infer. Compute it by numpyro.deterministic; fix it by "
                "ppl.intervene(model, {name: value}), or observe it by numpyro.handlers.condition."
            )


def check_numbers(method: str, run: TracedRun) -> None:
    """Refuse data that are no numbers, where an observation is one or has no density for them; those under a mask are never read.

    Cost: a run of the program with and one without them, and none where all data are numbers.

    Raises:
        ValueError: with the site's and the arguments' names.
    """
    program, args, arrays = run.program, run.args, run.arrays
    if not is_concrete(arrays) or not any(map(has_nan, (*run.closed.consts, *arrays))):
        return
    split, key = Arguments(args), jax.random.key(0)

    def observed(key: Key, arrays: list[Array]) -> dict[str, Array]:
        """Which sites have a value, or a density, that is no number."""
        with stand_ins():
            trace = program.simulate(key, *split.join(arrays))
        found = {}
        for name, log_prob in trace.log_probs.items():  # 0 under a mask
            x = trace.observed.get(name, jnp.zeros(()))
            is_lost = is_real(x) and jnp.isnan(x).any() & ~jnp.isfinite(log_prob).all()
            if trace.sites[name].kind != "latent":
                found[name] = jnp.isnan(log_prob).any() | is_lost
        return found

    closed, shapes = jax.make_jaxpr(observed, return_shape=True)(key, arrays)

    def met(change: Callable[[Array], Array]) -> set[str]:
        consts, given = [change(x) for x in closed.consts], [change(x) for x in arrays]
        found = jax.jit(jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts)))(key, *given)
        return {n for n, is_met in zip(sorted(shapes), found, strict=True) if is_met}

    without = met(lambda x: jnp.where(jnp.isnan(x), 0, x) if is_real(x) else x)
    if sites := sorted(met(lambda x: x) - without):
        raise ValueError(
            f"{method}: site '{sites[0]}' of {program!r} meets numbers that are NaN, and has no density there. "
            f"{where_not_finite(args) or 'Constants of the program hold NaN'}: remove such rows, or mark the cells as missing, "
            "x = ppl.sample(name, law, obs=filled, obs_mask=seen)."
        )


def categories_of(raw: tuple, program: object) -> set[str]:
    """Names of the arguments that are categories of pandas."""
    named = zip(leaf_names(program, raw), jax.tree.leaves(raw), strict=True)
    return {name for name, x in named if hasattr(getattr(x, "dtype", None), "categories")}


def check_categories(method: str, run: TracedRun | None, raw: PyTree) -> None:
    """Refuse categories of pandas that are observed under a law of real numbers: their codes would be taken for measurements.

    Args:
        method: the name of the call, for the message.
        run: of the program.
        raw: its arguments as they were given.

    Raises:
        TypeError: with the site's name.
        ValueError: as `check_codes`.
    """
    if run is None or not (given := categories_of(raw, run.program)):
        return
    made = {id(eqn.outvars[0]): eqn for eqn in run.closed.jaxpr.eqns if eqn.outvars}
    inputs = {id(var): name for var, name in _inputs(run).items()}
    outputs = jax.tree.unflatten(jax.tree.structure(run.trace), run.closed.jaxpr.outvars)
    for name, var in outputs.observed.items():
        while (eqn := made.get(id(var))) and eqn.primitive.name == "convert_element_type":
            var = eqn.invars[0]
        is_code = inputs.get(id(var)) in given
        site = run.trace.sites[name]
        support = getattr(getattr(dist, site.distribution, None), "support", None)
        if is_code and not getattr(support, "is_discrete", True):
            raise TypeError(
                f"{method}: site '{name}' observes categories of pandas under {site.distribution}, a law of real numbers, which "
                "would take their codes 0, 1, 2, ... for measurements. Observe them under dist.Categorical or dist.Bernoulli; "
                "numbers that were read as text become numbers by pd.to_numeric."
            )
    check_codes(method, run, raw)


def tells(sites: Mapping[str, SiteInfo]) -> bool:
    """Whether one of the sites gives a program a density that its draws do not have; no data do not, but as those of a scan."""
    # The event of a factor is empty.
    shape = lambda s: s.batch_shape if s.kind == "factor" else (*s.batch_shape, *s.event_shape)
    told = [s for s in sites.values() if s.kind in ("observed", "factor") and s.alters_law]
    return any(s.regions or 0 not in shape(s) for s in told)


def check_none(method: str, program: Program, trace: Trace, args: tuple, remedy: str) -> None:
    """Refuse an argument that is None where it would have been observed and nothing that is observed depends on it.

    Such a site is drawn, and a posterior holds a prediction in the place of the data. One that observations depend on is a
    latent variable like others: they tell of it.

    Raises:
        ValueError: with the argument's and the site's name.
    """
    readers = Readers(program, args, trace)
    for argument, sites in _stand_ins(program, trace, args):
        if idle := [n for n in sites if not readers.is_heard(n)]:
            raise ValueError(
                f"{method}: argument {argument} of {program!r} is None, so that site '{idle[0]}' is drawn, and no observation "
                f"depends on it: it would be fitted to its prior. Pass the data, if they were forgotten. {remedy}"
            )


def warn_of_unread(method: str, run: TracedRun) -> None:
    """Warn of a latent site that nothing observed depends on, of the shape of an argument that no statement reads.

    It may be a statement whose `obs=` was forgotten: its data would count for nothing.
    """
    variables = [v for eqn in run.closed.jaxpr.eqns for v in eqn.invars]
    read = {id(v) for v in (*variables, *run.closed.jaxpr.outvars)}
    readers = Readers(run.program, run.args, run.trace)
    for var, name in _inputs(run).items():
        shape = getattr(var.aval, "shape", ())
        if id(var) in read or not shape:
            continue
        for site, x in run.trace.choices.items():
            is_like = x.shape == shape and not run.trace.sites[site].is_imputed
            if is_like and not readers.is_heard(site):
                warnings.warn(
                    f"{method}: no statement of {run.program!r} reads the argument '{name}', and site '{site}', of its shape "
                    f"{list(x.shape)}, is drawn, though no observation depends on it. If it was to be observed, write obs={name} "
                    "there; else leave the argument out.",
                    stacklevel=4,
                )


def _inputs(run: TracedRun) -> dict[Var, str]:
    """The variables that stand for arguments, each with its name."""
    return dict(zip(run.closed.jaxpr.invars[1:], array_names(run.program, run.args), strict=True))


def _stand_ins(program: Program, trace: Trace, args: tuple) -> Iterable[tuple[str, list[str]]]:
    """Arguments, or parts of them, that are None, each with the latent sites that would be observed in its place."""
    positional, keywords = parted(args)
    try:
        bound = inspect.signature(program).bind(*positional, **keywords)
    except (TypeError, ValueError):  # it says itself what is wrong with them
        return
    bound.apply_defaults()
    names, is_none = list(bound.arguments), lambda x: x is None
    leaves, treedef = jax.tree_util.tree_flatten_with_path(list(bound.arguments.values()), is_none)
    latent = {n: x for n, x in trace.choices.items() if not trace.sites[n].is_imputed}
    shapes = dict.fromkeys(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in latent.values())
    values = [leaf for _, leaf in leaves]
    for number, (path, leaf) in enumerate(leaves):
        if leaf is not None:
            continue
        found: list[str] = []
        for shape in shapes:
            given = [*values[:number], shape, *values[number + 1 :]]
            bound.arguments.update(zip(names, jax.tree.unflatten(treedef, given), strict=True))
            found += _observed_now(program, latent, joined(bound.args, bound.kwargs))
        if found:
            name = names[path[0].idx]  # pyright: ignore[reportAttributeAccessIssue]
            yield f"'{name}'{jax.tree_util.keystr(path[1:])}", found


def _observed_now(program: Program, latent: Mapping[str, object], args: tuple) -> list[str]:
    try:
        sites = simulated(program, args).sites
    except Exception:  # an array of this shape is not what the argument is for
        return []
    return [n for n in latent if n in sites and sites[n].kind == "observed"]
