"""A program at given choices as factors over some of its discrete sites: what `ppl.eliminate` sums.

The program is traced once with a marker at each eliminated site (`jaxprs/_primitive.py`). Every site's log-prob is a factor; the
static analysis tells how it depends on the eliminated sites, and so in which of their dimensions it is evaluated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.handlers
from jaxtyping import PyTree

from .._compat import Atom, ClosedJaxpr, is_concrete, no_handlers, own_caches
from .._precision import full_precision
from .._types import ParamMap
from ..analysis import relations_of
from ..enumeration import Factor, Kind, Structure, digits, states, structure_of, sum_product
from ..estimation import Sweep
from ..evaluation import (
    Chain,
    Layout,
    Split,
    agreed,
    at_dims,
    by_parts,
    chains_of,
    evaluate,
    optimised,
    whole_at,
)
from ..jaxprs import Analysis, Relation, Relations
from ..language import ChoiceMismatch, Program
from ..strategies import StrategySite
from ..traces import SiteInfo, SiteInfos, Trace, running_engine
from ._lister import Kept, Lister

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Listing:
    """A program at given choices, traced, with the eliminated sites not summed yet.

    Attributes:
        closed: the traced program; it has no inputs.
        kept: the given choices.
        sites: eliminated sites by index.
        index: their indices by address.
        structure: how they are summed.
        atoms: name -> atom of the log-prob of every site that counts.
        actives: eliminated site -> atom that tells whether its branch is taken, or which of its cells are missing.
        relations: name -> relations of its log-prob to the eliminated sites.
        infos: descriptions of all sites.
        scales: name -> how many rows each row of a subsample stands for; log-probs are without it.
        values: name -> atom of the value of each observed or deterministic site.
        params: parameters, for printing.
    """

    closed: ClosedJaxpr
    kept: dict[str, Array]
    sites: dict[int, StrategySite]
    index: dict[str, int]
    structure: Structure
    atoms: dict[str, Any]
    actives: dict[int, Any]
    relations: dict[str, dict[int, Relation]]
    infos: dict[str, SiteInfo]
    scales: dict[str, float]
    values: dict[str, PyTree]
    params: dict[str, str]

    @property
    def layouts(self) -> dict[int, Layout]:
        """Layouts of the eliminated sites."""
        return self.structure.layouts

    def factors(self, kind: Kind = "sum") -> tuple[list[Factor], dict[str, Array]]:
        """The factors that depend on the eliminated sites, and the log-probs of the sites that do not."""
        # log f(z_own): one sweep evaluates all log-probs whose sites are among those of the largest set that is left.
        own = {n: frozenset(self.relations[n]) for n in self.atoms}
        arrays: dict[str, PyTree] = {}
        for group in sorted(set(own.values()), key=len, reverse=True):
            wanted = [n for n in own if n not in arrays and own[n] <= group]
            densities = [self.index[n] for n in wanted if n in self.index]
            read = [self.atoms[n] for n in wanted] + [self.actives[i] for i in densities]
            swept = self._sweep(sorted(group), read) if wanted else []
            active = dict(zip(densities, swept[len(wanted) :], strict=True))
            for n, array in zip(wanted, swept, strict=False):
                if n in self.index:
                    density = functools.partial(self._density, self.index[n], kind)
                    both = array, active[self.index[n]]
                    chains = self._chains(n, group)
                    array = by_parts(density, *both, axis=len(group), chains=chains)
                # [dimensions of the group, axes]: those of sites that it does not see are all alike, and dropped.
                shown = [slice(None) if i in own[n] else 0 for i in sorted(group)]
                arrays[n] = at_dims(shown, array)
        chains_at = {n: self._chains(n, own[n]) for n in arrays}
        found, _ = agreed([(x, chains_at[n]) for n, x in arrays.items()])
        factors, rest = [], {}
        for n, array in zip(arrays, found, strict=True):
            if not own[n]:
                array = whole_at(array, 0, []) if isinstance(array, Split) else array
                rest[n] = array if self.scales[n] == 1 else self.scales[n] * array
                continue
            labels, scale = self.structure.labels[n], frozenset({self.scales[n]})
            factors.append(Factor(own[n], labels, array, scale, self._lag(n)))
        return factors, rest

    def trace(self, label: str) -> Trace:
        """The trace of the choices."""
        factors, log_probs = self.factors()
        infos = SiteInfos({n: i for n, i in self.infos.items() if n in self.kept or n in log_probs})
        for name in self.kept:
            if name not in log_probs:  # its density is in the sum
                infos[name] = self.infos[name]
        # log sum_z prod f is one factor of the trace; where the sites fall into parts that never meet, one for each part.
        for number, total in enumerate(sum_product(factors, self.structure.order, self.layouts)):
            (scale,) = total.scales
            name = label if number == 0 else f"{label} {number + 1}"
            dims = tuple(self._dim_of(a) for a in total.axes)
            log_probs[name] = total.array * scale
            infos[name] = SiteInfo(name, "factor", dims, total.array.shape, (), "", scale=scale)
        read = evaluate(self.closed, [], {}, list(self.values.values()))
        values = dict(zip(self.values, read, strict=True))
        infos.update({n: self.infos[n] for n in values})
        of = lambda kind: {n: v for n, v in values.items() if self.infos[n].kind == kind}
        return Trace(dict(self.kept), log_probs, None, of("observed"), of("deterministic"), infos)

    def gradient(self, kind: Kind, key: Array | None) -> dict[int, Array]:
        """Derivative of the total in a bias on each site's states: site -> (states, *free axes)."""
        # d log sum_z exp(sum_n log f_n(z) + sum_i b_i(z_i)) / d b_i(s) at b = 0 is P(z_i = s); of a maximum, or of a sum with
        # Gumbel noise, it marks the assignment that is taken.
        factors, _ = self.factors(kind)
        factors = [dataclasses.replace(f, scales=frozenset({1.0})) for f in factors]

        def total(bias: dict[int, Array]) -> Array:
            added = [self._bias(i, b) for i, b in bias.items()]
            done = sum_product([*factors, *added], self.structure.order, self.layouts, kind, key)
            return sum((f.array.sum() for f in done), jnp.zeros(()))

        sizes = {
            i: tuple(n for a, n in enumerate(s.sizes) if a not in self.layouts[i].joint)
            for i, s in self.sites.items()
        }
        zero = {i: jnp.zeros((self.layouts[i].num_states, *sizes[i])) for i in self.sites}
        return jax.grad(total)(zero)

    def assignment(self, kind: Kind, key: Array | None) -> dict[str, Array]:
        """The assignment that the derivative marks: site -> values, shape (*elements, *event)."""
        out = {}
        for i, marks in self.gradient(kind, key).items():
            site, layout = self.sites[i], self.layouts[i]
            table = site.support[states(site, layout)]  # states, joint elements, event
            chosen = jnp.asarray(table)[marks.argmax(0)]  # free axes, joint elements, event
            out[site.name] = _elements(chosen, site, layout, table.shape[2:])
        return out

    @full_precision
    def probabilities(self) -> dict[str, Array]:
        """Posterior marginals: site -> (*elements, values)."""
        out = {}
        for i, weights in self.gradient("sum", None).items():
            site, layout = self.sites[i], self.layouts[i]
            # Joint states -> one-hot values of their elements; the marginal of an element is the sum of P(state) over these.
            table = np.eye(site.num_values or 0)[states(site, layout)]  # states, joint, values
            chosen = jnp.tensordot(jnp.moveaxis(weights, 0, -1), jnp.asarray(table, float), 1)
            out[site.name] = _elements(chosen, site, layout, (site.num_values or 0,))
        return out

    def _dim_of(self, axis: object) -> str | None:
        """The plate or region that a named axis belongs to, if the sites agree on it."""
        owners = [x for x, name in self.structure.names.items() if name == axis]
        dims = {
            self.infos[owner].dims[a]
            for owner, a in owners
            if owner in self.infos and a < len(self.infos[owner].dims)
        }
        return dims.pop() if len(dims) == 1 else None

    def _bias(self, index: int, bias: Array) -> Factor:
        site, layout = self.sites[index], self.layouts[index]
        if layout.axis is not None:
            length = site.sizes[layout.axis]
            at = sum(a not in layout.joint for a in range(layout.axis))  # among free axes
            # A bias on states, [states, ..., time, ...], read at the own digit of each window by place: [windows, time, ...].
            bias = jnp.moveaxis(bias, 1 + at, 1)
            bias = bias[digits(layout, length), jnp.arange(length)[None]]  # windows, time, others
            bias = jnp.moveaxis(bias, 1, 1 + at)
        return Factor(frozenset({index}), self.structure.free[index], bias, frozenset({1.0}))

    def _lag(self, name: str) -> int:
        """How many steps back a factor sees chains."""
        found = [0]
        for i, relation in self.relations[name].items():
            axis = self.layouts[i].axis
            if axis is not None:
                lag = relation[axis].lag
                assert lag is not None  # it is a chain
                found.append(lag)
        return max(found)

    def _chains(self, name: str, sites: Collection[int]) -> list[Chain]:
        """The chains among sites whose time is the first axis of a factor, along which it may be split."""
        axes = self.structure.labels[name]
        return chains_of(sorted(sites), self.layouts, axes[0]) if axes else []

    def _density(self, index: int, kind: Kind, log_prob: Array, active: Array) -> Array:
        """Log-probs of the site's elements.

        Where its branch is not taken, or a cell is seen (`obs_mask`), all values count as one: alike in a sum, each fully in a
        maximum.
        """
        site = self.sites[index]
        active = active.reshape(active.shape + (1,) * (log_prob.ndim - active.ndim))
        absent = 0.0 if kind == "max" else -math.log(site.num_values or 1)
        return jnp.where(active > 0, log_prob, absent)

    def _sweep(self, group: list[int], read: list[Atom]) -> list[Array | Split]:
        """Evaluate atoms in the dimensions of the sites in `group`, outermost first; what is split along time stays so."""
        sweep = Sweep(self.sites, self.layouts, group, {})
        for i in group:
            sweep.enumerate(i)
        return sweep.run(lambda _, forced, __: optimised(self.closed, [], forced, read))


