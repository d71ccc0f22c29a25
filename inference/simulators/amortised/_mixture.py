"""Several trainings of one guide as one program: their equal mixture, whose density is exact.

    q(z) = 1/K sum_k q(z; w_k)

A draw is that of a member at random; its density is that of the mixture, whichever member it came from. Which of the members is
right is not told, so that the mixture is as wide as what they disagree about: by the concavity of the logarithm its log q is at
least the mean of theirs, at every z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .... import ppl
from ....ppl._compat import typed_key
from ....ppl._types import Key, ParamMap
from ....ppl.language import name_of
from ....ppl.traces import SiteInfo, SiteInfos, Trace, refuse_inside_engine


class EqualMixture(ppl.Program):
    """The equal mixture of a program at several parameters, which are fixed.

    Args:
        program: whose members have the same latent sites.
        params: those of each member.

    Attributes:
        members: the program at the parameters of each.

    Raises:
        TypeError: it is run as statements, as objectives run a guide: its density is not that of one run.
    """

    def __init__(self, program: ppl.Program, params: Sequence[ParamMap]) -> None:
        self.label = f"mixture of {len(params)} {name_of(program)}"
        super().__init__(self._refused)
        self.__name__ = self.label
        self.program, self.members = program, tuple(map(program.bind, params))
        self._stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)

    def bind(self, params: ParamMap) -> EqualMixture:
        """Itself: nothing of it is free."""
        return self

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> ppl.Params:
        """No parameters."""
        return ppl.Params()

    def simulate(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Trace:
        """A draw of a member at random, with the density of the mixture.

        Raises:
            RuntimeError: inside `ppl.expectation` or an objective.
        """
        return self.generate(key, {}, *args, **kwargs)[0]

    def generate(
        self, key: Key, constraints: Mapping[str, Array], *args: PyTree, **kwargs: PyTree
    ) -> tuple[Trace, Array]:
        """The trace and its weight: the log-density if every choice is given.

        Else that of a member at random, unbiased too.
        """
        refuse_inside_engine("generate")
        member_key, key = jax.random.split(typed_key(key))
        sites: dict[str, SiteInfo] = {}

        def of_member(params: ParamMap) -> tuple[dict[str, Array], Array, Array]:
            bound = self.program.bind(params)
            trace, log_weight = bound.generate(key, constraints, *args, **kwargs)
            sites.update(trace.sites)
            return dict(trace.choices), trace.log_density, log_weight

        choices, logs, log_weights = jax.vmap(of_member)(self._stacked)
        if set(choices) == set(constraints):
            trace = self._trace({n: jnp.asarray(x) for n, x in constraints.items()}, logs, sites)
            return trace, trace.log_density
        member = jax.random.randint(member_key, (), 0, len(self.members))
        drawn, log_weight = jax.tree.map(lambda x: x[member], (choices, log_weights))
        return self._traced(drawn, *args, **kwargs), log_weight

    def _traced(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        sites: dict[str, SiteInfo] = {}

        def log_density(params: ParamMap) -> Array:
            trace = self.program.bind(params).trace(choices, *args, **kwargs)
            sites.update(trace.sites)
            return trace.log_density

        given = {n: jnp.asarray(x) for n, x in choices.items()}
        return self._trace(given, jax.vmap(log_density)(self._stacked), sites)

    def _trace(
        self, choices: dict[str, Array], logs: Array, sites: Mapping[str, SiteInfo]
    ) -> Trace:
        """A trace whose log-density is one number that belongs to no single site."""
        infos = SiteInfos({name: sites[name] for name in sites if name in choices})
        infos[self.label] = SiteInfo(self.label, "factor", (), (), (), "")
        log_density = jax.nn.logsumexp(logs) - jnp.log(len(self.members))
        trace = Trace(choices, {self.label: log_density}, None, {}, {}, infos)
        self._seen.update(sites=infos, params={})
        return trace

    def _refused(self, *_: PyTree, **__: PyTree) -> NoReturn:
        raise TypeError(
            f"{self.label}: its density is that of no single run, so that objectives, handlers (condition, mask, ...) and MCMC "
            "cannot run it as statements. Use simulate and log_density, or one of its members, guide.members[0]."
        )

    def __repr__(self) -> str:
        return f"<Program {self.label}>"
