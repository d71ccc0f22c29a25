"""The ladder: forms of a model and ways to its posterior, one after the other until draws are certified.

A *form* is the same joint law written otherwise: sites integrated out, sites shifted and scaled. Which rung comes next is decided
by what the last one showed: chains at different places are begun again in the modes that are found; chains that break off, or
hardly move, get a form without the narrow place, and then smaller steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ...ppl._types import Key
from .._arguments import simulated
from .._mapped import map_keys
from ..inputs import improper_sites
from ._certificate import Attempt, Method
from ._clock import Clock, TimeUpError
from ._draws import Draws
from ._found import Found, ModelForm, chains_found, completing, make_draws
from ._judged import Verdict
from ._problem import Problem, completed
from .chains import (
    CHUNK,
    DENSE_UP_TO,
    Chains,
    ChainSettings,
    Run,
    doubled,
    is_coarse,
    precision,
    run_chains,
    singled,
    starts_in_modes,
)
from .forms import (
    CHEAP,
    DEAR,
    Target,
    make_target,
    noncentred,
    without_discrete,
    without_normal,
)
from .weighted import (
    MOST_COORDINATES,
    FoundDraws,
    near_guide,
    run_fit,
    run_flow,
    run_tempered,
    weigh_modes,
)

METHODS = ("eliminate", "nuts", "fit", "tempered")  # by default
_SHORT = 150  # transitions of a warm-up that finds a step size
KNOWN = (*METHODS, "flow")


@dataclasses.dataclass
class Search:
    """One search for a posterior.

    Args:
        method: who asks, for messages.
        problem: what is asked.
        key: PRNG key.
        num_samples: draws.
        num_chains: of NUTS.
        methods: which of `METHODS` may be used, in this order.
        say: told of each attempt.
        clock: ends the search where its time does.
    """

    method: str
    problem: Problem
    key: Any
    num_samples: int
    num_chains: int
    methods: Sequence[str]
    say: Callable[[str], None]
    clock: Clock

    def __post_init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.found: list[Found] = []
        self.targets: dict[tuple[int, bool], Target] = {}
        self.ahead: list[str] = []
        self.fitted: FoundDraws | None = None
        self.is_apart = False  # whether chains ended at different places
        self.draw_key, self.run_key = jax.random.split(self.key)

    def draws(self) -> Draws:
        """The first certified draws, or the best ones."""
        problem, began = self.problem, time.perf_counter()
        program, gone = without_discrete(self.method, problem.program, problem.trace, problem.args)
        if gone:
            self.say(f"{', '.join(gone)} summed out, exactly")
        plain = ModelForm("", program, gone)
        if (exact := self._exact(plain)) is not None:
            self._tell(Attempt("exact", time.perf_counter() - began, "certified", {}))
            return self._made(exact, plain)
        try:
            self._climb(plain)
        except TimeUpError:
            pass
        except KeyboardInterrupt:
            self.clock.interrupt()
        return self._made(self._best(), plain)

    def _best(self) -> Found:
        """What was found with the fewest problems, the end of the time among them."""
        if not self.found and self.clock.is_interrupted:
            raise KeyboardInterrupt
        if not self.found:
            told = "; ".join(attempt.outcome.rstrip(".") for attempt in self.attempts)
            if self.clock.why:
                raise RuntimeError(
                    f"{self.method}: {self.problem.program!r} has no draws yet: {self._unfinished()}{'; ' * bool(told)}{told}. "
                    "Raise max_seconds."
                )
            raise RuntimeError(
                f"{self.method}: {self.problem.program!r} has no draws by methods={list(self.methods)}: {told}. Add "
                "'nuts' to them."
            )
        best = min(self.found, key=lambda found: found.verdict.rank)
        if not best.verdict.is_certified and (text := self._unfinished()):
            verdict = best.verdict
            best = best._replace(verdict=verdict._replace(problems=(text, *verdict.problems)))
        return best

    def _climb(self, plain: ModelForm) -> None:
        """One rung after the other, until one is certified."""
        first = self._without(plain, CHEAP, only_moving=True)
        rungs = {
            "nuts": self._nuts, "fit": self._fit, "flow": self._flow, "tempered": self._tempered,
        }  # fmt: skip
        self.ahead = [name for name in self.methods if name in rungs]
        while self.ahead:
            self.clock.check(self.ahead[0])
            if rungs[self.ahead.pop(0)](first, plain):
                return

    def _unfinished(self) -> str:
        """What the end of the time left undone, in words."""
        if not self.clock.why:
            return ""
        during = f" during '{self.clock.running}'" * bool(self.clock.running)
        ahead = f" before {', '.join(self.ahead)} began" * bool(self.ahead)
        return f"{self.clock.why}{during}{',' * bool(during and ahead)}{ahead}"

    def _exact(self, plain: ModelForm) -> Found | None:
        """Independent draws, where nothing is left to approximate."""
        if not simulated(plain.program, self.problem.args).choices:
            form = plain
        else:
            form = self._without(plain, DEAR, only_moving=False)
            if form is plain or simulated(form.program, self.problem.args).choices:
                return None
        each = np.zeros((self.num_samples, 0))
        evidence = lambda key, _, *args: {"": form.program.simulate(key, *args).log_density}
        found = map_keys(evidence, self.draw_key, 1, 1, self.problem.args, each[:1])
        if not np.isfinite(found[""]).all():
            return None  # data that are impossible, or a number that rounding has lost
        draw = lambda key: completed(self.problem, form.program, key, each, lambda _: {})
        return Found("exact", Verdict({}, ()), form, draw)

    def _without(self, form: ModelForm, most_work: float, *, only_moving: bool) -> ModelForm:
        """The form without normal sites for which that is exact and not dearer than this."""
        if "eliminate" not in self.methods:
            return form
        program, names = without_normal(
            form.program, self.problem.args, most_work=most_work, only_moving=only_moving
        )
        if not names:
            return form
        label = f"{', '.join(names)} integrated out"
        return form._replace(label=label, program=program, eliminated=(*form.eliminated, *names))

    def _nuts(self, first: ModelForm, plain: ModelForm) -> bool:
        found: list[bool] = []

        def is_coarse_at(run: Run) -> bool:
            found[:] = found or [self._is_coarse(first, run)]
            return found[0]

        def is_hopeless(run: Run, verdict: Verdict) -> bool:
            if verdict.is_funnel and next(self._other_forms(first, plain), None) is not None:
                return True
            return verdict.is_apart and is_coarse_at(run)

        if self.fitted is not None:
            starts, frame = near_guide(self._target(first), self.fitted, self.num_chains)
            label = f"{first.label} near the fit".strip()
            if (
                starts is not None
                and self._chains(
                    first._replace(label=label), (0.9,), starts, frame, num_warmup=_SHORT
                ).verdict.is_certified
            ):
                return True
        chains = self._chains(first, (0.9, 0.95), is_hopeless=is_hopeless)
        self.is_apart = chains.verdict.is_apart
        if chains.verdict.is_certified:
            return True
        is_hindered = chains.verdict.is_apart or chains.verdict.is_stiff
        if is_hindered and is_coarse_at(chains.run):
            label = f"{first.label} in double precision".strip()
            first, plain = (f._replace(label=label, is_double=True) for f in (first, plain))
            chains = self._chains(first, (0.9, 0.95))
            if chains.verdict.is_certified:
                return True
        if any(
            self._chains(form, (0.9, 0.95)).verdict.is_certified
            for form in self._other_forms(first, plain)
        ):
            return True
        if chains.verdict.is_apart:
            return self._in_modes(first, chains)
        return self._chains(first, (0.95, 0.99)).verdict.is_certified

    def _is_coarse(self, form: ModelForm, run: Run) -> bool:
        """Whether gradients where chains ended are those of single precision, and not the posterior's."""
        if form.is_double or jax.config.jax_enable_x64:
            return False
        try:
            with precision(is_double=True):
                fine = self._target(form._replace(is_double=True))
            return is_coarse(self._target(form), fine, run.u[:, -1])
        except (TypeError, ValueError):  # the program insists on single precision
            return False

    def _other_forms(self, first: ModelForm, plain: ModelForm) -> Iterator[ModelForm]:
        changed, names = noncentred(first.program, self._args(first))
        if names:
            yield first._replace(label=f"{', '.join(names)} shifted and scaled", program=changed)
        more = self._without(plain, DEAR, only_moving=False)
        if set(more.eliminated) - set(first.eliminated):
            yield more

    def _in_modes(self, form: ModelForm, chains: Chains) -> bool:
        """The places of the chains weighed; or chains that begin in further modes, and theirs."""
        if self._weighed_modes(form, chains):
            return True
        self.clock.check("modes")
        began = time.perf_counter()
        with precision(is_double=form.is_double):
            target = self._target(form)
            found = starts_in_modes(
                self.method, target, self._args(form), self._fresh(), self.num_chains
            )
        if found is None:
            return False
        starts, frame, text = found
        self._tell(Attempt("modes", time.perf_counter() - began, text, {}))
        label = f"{form.label} begun in modes".strip()
        chains = self._chains(form._replace(label=label), (0.9, 0.95), starts, frame)
        if chains.verdict.is_apart:
            return self._weighed_modes(form, chains)
        return chains.verdict.is_certified

    def _weighed_modes(self, form: ModelForm, chains: Chains) -> bool:
        with precision(is_double=form.is_double):
            target = self._target(form)
            if target.dimension > MOST_COORDINATES or chains.verdict.is_stiff:
                return False
            self.clock.check("importance")
            weighed = weigh_modes(target, chains.run, self._fresh(), self.num_samples)
        self._tell(weighed.attempt)
        draw = completing(self.problem, target, weighed.u, is_double=form.is_double)
        statistics = {"lp": singled(weighed.log_density)}
        self.found.append(Found("importance", weighed.verdict, form, draw, statistics=statistics))
        return weighed.verdict.is_certified

    def _chains(
        self, form: ModelForm, accepts: tuple[float, ...], starts: Any = None, frame: Any = None,
        is_hopeless: Callable[[Run, Verdict], bool] = lambda run, verdict: False,
        num_warmup: int = 2 * CHUNK,
    ) -> Chains:  # fmt: skip
        """Chains; with a short warm-up the mass matrix stays the identity in the frame."""
        with precision(is_double=form.is_double):
            target = self._target(form)
            settings = ChainSettings(
                self.num_chains, -(-self.num_samples // self.num_chains), num_warmup, accepts, 2,
                target.dimension <= DENSE_UP_TO, num_warmup > _SHORT, self.clock, self.problem.mesh,
            )  # fmt: skip
            key = self._fresh()
            chains = run_chains(
                self.method,
                target,
                key,
                settings,
                starts,
                frame,
                self._tell,
                form.label,
                is_hopeless,
            )
        self.found.append(chains_found(self.problem, target, chains, form))
        return chains

    def _tempered(self, first: ModelForm, plain: ModelForm) -> bool:
        """From the prior; where that does not do, from the fit, unless chains have told of places that it may not know."""
        starts: list[Mapping[str, np.ndarray] | None] = []
        if not improper_sites(simulated(first.program, self.problem.args).sites):
            starts.append(None)
        is_known = self.fitted is not None and not (self.fitted.is_elsewhere or self.is_apart)
        if self.fitted is not None and self.fitted.guide and is_known:
            starts.append(self.fitted.guide)
        for start in starts or [None]:
            self.clock.check("tempered")
            found = run_tempered(
                first.program, self.problem.args, self._fresh(), self.num_samples, self.clock, start
            )
            if self._weighed("tempered", first, found):
                return True
        return False

    def _fit(self, first: ModelForm, plain: ModelForm) -> bool:
        self.fitted = run_fit(
            first.program, self.problem.args, self._fresh(), self.num_samples, self.clock
        )
        return self._weighed("fit", first, self.fitted)

    def _flow(self, first: ModelForm, plain: ModelForm) -> bool:
        """A flow trained from the fit, which is made here if it has not been."""
        if self.fitted is None and self._fit(first, plain):
            return True
        assert self.fitted is not None
        self.clock.check("flow")
        target = self._target(first)
        _, frame = near_guide(target, self.fitted, self.num_chains)
        if frame is None:
            self._tell(Attempt("flow", 0.0, "there is no Normal guide to begin at", {}))
            return False
        u, verdict, attempt = run_flow(target, frame, self._fresh(), self.num_samples, self.clock)
        self._tell(attempt)
        if u is not None:
            draw = completing(self.problem, target, u, is_double=False)
            self.found.append(Found("flow", verdict, first, draw))
        return verdict.is_certified

    def _weighed(self, method: Method, form: ModelForm, found: FoundDraws) -> bool:
        self._tell(found.attempt)
        if (choices := found.choices) is None:
            return False
        draw = lambda key: completed(self.problem, form.program, key, choices, dict)
        self.found.append(Found(method, found.verdict, form, draw))
        return found.verdict.is_certified

    def _target(self, form: ModelForm) -> Target:
        """Traced once for a program and a precision."""
        known = id(form.program), form.is_double  # the target holds the program
        if known not in self.targets:
            self.targets[known] = make_target(self.method, form.program, self._args(form))
        return self.targets[known]

    def _args(self, form: ModelForm) -> tuple:
        return doubled(self.problem.args) if form.is_double else self.problem.args

    def _fresh(self) -> Key:
        return jax.random.fold_in(self.run_key, len(self.attempts))

    def _tell(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.say(str(attempt))

    def _made(self, found: Found, plain: ModelForm) -> Draws:
        target, attempts = lambda: self._target(plain), tuple(self.attempts)
        return make_draws(self.problem, found, target, self.draw_key, attempts)