def list_factors(
    label: str,
    program: Program,
    names: tuple[str, ...],
    kept: dict[str, Array],
    params: ParamMap,
    args: tuple[Array, ...],
    kwargs: dict[str, PyTree],
) -> Listing:
    """Trace and analyse a program at the given choices.

    Raises:
        ValueError: the refusals of `ppl.eliminate`.
    """
    lister = Lister(label, names)
    given = Kept(kept)

    def run() -> PyTree:
        declared = numpyro.handlers.substitute(data=dict(params))
        with own_caches(), lister, given, declared:
            program(*args, **kwargs)
        numbers = dict(given.frame.numbers), dict(lister.frame.numbers)
        for frame in (given.frame, lister.frame):
            frame.numbers.clear()  # they are known by their variables from here on
        return numbers

    with no_handlers():
        closed, shapes = jax.make_jaxpr(run, return_shape=True)()
    _check_sites(label, lister, given, names, kept)
    outer = running_engine()
    if outer is not None:
        outer.plates.update(lister.plates)
        outer.subsampled.update(lister.subsampled)
    infos = given.frame.infos
    numbers, own = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    sites = {s.index: s for s in lister.frame.sites.values()}
    index = {s.address: i for i, s in sites.items()}
    facts = Analysis(closed, [])
    atoms = {n: table["log_prob"] for n, table in numbers.items() if "log_prob" in table}
    alarmed = {n for n in index if _may_have_null_values(closed, facts, own[n]["probabilities"])}
    atoms |= {n: own[n]["alarmed" if n in alarmed else "log_prob"] for n in index}
    if outer is not None and alarmed:
        outer.alarmed.add(label)
    relations: Any = {n: relations_of(facts, a, sites) for n, a in atoms.items()}
    taken = {
        n: relations_of(facts, t["active"], sites) for n, t in numbers.items() if "active" in t
    }
    _check_branches(label, infos, taken, sites, kept)
    ranks = {n: len(a.aval.shape) for n, a in atoms.items()}
    structure = structure_of(label, sites, relations, ranks)
    _check_scales(label, relations, given.scales, sites)
    values = {
        n: table["value"]
        for n, table in numbers.items()
        if infos[n].kind in ("observed", "deterministic")
        and not any(isinstance(s, int) for s in facts[table["value"]].relations)
    }
    actives = {i: own[n]["active"] for n, i in index.items()}
    return Listing(
        closed, kept, sites, index, structure, atoms, actives, relations, infos, given.scales, values, lister.params
    )  # fmt: skip


