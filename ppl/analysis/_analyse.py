"""From a program and a choice of strategies to everything the estimator needs to know.

Steps: trace once under the engine (`strategies/_engine.py`); analyse the jaxpr (`jaxprs/_dependence.py`); split the result into
additive terms (`jaxprs/_additive.py`); close the relations over sites, so that each term knows every site it depends
on, directly or through other sites; lay out enumeration. All of this happens at trace time and costs nothing
in the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import Atom, Jaxpr, Literal, own_caches
from .._foreign import named_errors
from ..enumeration import (
    Dimensions,
    Reader,
    dimensions_of,
    is_fully_enumerated,
    is_sampled,
    layouts_of,
)
from ..evaluation import hoist_noise, is_on
from ..inputs import refuse_own_noise
from ..jaxprs import Analysis, Fact, Relations, Term, aligned, join, split
from ..language import apply
from ..strategies import Decision, Engine, StrategySite
from ._analysed import Analysed, Numbers
from ._control import Controlled, check_mean
from ._decisions import with_decisions
from ._flip_groups import check_flips
from ._refusals import check_partly_pathwise, check_relaxed, check_sites
from ._replay import check_replay, replay_axes, replay_groups
from ._rows import KIND as ROWS, row_suspects
from ._upstream import closed_relations, direct_relations, relations_of, through_sites


def analyse(
    fn: Callable[..., PyTree],
    params: PyTree,
    key: jax.Array,
    args: tuple[PyTree, ...],
    *,
    strategies: Mapping[str, Any] | str | None,
    num_replicates: int = 1,
    demoted: Mapping[str, set[str]] | None = None,
    num_params: int | None = None,
) -> Analysed:
    """Trace and analyse `fn(params, *args)`.

    `num_params`: how many of the leaves of `params`, the first ones, are parameters; the others are data. None: all.

    Raises:
        ValueError: any of the refusals listed in `ppl.expectation`.
    """
    record: dict[str, Any] = {}

    def run(params: PyTree, key: jax.Array) -> PyTree:
        engine = Engine(key, strategies, demoted)
        # Loops are analysed as loops, also while `jax.disable_jit` unrolls them.
        name = getattr(fn, "__name__", type(fn).__name__)
        with jax.disable_jit(False), own_caches(), engine, named_errors(engine, name):
            try:
                result = apply(fn, (params, *args))
            except TypeError as err:
                if not engine.relaxed:
                    raise
                raise TypeError(
                    f"{err} Sites and strategies {engine.relaxed} hand the program real numbers in place of integers, which "
                    "cannot be indices. Use their values in arithmetic only (products with a "
                    "ppl.distributions.OneHotCategorical), or choose 'enum', 'mvd' or 'reinforce_loo' for them."
                ) from err
        engine.check_patterns()
        record.update(sites=engine.frame.sites, infos=engine.frame.infos, plates=engine.plates)
        record.update(subsampled=engine.subsampled, alarmed=engine.alarmed, params=engine.params)
        means = []
        if isinstance(result, Controlled):
            means, result = [result.mean], result.with_unit_coefficient
        return _as_scalar(result), engine.frame.numbers, means

    # 1. Trace. The jaxpr's inputs are the leaves of params and the key; its outputs the result, the numbers of all sites
    # (value, log_prob, active, ... by address) and, with a control variate, its mean.
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, key)
    leaves = jax.tree.leaves(params)
    if leaves or not record["params"]:  # else networks begin here, by keys of their own
        name = getattr(getattr(fn, "__self__", fn), "name", getattr(fn, "__name__", "expectation"))
        refuse_own_noise(name, closed, [False] * len(leaves) + [True])
    # 2. Rewrite. Noise that keys and step numbers decide is drawn before its loop, and comparisons of draws under `Boundary`
    # become sites of their own (`Decision`), with indices behind those of the program's sites.
    sites = {s.index: s for s in record["sites"].values()}
    if is_on("noise"):
        closed = hoist_noise(closed, [i for i, s in sites.items() if is_fully_enumerated(s)])
    closed, decisions = with_decisions(closed, sites, jax.tree.leaves(args))
    num_params = len(jax.tree.leaves(params)) if num_params is None else num_params
    is_parameter = [i < num_params for i in range(len(closed.jaxpr.invars))]
    outvars = closed.jaxpr.outvars
    tree = jax.tree.structure(shapes)
    _, numbers, means = jax.tree.unflatten(tree, outvars[: tree.num_leaves])
    table = {s.index: _numbers(numbers[s.address]) for s in sites.values()}
    for index, (decision, found) in decisions.items():
        sites[index], table[index] = decision, _numbers(found)
    # 3. Facts of every variable: what it depends on, its range, its support; parameters and draws are where they begin.
    draws = {i: (s.range, s.noise) for i, s in sites.items()}
    facts = Analysis(closed, is_parameter, draws, jax.tree.leaves(args))
    for mean in means:
        check_mean(facts, mean, sites)
    for s in record["sites"].values():
        found = numbers[s.address]
        moved = [p for p in found["probabilities"] if _may_vanish(facts[p])]
        table[s.index] = _numbers(found, tuple(moved))
    # 4. Refusals that need no terms.
    result = outvars[0]
    rows = row_suspects(record["infos"], numbers, sites, facts)
    check_sites(sites, table, facts)
    check_partly_pathwise(sites, closed.jaxpr)
    if all(site.strategy.is_pathwise for site in sites.values()):
        # The derivative of the result itself is the estimate: nothing is split, nothing is weighted.
        terms, relations, upstream, layouts = [], [], {}, {}
        scores: frozenset[int] = frozenset()
        dimensions = Dimensions([], [], {})
    else:
        # 5. Terms: result = sum_j a_j c_j, each with what it depends on. Direct relations stop at the next site; closed over
        # sites between (i -> k -> term), they say which scores the term is a cost of.
        bounds = {i: s.bounds for i, s in sites.items() if s.bounds is not None}
        # In one piece, so that a site's density at its own draw is known again.
        whole = {n.log_prob for n in table.values() if not isinstance(n.log_prob, Literal)}
        terms = split(closed.jaxpr, result, facts, bounds, whole)
        direct = direct_relations(sites, {i: n.log_prob for i, n in table.items()}, facts)
        upstream = closed_relations(direct)
        own = [relations_of(facts, t.variable, sites) for t in terms]
        relations = [through_sites(r, upstream) for r in own]
        # 6. Enumeration: which states each term and each site's numbers are evaluated in.
        readers = _readers(sites, table, facts, own, direct, upstream)
        layouts = layouts_of(sites, readers)
        dimensions = dimensions_of(sites, readers, layouts)
        scores = _own_scores(closed.jaxpr, terms, sites, table)
        # 7. Refusals of replays: terms that one element reaches are evaluated together with it replaced.
        for index, site in sites.items():
            if isinstance(site.strategy, Decision):
                check_flips(site, index, relations)
            for is_used, together in (
                ("replay" in site.strategy.calls, False),
                ("replay_together" in site.strategy.calls, True),
            ):
                axes = replay_axes(site, index, upstream, together=together)
                for joint, members in replay_groups(site, index, relations, axes).items():
                    if is_used:
                        check_replay(site, joint, [relations[j][index] for j in members])
        check_relaxed(sites, relations, upstream)
    replicates = max([num_replicates, *(s.strategy.num_replicates for s in sites.values())])
    return Analysed(
        closed, result, terms, relations, upstream, sites, table, scores, layouts, dimensions, replicates,
        {a: i for a, i in record["infos"].items() if i.kind != ROWS}, record["plates"], facts, shapes[0].dtype, rows,
        record["subsampled"], record["alarmed"], bool(means),
    )  # fmt: skip


def _readers(
    sites: dict[int, StrategySite],
    table: dict[int, Numbers],
    facts: Analysis,
    terms: list[Relations],
    direct: dict[int, Relations],
    upstream: dict[int, Relations],
) -> list[Reader]:
    """Terms and sites, with how they depend on sites: through all others, and up to the nearest enumerated ones."""
    # An enumerated site cuts the way: what lies behind it is seen through its own state. Without the direct relations of
    # enumerated sites, the closure stops there.
    near = closed_relations({i: r for i, r in direct.items() if not is_fully_enumerated(sites[i])})
    readers = [
        Reader("a cost", through_sites(r, upstream), [through_sites(r, near)]) for r in terms
    ]
    for i, site in sites.items():
        if site.strategy.is_pathwise:
            continue
        # A sampled site is drawn anew in each state upstream; its numbers are read in the states that their atoms see.
        read = [near[i]] if is_sampled(site) else []
        read += [through_sites(relations_of(facts, a, sites), near) for a in table[i].read]
        itself: Relations = {i: tuple(aligned(a) for a in range(len(site.sizes)))}
        closed = join([itself, upstream[i]])
        readers.append(Reader(f"site '{site.address}'", closed, read, i))
    return readers


def _may_vanish(probability: Fact) -> bool:
    """Whether something may move it, and it may be 0 by more than rounding."""
    return bool(probability.relations) and not probability.range.is_positive


def _as_scalar(result: ArrayLike) -> jax.Array:
    if not hasattr(result, "shape") and not isinstance(result, int | float):
        raise TypeError(
            f"The function of an expectation must return one real number, got {type(result).__name__}. "
            "Return a scalar, e.g. model.log_density(choices, x) - trace.log_density."
        )
    result = jnp.asarray(result)
    if result.shape != () or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(
            "The function of an expectation must return one real number, got an array of shape "
            f"{result.shape} and dtype {result.dtype}. Sum it (for a sum of costs) or take its mean."
        )
    return result


def _numbers(numbers: dict[str, PyTree], probabilities: tuple[PyTree, ...] = ()) -> Numbers:
    local, local_tree = jax.tree.flatten((numbers["local"], probabilities))
    return Numbers(
        numbers["value"],
        numbers["log_prob"],
        numbers["active"],
        tuple(numbers["fixed"]),
        tuple(local),
        local_tree,
    )


def _own_scores(
    jaxpr: Jaxpr, terms: list[Term], sites: dict[int, StrategySite], table: dict[int, Numbers]
) -> frozenset[int]:
    """Terms that are a sampled site's log-prob at its own draw: E[d log q] = 0, given all that is upstream."""
    origin = {v: (eqn, i) for eqn in jaxpr.eqns for i, v in enumerate(eqn.outvars)}

    def source(atom: Atom) -> PyTree:
        """The variable inside a scan's body that a stacked output shows, so that two outputs of one value agree."""
        if isinstance(atom, Literal) or atom not in origin:
            return atom
        eqn, i = origin[atom]
        return eqn.params["jaxpr"].jaxpr.outvars[i] if eqn.primitive.name == "scan" else atom

    sampled = [
        i
        for i, s in sites.items()
        if s.strategy.kind == "held" and not isinstance(s.strategy, Decision)
    ]
    own = {id(source(table[i].log_prob)) for i in sampled}
    return frozenset(j for j, term in enumerate(terms) if id(source(term.variable)) in own)
