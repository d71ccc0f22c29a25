"""From a program and a choice of strategies to everything the estimator needs to know.

Steps: trace once under the engine (`strategies/_engine.py`); analyse the jaxpr (`jaxprs/_dependence.py`); split the result into
additive terms (`jaxprs/_additive.py`); close the relations over sites, so that each term knows every site it depends
on, directly or through other sites; lay out enumeration. All of this happens at trace time and costs nothing
in the compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import Atom, ClosedJaxpr, Jaxpr, Literal, own_caches
from .._foreign import named_errors
from ..enumeration import (
    Dimensions,
    Reader,
    dimensions_of,
    is_fully_enumerated,
    is_sampled,
    layouts_of,
)
from ..evaluation import Layout, hoist_noise, is_on
from ..inputs import refuse_own_noise
from ..jaxprs import (
    PARAMS,
    Analysis,
    Fact,
    Relations,
    Term,
    aligned,
    join,
    other_derivatives,
    site_p,
    split,
)
from ..language import apply
from ..strategies import GAMMA_FAMILY, Boundary, Decision, Engine, StrategyError, StrategySite
from ..traces import SiteInfo
from ._control import Controlled, check_mean
from ._decisions import with_decisions
from ._flip_groups import check_flips
from ._replay import check_replay, replay_axes, replay_groups
from ._rows import KIND as ROWS, RowSuspect, row_suspects
from ._upstream import closed_relations, direct_relations, relations_of, through_sites


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Where a site's numbers stand in the traced program: atoms of its jaxpr."""

    value: PyTree
    log_prob: Any
    active: Any
    fixed: tuple[Any, ...]
    local: tuple[PyTree, ...]
    local_tree: Any

    @property
    def probabilities(self) -> tuple[PyTree, ...]:
        """Those that may be 0, where the strategy misses such values (`distributions/_null_values.py`)."""
        return jax.tree.unflatten(self.local_tree, self.local)[1]

    @property
    def read(self) -> tuple[PyTree, ...]:
        """The atoms that an estimate may read in dimensions of enumerated sites."""
        return (self.log_prob, self.active, *self.local)


@dataclasses.dataclass(frozen=True)
class Analysed:
    """A traced program with all that the estimator needs.

    Attributes:
        closed: the traced program; its inputs are the leaves of the parameters and the key.
        result: atom of the scalar result.
        terms: additive terms of the result.
        relations: per term, its closed relations to the sites that are not pathwise.
        site_relations: per site index, its closed relations to sites upstream.
        sites: by index.
        numbers: by index.
        scores: terms that are the log-prob of a sampled site at its own draw. Their derivative has mean zero, so it is left out.
        layouts: by index, for enumerated sites with something downstream.
        dimensions: in those of which enumerated sites terms and numbers of sites are evaluated.
        num_replicates: independent runs of the program.
        infos: site descriptions by address, in program order.
        plates: plate sizes.
        rows: rows of plates that may meet, to be tried.
        subsampled: plates that stand for more rows than they run on: name -> (rows they run on, rows they stand for).
        alarmed: eliminated programs that may have a probability of 0 which parameters move.
        is_controlled: the function returns a `Controlled`; the program is that of the coefficient 1.
    """

    closed: ClosedJaxpr
    result: Any
    terms: list[Term]
    relations: list[Relations]
    site_relations: dict[int, Relations]
    sites: dict[int, StrategySite]
    numbers: dict[int, Numbers]
    scores: frozenset[int]
    layouts: dict[int, Layout]
    dimensions: Dimensions
    num_replicates: int
    infos: dict[str, SiteInfo]
    plates: dict[str, int]
    facts: Analysis
    out_dtype: Any
    rows: list[RowSuspect]
    subsampled: dict[str, tuple[int, float]]
    alarmed: set[str]
    is_controlled: bool = False

    @property
    def may_have_null_values(self) -> bool:
        """Whether a parameter may move a probability of 0 that a site's strategy misses (`distributions/_null_values.py`)."""
        return bool(self.alarmed) or any(n.probabilities for n in self.numbers.values())

    @property
    def is_pathwise(self) -> bool:
        """Whether every site is pathwise: the program is then differentiated as it stands."""
        return all(site.strategy.is_pathwise for site in self.sites.values())


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
    _check_partly_pathwise(sites, closed.jaxpr)
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
        _check_relaxed(sites, relations, upstream)
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


