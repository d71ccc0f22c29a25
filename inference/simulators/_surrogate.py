"""Learned likelihoods: programs stand in for the laws of observed sites, what is tractable stays as it is.

A site x is learned as p(x | parents), its parents being the sites that its law reads when all of them are given, and the learned
sites before it. That is one event's law: rows of a plate are events with the parents of their row, so that it is trained
on single rows and serves any number of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import IdentityTransform

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._compat import no_handlers, typed_key
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn, ParamMap
from ...ppl.traces import BoundParams, SiteInfo
from ..fitting.storage import structure_of
from ._coordinates import SoftBoxTransform, StandardCoordinates
from ._learn import Learned, RowLoss, RowProblem, learn, losses_on
from ._saved import LearnedFile, save_learned
from ._simulators import is_carrier
from ._standing_in import ARGUMENTS, reads_of, refuse_noise, standing_in
from ._table import ReferenceTable, check_continuous

_LARGEST = 2.0**20  # whole number whose neighbours single precision keeps apart


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """A program with learned laws of observed sites. Made by `surrogate`.

    Attributes:
        model: the program, of the same arguments as the simulated one; their rows may be others.
        parents: learned site -> the sites whose values its law reads.
        held_out: mean log-density of the learned sites in rows that nothing was trained on, and its standard error, nats an
            event.
        training: the run, its looks at the validation rows, which parameters were kept.
        table: what it was learned from.
        laws: learned site -> its law.
    """

    model: ppl.Program
    parents: Mapping[str, tuple[str, ...]]
    held_out: tuple[float, float]
    training: Learned
    table: ReferenceTable
    laws: Mapping[str, _LearnedLaw]

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write the laws' parameters and the rows to one file, whole or not at all; what is code is given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        parents = {n: list(names) for n, names in self.parents.items()}
        facts = {"held_out": self.held_out, "parents": parents}
        save_learned(path, "Surrogate", self.table, self.training, _structure(self), facts)

    @classmethod
    @checked_call
    def load(
        cls,
        path: str | os.PathLike,
        model: ModelFn,
        args: tuple | None = None,
        *,
        by: ModelFn | Mapping[str, ModelFn] | None = None,
    ) -> Surrogate:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the program, or the prior of a simulator that is a function, as given to `reference_table`.
            args: its arguments, likewise.
            by: as given to `surrogate`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or has changed since; the model or a law is another, each difference named.
        """
        file = LearnedFile.read(path, "Surrogate", model, args)
        table, facts, infos = file.table, file.facts(), _infos(file.table)
        parents = facts["parents"]
        laws = {n: _law_of(n, table, names, infos, by) for n, names in parents.items()}
        training = file.training(_problem(table, laws, parents, infos))
        found = _made(table, laws, parents, facts["held_out"], training)
        own = lambda n: by is not None and (not isinstance(by, Mapping) or n in by)
        file.check(_structure(found), {f"law of '{n}'" for n in laws if not own(n)})
        return found

    def _facts(self) -> dict[str, PyTree]:
        told = [
            f"{site} given {', '.join(names) or 'nothing'}" for site, names in self.parents.items()
        ]
        return {
            "learned": "; ".join(told),
            "held out": f"{self.held_out[0]:.4g} +- {self.held_out[1]:.2g} nats an event",
            "training": str(self.training),
        }