def _may_have_null_values(
    closed: ClosedJaxpr, facts: Analysis, probabilities: list[PyTree]
) -> bool:
    """Whether something may move a probability of 0 (`distributions/_null_values.py`)."""
    is_moved = not is_concrete(closed.consts)
    return is_moved and not all(facts[p].range.is_positive for p in probabilities)


def _check_sites(
    label: str, lister: Lister, given: Kept, names: tuple[str, ...], kept: Collection[str]
) -> None:
    absent = sorted(set(names) - set(lister.frame.sites))
    if absent:
        latent = sorted(n for n, info in given.frame.infos.items() if info.kind == "latent")
        raise ValueError(
            f"{label}: {absent} are no latent sites of the program; its latent sites are {latent}. Name sites to sum "
            "out; observed and conditioned ones are fixed already."
        )
    missing, extra = sorted(set(lister.missing)), sorted(set(kept) - given.frame.used)
    if missing or extra:
        raise ChoiceMismatch(
            f"{label}: the choices do not match the latent sites that are left: missing {missing}, extra {extra}. Give a "
            "value for each of them and no other; the eliminated sites have none.",
            missing,
            extra,
        )


def _check_branches(
    label: str,
    infos: Mapping[str, SiteInfo],
    taken: Mapping[str, Relations],
    sites: Mapping[int, StrategySite],
    kept: Mapping[str, Array],
) -> None:
    """Refuse sums over which branch is taken, where a continuous site that is left has a law in one of them only.

    `taken`: kept site in a branch -> how that it is taken depends on the eliminated sites.
    """
    for name, relation in taken.items():
        gone = sorted(sites[i].name for i in relation if isinstance(i, int))
        is_partial = any(r.kind == "cond" and r.size < 2 for r in infos[name].regions)
        if gone and is_partial and jnp.issubdtype(kept[name].dtype, jnp.floating):
            raise ValueError(
                f"{label}: site '{name}' is drawn in a branch (ppl.cond) that {gone} choose, and has no law where that is not "
                "taken: the sum over them would add densities of unlike spaces. Draw it before the branch and use it inside, "
                "which tells the same, or keep them as choices."
            )


