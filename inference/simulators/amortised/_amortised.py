"""A posterior for any data, and what judges it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import Tracer, typed_key
from ....ppl._shared_jit import shared_jit
from ....ppl._show import shown
from ....ppl._types import Choices, Key, ModelFn
from ..._made_for import made_for
from ...fitting import Posterior
from ...posterior_checks import LocalCoverage, PosteriorReport, RankCheck, Simulations, ZScores
from .._learn import Learned
from .._region import scored
from .._saved import LearnedFile, save_learned
from .._table import ReferenceTable
from ._given import checked_data, tell_far
from ._guides import check_guide, default_guide, guide_of, problem_of, structure
from ._rounds import Round, Rounds

_BATCH = 500
_RECORDS = (PosteriorReport, Simulations, RankCheck, LocalCoverage, ZScores, Round, Rounds)


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Amortised:
    """A posterior for any data of a model, and what judges it. Made by `amortise`.

    Attributes:
        table: what it was learned from.
        guide: the program of the latent sites, trained; its arguments are the observed sites by name. Of several trainings their
            equal mixture, whose `members` are programs too.
        held_out: mean of log q(theta | x) over pairs that nothing was trained on, and its standard error, nats.
        report: the checks of its posteriors on these pairs.
        training: of each member the run, its looks at the validation rows, which parameters were kept.
        rounds: what was done in rounds at one observation, of which alone it is the posterior then; None: it is for any.
        disagreement: nats by which log q of the mixture is above the mean of its members' on these pairs: what another training
            would change. 0 of one member, of which it is not known.
    """

    table: ReferenceTable
    guide: ppl.Program
    held_out: tuple[float, float]
    report: PosteriorReport
    training: tuple[Learned, ...]
    rounds: Rounds | None = None
    disagreement: float = 0.0

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
        return Posterior(dict(choices), np.asarray(log_weights), made_for(program, args, {}))

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write the guide's parameters, the rows and the report to one file, whole or not at all.

        The programs are code and are given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        names = ("held_out", "report", "rounds", "disagreement")
        facts = {name: getattr(self, name) for name in names}
        given = structure(self.table, self.guide)
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
        own = ppl.as_program(guide or default_guide(table, jax.random.key(0)))
        check_guide(table, own)
        training = file.trainings(functools.partial(problem_of, table, own))
        bound = guide_of(own, training)
        file.check(structure(table, bound), {"guide"} if guide is None else ())
        return cls(table=table, guide=bound, training=training, **file.facts(_RECORDS))

    def _checked(self, data: Mapping[str, PyTree]) -> dict[str, ArrayLike]:
        arrays = checked_data(self.table, data)
        if self.rounds is None:
            tell_far(self.table, arrays)
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

    def _members(self) -> str | None:
        if len(self.training) == 1:
            return None
        return f"{len(self.training)}, which disagree: alone each has {self.disagreement:.2g} nats less in the mean"

    def _facts(self) -> dict[str, PyTree]:
        objections = ", ".join(self.report.objections)
        return {
            "simulations": self.table.num_simulations,
            "failed": f"{self.table.num_failed}: {self.table.reason}"
            if self.table.num_failed
            else None,
            "held out": f"log q {self.held_out[0]:.4g} +- {self.held_out[1]:.2g} nats",
            "members": self._members(),
            "training": "; ".join(dict.fromkeys(map(str, self.training))),
            **({} if self.rounds is None else self.rounds.facts()),
            "checks": f"{objections} object"
            if objections
            else "none objects; print(...) shows each",
        }