@checked_call
def surrogate(
    table: ReferenceTable,
    *,
    sites: Sequence[str] | None = None,
    by: ModelFn | Mapping[str, ModelFn] | None = None,
    key: Key | None = None,
    num_steps: int | None = None,
    progress: bool = True,
) -> Surrogate:
    """The simulated program with learned laws at observed sites: neural likelihood estimation (NLE).

    The result is a program: plates, hierarchies, missing cells, `ppl.eliminate`, NUTS, `infer` and particles take it as they take
    any. Sites that are not named keep their laws. Several learned sites are learned one given those before, so that data may be
    discrete and continuous.

    Args:
        table: simulations, of `simulators.reference_table`.
        sites: observed sites to learn; default those that are point masses, which are simulated.
        by: the law of a site: a function of its parents by name that returns a distribution and declares networks by
            `ppl.module`; one for all sites, or by site. Parents come with any batch shape in front. Default: one number given
            those before it, of a real number a density, on the scale of logarithms where those of positive numbers are closer
            to a Normal; of whole numbers the mass of such a law between the halves around them, a categorical law where they
            are fewer than 20. It begins as least squares and logistic regression. Numbers of one event may be of all kinds.
        key: PRNG key; default `jax.random.key(0)`.
        num_steps: as for `ratio`.
        progress: show a bar.

    Returns:
        A `Surrogate`; `Surrogate.model` is the program.

    Raises:
        ValueError: simulations failed (what is left is no draw of the likelihood); a site is not observed, stands in control
            flow or reads arguments of the program, which the learned law would not know.

    Validity: the density of what was learned from finite data, by maximum likelihood; `Surrogate.held_out` compares two of them,
    and posteriors are judged by `posterior_checks`. Parameters beyond those that were simulated are extrapolated to.

    Reference: Papamakarios, Sterratt and Murray 2019, arXiv:1805.07226; mixed data, Boelts et al. 2022, eLife 11:e77220.
    """
    if table.num_failed:
        raise ValueError(
            f"surrogate: {table.num_failed} of {table.num_failed + table.num_simulations} simulations failed ({table.reason}), "
            "and a likelihood learned from the others would lack the probability to succeed, which moves with the parameters. "
            "Let the simulator return a value in place of failing, narrow the prior, or use amortise or ratio, which account for "
            "it."
        )
    key = jax.random.key(0) if key is None else typed_key(key)
    infos = _infos(table)
    names = _chosen(table, sites, infos)
    reads = reads_of(table.model, table.args)
    refuse_noise("surrogate", reads, names)
    parents = _parents(table, names, reads)
    _check_batches(names, parents, infos)
    laws = {n: _law_of(n, table, parents[n], infos, by) for n in names}
    problem = _problem(table, laws, parents, infos)
    learned = learn(problem, key, num_steps=num_steps, progress=progress)
    held = losses_on(_events(table.rows("held out"), names, parents, infos), problem.loss)
    scores = -np.asarray(held(learned.params, key), float)
    error = float(scores.std(ddof=1) / len(scores) ** 0.5)
    return _made(table, laws, parents, (float(scores.mean()), error), learned)


def _problem(
    table: ReferenceTable,
    laws: Mapping[str, _LearnedLaw],
    parents: Mapping[str, Sequence[str]],
    infos: Mapping[str, SiteInfo],
) -> RowProblem:
    """What the laws are to learn from a table."""
    parts = (
        _events(table.rows(part), list(laws), parents, infos) for part in ("training", "validation")
    )
    training, validation = parts

    def loss(params: ParamMap, key: Key, rows: Mapping[str, ArrayLike]) -> Array:
        def one(row: Mapping[str, Array]) -> Array:
            own = [law.at(params, {p: row[p] for p in parents[n]}) for n, law in laws.items()]
            return jnp.stack(
                [jnp.sum(law.log_prob(row[n])) for n, law in zip(laws, own, strict=True)]
            ).sum()

        return -jax.vmap(one)({n: jnp.asarray(x) for n, x in rows.items()})

    def init(key: Key) -> ppl.Params:
        row = {n: jnp.asarray(x[0]) for n, x in training.items()}
        found: dict[str, Any] = {}
        for k, (n, law) in zip(jax.random.split(key, len(laws)), laws.items(), strict=True):
            own = law.program.init(k, {p: row[p] for p in parents[n]}, row[n])
            found |= {f"{n}/{name}": x for name, x in own.items()}
        return ppl.Params(found)

    return RowProblem("surrogate", init, loss, training, validation)


def _made(
    table: ReferenceTable,
    laws: Mapping[str, _LearnedLaw],
    parents: Mapping[str, Sequence[str]],
    held_out: tuple[float, float],
    learned: Learned,
) -> Surrogate:
    """The program whose laws have these parameters."""
    given = lambda n, values: {p: values[p] for p in parents[n]}
    model = standing_in(
        table.model, list(laws), lambda n, values: laws[n].at(learned.params, given(n, values))
    )
    fixed = {n: tuple(names) for n, names in parents.items()}
    return Surrogate(model, fixed, held_out, learned, table, laws)