def _check_relaxed(
    sites: dict[int, StrategySite], relations: list[Relations], upstream: dict[int, Relations]
) -> None:
    """Refuse relaxed values where a sampled site lies downstream: its draw jumps as they move."""
    for index, site in sites.items():
        if "slope" not in site.strategy.calls:
            continue
        jumping = [
            other.address
            for i, other in sites.items()
            if index in upstream[i]
            and not other.strategy.is_pathwise
            and other.strategy.kind != "enumerated"
            and any(i in r for r in relations)
        ]
        if jumping:
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' differentiates the cost at relaxed values, "
                f"but the sampled site '{jumping[0]}' depends on this one, and its draw would jump. Enumerate "
                f"'{jumping[0]}', or use 'disarm', 'reinforce' or ppl.Relax for '{site.address}', e.g. "
                f"strategies={{'{site.name}': 'reinforce'}}.",
            )


def check_sites(sites: dict[int, StrategySite], table: dict[int, Numbers], facts: Analysis) -> None:
    """Refuse sites whose strategy has no derivative in what `facts` calls a parameter.

    Raises:
        StrategyError: naming site and remedy.
    """
    _check_supports(sites, facts)
    _check_fixed(sites, table, facts)


def _check_supports(sites: dict[int, StrategySite], facts: Analysis) -> None:
    """Refuse scores of sites whose support moves, or may."""
    for index, site in sites.items():
        if site.strategy.is_pathwise or is_fully_enumerated(site):
            continue
        moved = set(facts.supports[index].relations)
        pathwise = {i for i in moved if isinstance(i, int) and sites[i].strategy.moves_value}
        if not (PARAMS in moved or pathwise or site.unknown_support):
            continue
        if PARAMS in moved:
            what = f"the support of {site.distribution} depends on a parameter"
        elif pathwise:
            what = (
                f"the support of {site.distribution} depends on the reparameterised site "
                f"'{sites[min(pathwise)].address}'"
            )
        else:
            what = (
                f"the support of {site.distribution} cannot be known, since {site.unknown_support}"
            )
        raise StrategyError(
            site.name,
            f"Site '{site.address}': {what}, so strategy '{site.strategy.name}' would miss the boundary's part of the "
            f"gradient. {_fixed_support(site)} (Where the density vanishes at the edge that moves, that part is zero, but nobody "
            "looks: draw such a law, too, from a fixed support, e.g. b of Beta(2, 2), then low + (high - low) * b, which has "
            "the same gradient.)",
        )


def _fixed_support(site: StrategySite) -> str:
    """What to do about a support that moves: only what serves this site."""
    remedies = ["'reparam'"] if site.is_reparameterisable else []
    remedies.append(
        "a fixed support that is transformed afterwards (u of Uniform(0, 1), then low + (high - low) * u)"
        if not site.distribution.startswith("Mixture")
        else "a site for the component and one for the value in each, each with its own strategy"
    )
    if site.unknown_support:
        remedies.append("declare the law's `support` as a set")
    return f"Use {', or '.join(remedies)}."


def _check_partly_pathwise(sites: dict[int, StrategySite], jaxpr: Jaxpr) -> None:
    """Refuse derivatives of the program's own where only a part of the estimate would follow them."""
    for index, site in sites.items():
        if not site.strategy.is_partly_pathwise:
            continue
        starts = lambda eqn, i=index: eqn.primitive is site_p and eqn.params["index"] == i
        if found := sorted(other_derivatives(jaxpr, jaxpr.outvars[:1], starts)):
            rest, remedy = "a score", "'reinforce' (which sees values only)"
            if isinstance(site.strategy, Boundary):
                rest, remedy = (
                    "made of jumps of values",
                    "ppl.Boundary('reinforce') (which sees values only)",
                )
            follows = "'implicit'" if site.distribution in GAMMA_FAMILY else "'reparam'"
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' is in part a pathwise derivative and in part {rest}, "
                f"and {found[0]} downstream changes the first part only, so the estimate would be that of neither program. "
                f"Use {follows} (which follows the program's own derivatives) or {remedy}, e.g. "
                f"strategies={{'{site.name}': {follows}}}.",
            )


def _check_fixed(
    sites: dict[int, StrategySite], table: dict[int, Numbers], facts: Analysis
) -> None:
    """Refuse parameters of laws that move and in which the strategy has no derivative."""
    for index, site in sites.items():
        for name, atom in zip(site.fixed, table[index].fixed, strict=True):
            if not _moves(sites, facts[atom].relations):
                continue
            able = ["'implicit'"] if site.distribution in GAMMA_FAMILY else []
            able += [] if _moves(sites, facts.supports[index].relations) else ["'reinforce'"]
            remedy = f"Use {' or '.join(able)}, or keep" if able else "Keep"
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' gives no derivative in "
                f"'{name}' of {site.distribution}, which depends on parameters. {remedy} '{name}' constant.",
            )


def _moves(sites: dict[int, StrategySite], sources: Iterable[PyTree]) -> bool:
    """Whether parameters are among the sources, or a site whose value moves with them."""
    return any(
        s == PARAMS or (isinstance(s, int) and sites[s].strategy.moves_value) for s in sources
    )