def _check_scales(
    label: str,
    relations: Mapping[str, dict[int, PyTree]],
    scales: Mapping[str, float],
    sites: Mapping[int, StrategySite],
) -> None:
    """Refuse sums over factors that count with different scales."""
    groups: list[tuple[set[int], list[str]]] = []
    for name, relation in relations.items():
        if relation:
            met = [g for g in groups if g[0] & set(relation)]
            groups = [g for g in groups if g not in met]
            merged = set(relation).union(*(g[0] for g in met))
            groups.append((merged, [name, *(n for g in met for n in g[1])]))
    for members, names in groups:
        found = {scales[n] for n in names}
        if len(found) > 1:
            raise ValueError(
                f"{label}: the log-probs of {sorted(names)} are scaled by {sorted(map(str, found))} (subsampling), but meet "
                f"in the sum over {sorted(sites[i].address for i in members)}, where a scaled part would make it wrong. "
                "Use all rows, or put the site inside the subsampled plate."
            )


def _elements(array: Array, site: StrategySite, layout: Layout, event: tuple[int, ...]) -> Array:
    """From (free axes, joint elements, event) to (elements in order, event)."""
    free = [a for a in range(len(site.sizes)) if a not in layout.joint]
    sizes = tuple(site.sizes[a] for a in layout.joint)
    array = array.reshape(*array.shape[: len(free)], *sizes, *event)
    source = [*free, *layout.joint]
    order = [source.index(a) for a in range(len(source))]
    return jnp.transpose(array, [*order, *range(len(order), array.ndim)])