def _structure(found: Surrogate) -> dict[str, PyTree]:
    """What a file says of the laws."""
    objective, structure = found.training.fit.objective, {}
    assert isinstance(objective, RowLoss)
    rows = objective.problem.training
    for n, law in found.laws.items():
        args = {p: jnp.asarray(rows[p][0]) for p in found.parents[n]}, jnp.asarray(rows[n][0])
        own = law.program.bind(law.own(found.training.params))
        structure[f"law of '{n}'"] = structure_of(own, args)["model"]
    return structure


@dataclasses.dataclass(frozen=True)
class _LearnedLaw:
    """The law of one site as a function of parameters and parents."""

    site: str
    fn: Callable[..., dist.Distribution]

    @property
    def program(self) -> ppl.Program:
        """What declares the parameters."""

        def scored(parents: Mapping[str, Array], value: Array) -> None:
            ppl.sample("value", self.fn(**parents), obs=value)

        return ppl.Program(scored)

    def own(self, params: ParamMap) -> dict[str, PyTree]:
        """Its own of the parameters of all laws."""
        prefix = f"{self.site}/"
        return {n.removeprefix(prefix): x for n, x in params.items() if n.startswith(prefix)}

    def at(self, params: ParamMap, parents: Mapping[str, Array]) -> dist.Distribution:
        """The distribution; nothing of it is a statement of the program around."""
        own = self.own(params)
        laws: list[dist.Distribution] = []

        def called() -> None:
            with BoundParams(own):
                laws.append(self.fn(**parents))

        with no_handlers():
            ppl.Program(called).simulate(jax.random.key(0))
        return laws[0]


def _infos(table: ReferenceTable) -> dict[str, SiteInfo]:
    return dict(table.model.simulate(jax.random.key(0), *table.args).sites)


def _chosen(
    table: ReferenceTable, sites: Sequence[str] | None, infos: Mapping[str, SiteInfo]
) -> list[str]:
    """The sites to learn, in the order of the program."""
    if sites is None:
        sites = [n for n in table.data if infos[n].distribution == "Delta"]
        if not sites:
            raise ValueError(
                f"surrogate: {table.model!r} observes {list(table.data)}, whose laws are known. Name in sites= those that are to "
                "be learned all the same; the program itself has their densities."
            )
    unknown = sorted(set(sites) - set(table.data))
    looped = [n for n in sites if n in infos and infos[n].regions]
    if unknown or looped or not sites:
        raise ValueError(
            f"surrogate: sites {unknown or looped or 'none'} cannot be learned: they are not observed, or stand in control flow. "
            f"The observed sites are {list(table.data)}; write steps as rows of a plate, or observe the whole series as one site."
        )
    return [n for n in table.data if n in sites]


def _parents(
    table: ReferenceTable, names: Sequence[str], reads: Mapping[str, frozenset[str]]
) -> dict[str, list[str]]:
    """Learned site -> the sites that its law reads, and the learned sites before it, which may have noise in common with it.

    Raises:
        ValueError: it reads an argument whose values a learned law would not know.
    """
    if is_carrier(table.model):  # nothing is known of what a black box reads
        return {n: [*table.parameters, *names[:i]] for i, n in enumerate(names)}
    if wrong := [n for n in names if ARGUMENTS in reads[n]]:
        raise ValueError(
            f"surrogate: sites {wrong} read values of the program's arguments, which the learned law would not know. Simulate "
            "with the arguments that are meant, held fixed inside of the program, or draw what varies at a latent site of its "
            "own, e.g. sample('dose', Uniform(0, 1)), and set it by ppl.intervene."
        )
    others = [*table.parameters, *table.data]
    read = lambda i, n: [p for p in others if p != n and (p in reads[n] or p in names[:i])]
    return {n: read(i, n) for i, n in enumerate(names)}


def _check_batches(
    names: Sequence[str], parents: Mapping[str, Sequence[str]], infos: Mapping[str, SiteInfo]
) -> None:
    """Refuse learned sites in different plates, and parents with more rows than their child."""
    batch = infos[names[0]].batch_shape
    shapes = {n: infos[n].batch_shape for n in [*names, *(p for n in names for p in parents[n])]}

    def fits(shape: tuple[int, ...]) -> bool:
        ends = zip(reversed(shape), reversed(batch), strict=False)
        return len(shape) <= len(batch) and all(a in (1, b) for a, b in ends)

    if any(infos[n].batch_shape != batch for n in names) or not all(map(fits, shapes.values())):
        raise ValueError(
            f"surrogate: the sites {list(names)} and what they read have the batch shapes {shapes}, and one event of one is no "
            "event of another. Learn sites one after the other, sites=[...], or put them into the same plates."
        )


