"""Refuse programs whose result jumps where a gradient estimator looks away.

Theory. Let f(z; theta) jump on a surface S(theta) in the space of the noise. d/dtheta E[f] then has, beside the mean of
df/dtheta and the scores of laws, a boundary term: the density on S, times the jump, times the speed with which S moves relative
to the noise that an estimator keeps. An estimator keeps

- for a pathwise site, the noise behind its value: the value moves, and crosses a surface that stands still;
- for every other site, the value itself: only its law moves, which the estimator knows about, and a surface that stands still
  is no matter; but parameters may move the surface across a value that is kept;
- for random keys, the noise.

So one rule serves all strategies and objectives: with everything kept that the estimators keep, the result must not jump as the
parameters move. Two questions decide it: does the result jump in a pathwise value that parameters move, everything else kept?
Does it jump in the parameters, with pathwise values following them? A jump that no continuous noise decides lies at isolated
parameters and has no boundary term.

The static analysis (`jaxprs/_continuity.py`) finds the places where it *may* jump. Most are continuous in fact (a leaky_relu
written by hand, interpolation, guards of supports): on suspicion the traced program is evaluated along random paths
(`_jump_probe.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._quiet import quiet
from ..analysis import Analysed
from ..distributions import LAWS
from ..jaxprs import PARAMS, SAMPLER, Cause, merged, solver_in
from ..strategies import Boundary, StrategyError, StrategySite
from ._inputs import as_wide
from ._jump_probe import DEFAULT, LargestJumps, Probe
from ._jump_search import JumpSearch
from ._probe_inputs import inputs_of

Suspects = dict[int | str, Cause]
UNCHECKED = "Where you know that nothing jumps, check_jumps=False, of the objective or of fit(model, ...), leaves out the search."


def suspects_of(program: Analysed) -> Suspects:
    """What may make the result, or the parameters of another site, jump; and why. Sites by index, and `PARAMS`."""
    facts = program.facts
    found = merged([facts[program.result].jumps, *(f.jumps for f in facts.parameters.values())])
    moved = _moved_sites(program)
    return {
        source: why for source, why in found.items() if _is_checked(program, source, why, moved)
    }


def _moved_sites(program: Analysed) -> set[int]:
    """Sites whose value, or relaxed value, moves with the parameters."""
    moved: set[int] = set()
    while True:
        new = {
            i
            for i, site in program.sites.items()
            if (site.strategy.moves_value or "slope" in site.strategy.calls)
            and (moved | {PARAMS}) & program.facts.parameters[i].relations.keys()
        }
        if new == moved:
            return moved
        moved = new


def _is_checked(program: Analysed, source: int | str, why: Cause, moved: set[int]) -> bool:
    if isinstance(source, int):
        return source in moved and not _is_accepted(program.sites[source])
    of_sampler = {SAMPLER + site.address: site for site in program.sites.values()}
    noise = [program.sites[s] if isinstance(s, int) else of_sampler.get(s) for s in why.noise]
    return not all(site is not None and _is_accepted(site) for site in noise)


def _is_accepted(site: StrategySite) -> bool:
    """Whether the user has accepted the bias of jumps."""
    return site.strategy.is_biased or bool(getattr(site.strategy, "allow_jumps", False))


class ProgramSearch:
    """The search for jumps of one program, compiled at its first use.

    Args:
        sites: of the program, by index.
        suspects: what to search, see `suspects_of`.
        copy: analyses the program anew with data as inputs, in the precision that is in force; returns it. It outlives the trace
            and must not hold its tracers.
        how: how finely to search.
    """

    def __init__(
        self,
        sites: Mapping[int, StrategySite],
        suspects: Suspects,
        copy: Callable[[], Analysed],
        how: JumpSearch = DEFAULT,
    ) -> None:
        self.sites, self.suspects = sites, suspects
        self._copy, self._how = copy, how
        self._trials: Trials | None = None
        self._narrow: Trials | None = None

    def __str__(self) -> str:
        names = {
            s: "the parameters" if isinstance(s, str) else f"'{self.sites[s].address}'"
            for s in self.suspects
        }
        return ", ".join(f"{names[s]} ({why.operation})" for s, why in self.suspects.items())

    def __call__(self, params: list[PyTree], data: list[PyTree]) -> dict[int | str, LargestJumps]:
        """What is found at these values, which may not be tracers."""
        trials = self._trials  # another thread may be at its own search
        with quiet():  # NumPyro warns of values outside the support, which probing may meet
            if trials is None or trials.probe.is_double:
                try:
                    with jax.enable_x64(True):
                        found = self._run(trials, params, data, is_double=True)
                    return self._with_overflow(found, params, data)
                except (TypeError, ValueError):  # the program insists on float32
                    trials = None
            return self._run(trials, params, data, is_double=False)

    def _run(
        self, trials: Trials | None, params: list[Array], data: list[PyTree], *, is_double: bool
    ) -> dict[int | str, LargestJumps]:
        if trials is None:
            self._trials = trials = self._made(self.suspects, is_double=is_double)
        return trials(params, data)

    def _made(self, suspects: PyTree, *, is_double: bool, is_narrow: bool = False) -> Trials:
        def probe(is_rounded: bool) -> Probe:
            copy = self._copy()
            # Traced as every program is: where constants of JAX are computed at once, each operation on one would be compiled.
            with jax.ensure_compile_time_eval():
                return Probe(
                    suspects,
                    copy,
                    is_double=is_double,
                    how=self._how,
                    is_rounded=is_rounded,
                    is_narrow=is_narrow,
                )

        return Trials(probe)

    def _with_overflow(
        self, found: dict[int | str, LargestJumps], params: list[Array], data: list[PyTree]
    ) -> dict[int | str, LargestJumps]:
        """What overflows does so where single precision ends; with all digits, since rounding is no overflow."""
        # Where all noise is that of suspected sites, their own paths meet it. In the space of the parameters a program overflows
        # far from here.
        is_met = lambda s, c: isinstance(s, str) and all(n in self.suspects for n in c.noise)
        over = {s: c for s, c in self.suspects.items() if c.is_overflow and not is_met(s, c)}
        if not over or jax.config.jax_enable_x64:
            return found
        with jax.enable_x64(True):
            narrow = self._narrow
            if narrow is None:
                self._narrow = narrow = self._made(over, is_double=True, is_narrow=True)
            sizes = narrow(params, data)
        finite = lambda x: x if np.isfinite(x) else 0.0  # what is nowhere finite is loud
        larger = lambda a, b: LargestJumps(
            max(a.here, finite(b.here)), max(a.elsewhere, finite(b.elsewhere))
        )
        return {s: larger(f, sizes[s]) if s in sizes else f for s, f in found.items()}

    def refuse(self, found: Mapping[int | str, LargestJumps], *, elsewhere: str = "") -> None:
        """Raise for the first source that jumps.

        Args:
            found: what `__call__` returned.
            elsewhere: where data are not known: refuse also what jumps at other data only, with these words.

        Raises:
            StrategyError: naming site, operation and remedy.
            ValueError: the same where no strategy could help.
        """
        for source, (here, there) in found.items():
            size = max(here, there) if elsewhere else here
            if size > 0:
                what = (
                    f"jumps by {size:.3g}"
                    if np.isfinite(size)
                    else "was not finite anywhere it was tried"
                )
                raise refusal(self.sites, source, what, self.suspects, elsewhere, self._solver())

    def _solver(self) -> str:
        """The solver of differential equations that the program calls."""
        trials = self._trials
        return "" if trials is None else solver_in(trials.probe.program.closed.jaxpr)

    @staticmethod
    def is_settled(found: Mapping[int | str, LargestJumps]) -> bool:
        """Whether no other data make it jump either."""
        return all(there == 0 for _, there in found.values())


class Trials:
    """A probe, and where it finds something a second one for which a change counts beyond its rounding only; made when needed.

    Args:
        made: a probe; its argument is `is_rounded`.
    """

    def __init__(self, made: Callable[[bool], Probe]) -> None:
        self._made, self.probe = made, made(False)
        self._rounded: Probe | None = None

    def __call__(self, params: list[PyTree], data: list[PyTree]) -> dict[int | str, LargestJumps]:
        """What is found at these values, by source."""
        with jax.ensure_compile_time_eval():
            if self.probe.is_double:
                params, data = as_wide(params), as_wide(data)
            inputs = inputs_of(params, data, self.probe.program.closed)
        trial = self.probe(inputs)
        if trial.sizes.any():
            rounded = self._rounded
            if rounded is None:
                self._rounded = rounded = self._made(True)
            trial = rounded.again(inputs, trial)
        return self.probe.found(trial, inputs)


def refusal(
    sites: Mapping[int, StrategySite],
    source: int | str,
    found: str,
    suspects: Suspects,
    where: str = "",
    solver: str = "",
) -> ValueError:
    """The error for a source that jumps; `solver` is one of differential equations that the program calls."""
    operation = suspects[source].operation
    if solver:
        return _adaptive(sites, source, found, operation, where, solver)
    if isinstance(source, str):
        return _threshold(sites, suspects[source], found, where)
    site = sites[source]
    name = f"strategies={{'{site.name}': "
    if "slope" in site.strategy.calls:
        return StrategyError(
            site.name,
            f"Site '{site.address}': the result {found} as a function of its relaxed value (operation: {operation}){where}, and "
            f"the derivative that strategy '{site.strategy.name}' takes there misses jumps. Use 'disarm', 'reinforce' or "
            f"ppl.Relax, e.g. {name}'reinforce'}}, or write the cost without the jump. {UNCHECKED}",
        )
    if PARAMS in suspects and source in suspects[PARAMS].noise:
        remedy = (
            "Parameters may move the place of the jump too, which no score for this site sees: first let its law carry them "
            "(draw the shifted variable, and compare it with a constant), "
        )
    else:
        remedy = ""
    return StrategyError(
        site.name,
        f"Site '{site.address}': the result {found} as a function of its reparameterised value "
        f"(operation: {operation}){where}, and a pathwise gradient misses jumps. {remedy}{'then use' if remedy else 'Use'} "
        f"'reinforce' or 'mvd', e.g. {name}'reinforce'}}, or smooth the jump; {_boundary(site)}"
        f"ppl.Reparam(allow_jumps=True) accepts the bias. {UNCHECKED}",
    )


def _adaptive(
    sites: Mapping[int, StrategySite],
    source: int | str,
    found: str,
    operation: str,
    where: str,
    solver: str,
) -> ValueError:
    """A program with a solver whose steps follow its error: its own jumps are not told from others."""
    site = sites[source] if isinstance(source, int) else None
    who = f"Site '{site.address}'" if site else "Parameters"
    message = (
        f"{who}: the result {found} as {'its value moves' if site else 'they move'} (operation: {operation}){where}. "
        f"The program calls {solver}, whose adaptive steps jump within their tolerance, and more so behind a logarithm or a "
        "quotient near zero. Of odeint with a smooth field that is taken for the solution, if what reads it is smooth, too: keep "
        "it inside of the domain, e.g. jnp.log(jnp.maximum(z, 1e-6)). Or take fixed steps (a scan of Runge-Kutta steps), or "
        "accept steps that you know to be fine enough by check_jumps=False. If the program jumps by itself, use "
        "'reinforce' for the site, or smooth the jump."
    )
    return StrategyError(site.name, message) if site else ValueError(message)


def _boundary(site: StrategySite) -> str:
    """Whether the boundary strategy would help."""
    scope = "comparisons (<, >) that are affine in one element of the value, outside of loops and branches"
    if isinstance(site.strategy, Boundary):
        return f"'boundary' treats {scope}, only; "
    if site.distribution not in LAWS:
        return ""
    return f"or use 'boundary', which treats {scope}; "


def _threshold(sites: Mapping[int, StrategySite], why: Cause, found: str, where: str) -> ValueError:
    """Parameters move the place of a jump across noise that is kept."""
    keys = sorted(s.removeprefix("rng:") for s in why.noise if isinstance(s, str))
    for site in sites.values():
        if SAMPLER + site.address in keys:
            return StrategyError(
                site.name,
                f"Site '{site.address}': the sampler of {site.distribution} is not NumPyro's, and with its noise kept the result "
                f"{found} as a function of the parameters (operation: {why.operation}){where}. Strategy '{site.strategy.name}' "
                "differentiates the draw and misses that. Use 'reinforce', take the parameter out of `reparametrized_params`, or "
                f"draw without comparing noise with parameters. {UNCHECKED}",
            )
    if keys:
        return ValueError(
            f"ppl.rng_key('{keys[0]}'): at fixed noise the result {found} as a function of the "
            f"parameters (operation: {why.operation}){where}, and the gradient misses jumps. Noise of a key must not be "
            f"thresholded by a parameter: make the draw a site, ppl.sample(name, distribution), with a strategy. {UNCHECKED}"
        )
    kept = [sites[s] for s in sorted(s for s in why.noise if isinstance(s, int))]
    site = kept[0]
    names = ", ".join(f"'{s.address}'" for s in kept)
    return ValueError(
        f"Site{'s' if len(kept) > 1 else ''} {names}: with the noise of the draw kept, the result {found} as a function of "
        f"the parameters (operation: {why.operation}){where}. Parameters move the place of the jump, and the strategy of the "
        f"site ('{site.strategy.name}') does not see that, since it moves the law of the value only. Let the law carry the "
        f"parameters: draw the shifted variable, e.g. d = z - t for a threshold t, as site '{site.name}', compare it with a "
        "constant, and use 'reinforce' or 'mvd'; sum the site out in closed form (a Bernoulli with the probability of the "
        f"event); {_boundary(site)}or smooth the jump. {UNCHECKED}"
    )