def _events(
    rows: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    names: Sequence[str],
    parents: Mapping[str, Sequence[str]],
    infos: Mapping[str, SiteInfo],
) -> dict[str, np.ndarray]:
    """Values of learned sites and their parents, one event a row: rows of plates become rows."""
    values = {**rows[0], **rows[1]}
    batch = infos[names[0]].batch_shape
    found = {}
    for name in dict.fromkeys([*names, *(p for n in names for p in parents[n])]):
        x, event = values[name], infos[name].event_shape
        own = x.shape[1 : x.ndim - len(event)]
        # Aligned to the right, as NumPyro aligns plates.
        aligned = x.reshape(len(x), *(1,) * (len(batch) - len(own)), *own, *event)
        whole = np.broadcast_to(aligned, (len(x), *batch, *event))
        found[name] = whole.reshape(-1, *event)
    return found


def _law_of(
    name: str,
    table: ReferenceTable,
    parents: Sequence[str],
    infos: Mapping[str, SiteInfo],
    by: ModelFn | Mapping[str, ModelFn] | None,
) -> _LearnedLaw:
    from ..flows import AutoregressiveLaw, AutoregressiveNet, columns_of

    own = by.get(name) if isinstance(by, Mapping) else by
    if own is not None:
        return _LearnedLaw(name, own)
    events = _events(table.rows("training"), [name], {name: parents}, infos)
    supports = table.supports("surrogate", [p for p in parents if p in table.parameters])
    seen = _Seen.of({p: events[p] for p in parents}, supports)
    event_shape = infos[name].event_shape
    values = np.asarray(events[name], float).reshape(len(events[name]), -1)
    _check_kinds(name, values)
    context = np.asarray(seen.flat({p: events[p] for p in parents}))
    context = np.broadcast_to(context, (len(values), context.shape[-1]))
    columns, kinds, most = columns_of(values, context)
    net = AutoregressiveNet(kinds, context.shape[1], most, key=jax.random.key(0))
    scaled = np.asarray(columns.scaled(jnp.asarray(values, jnp.result_type(float))))
    labels = values[:, net.few] - columns.low[net.few]
    begun = net.fitted(context, scaled, labels)

    def law(**given: Array) -> dist.Distribution:
        made = ppl.module("law", begun)
        return AutoregressiveLaw(made, columns, seen.flat(given), event_shape)

    return _LearnedLaw(name, law)


class _Seen(NamedTuple):
    """Parents as a law sees them: as they are, and those with one end without it, too.

    What a simulator adds noise to is a line of the parameter itself; a rate is known by its logarithm as well.
    """

    as_they_are: StandardCoordinates
    unconstrained: StandardCoordinates

    @classmethod
    def of(
        cls, values: Mapping[str, np.ndarray], supports: Mapping[str, constraints.Constraint]
    ) -> _Seen:
        free = StandardCoordinates.of(values, supports)
        bent = [
            n
            for n, made in free.bijections.items()
            if not isinstance(made, SoftBoxTransform | IdentityTransform)
        ]
        return cls(
            StandardCoordinates.of(values, {}),
            StandardCoordinates.of({n: values[n] for n in bent}, supports),
        )

    def flat(self, values: Mapping[str, ArrayLike]) -> Array:
        """All side by side, [*batch, c]."""
        parts = [self.as_they_are.flat(values), self.unconstrained.flat(values)]
        batch = jnp.broadcast_shapes(*(x.shape[:-1] for x in parts))
        return jnp.concatenate([jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in parts], -1)


def _check_kinds(name: str, values: np.ndarray) -> None:
    """Refuse numbers for which neither a density nor a mass can be learned."""
    from ..flows import is_whole

    whole = np.array([is_whole(x) for x in values.T])
    check_continuous("surrogate", name, values[:, ~whole])
    if np.abs(values[:, whole]).max(initial=0.0) > _LARGEST:
        raise ValueError(
            f"surrogate: site '{name}' holds whole numbers from {values.min():g} to {values.max():g}, and beyond {_LARGEST:g} "
            f"there is no default law. Give one, by={{'{name}': law}}, e.g. a function of its parents that returns "
            "NegativeBinomial2(mean, concentration)."
        )
