"""Learned posteriors: a guide of all latent sites given the data, trained on stored simulations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key, ModelFn
from ...posterior_checks import PosteriorReport, Simulations, check_simulations
from .._learn import Learned, learn, losses_on
from .._side_by_side import Turn, in_turn
from .._table import ReferenceTable
from ._amortised import Amortised
from ._given import check_prior, checked_data
from ._guides import as_rows, check_density, check_guide, default_guide, guide_of, problem_of
from ._rounds import in_rounds

_CHECKED, _DRAWS = 400, 99  # held-out data sets that the report is on, and draws for each
_LEAST_EPSILON = 1e-5  # a threshold needs ten draws beyond it, out of a million


@checked_call
def amortise(
    table: ReferenceTable,
    *,
    guide: ModelFn | None = None,
    at: Mapping[str, PyTree] | None = None,
    num_rounds: int = 4,
    epsilon: float = 1e-4,
    tolerance: float = 0.05,
    key: Key | None = None,
    num_steps: int | None = None,
    num_seeds: int = 1,
    progress: bool = True,
) -> Amortised:
    """The posterior given any data, learned from simulations, with its calibration report: neural posterior estimation (NPE).

    The loss is that of `sleep`, -E_{p(theta, x)} log q(theta | x), on stored pairs instead of fresh ones.

    With `at` it is the posterior at these data alone, learned in rounds (TSNPE): each simulates as many pairs as the table has,
    with parameters drawn from the prior where the posterior of the round before has all of its mass but epsilon, and learns from
    all pairs that lie there. What is learned then is right up to this mass, without any correction.

    Args:
        table: simulations, of `simulators.reference_table`; with `at` the first round.
        guide: a program of the latent sites, whose arguments are the observed sites by name. Default: site after site a spline
            flow on unconstrained, standardised values, given the data and the sites before; it begins as a Normal whose mean is
            linear. Its networks see each continuous number of the data by its rank among the training rows.
        at: one observation, site -> value.
        num_rounds: at most so many, for `at`.
        epsilon: mass that the posterior of a round may have outside of the region of the next, at least 1e-5.
        tolerance: rounds end when the posterior at the data moves by less than so many nats, the mean of both KL divergences.
        key: PRNG key; default `jax.random.key(0)`.
        num_steps: as for `ratio`, in each round and of each member.
        num_seeds: members of an ensemble: the guide is trained so often, from other networks, in other minibatches and judged by
            other validation rows, which take turns, and the posterior is the equal mixture of what came out. Each member costs a
            training, so that one is the default; compiling and the search for a decay are done once (where an array of the rows
            has more than 1,024 numbers), and on a CPU two members are trained at a time. Three have most of what five have where
            simulations are few.
        progress: show a bar.

    Returns:
        An `Amortised`: `draws(key, data)`, the guide, the report. Where the model has a density, `posterior(key, *args)` has the
        weights that lead to the exact posterior.

    Raises:
        ValueError: the guide does not match the model, or has noise beside its draws; a discrete site has no guide; a support
            moves with another draw; numbers are impossible; nothing is known to make more of the table's rows, or they are of
            rounds at other data.

    Validity: the guide is exact at the optimum of a family without limit, given unlimited simulations. What was learned is
    judged by `Amortised.report`, of `posterior_checks.check_simulations` on pairs that nothing was trained on. In rounds these
    are pairs of the region; a round whose tails are too light on them is the last, and `Amortised.rounds` says so.

    An ensemble's log q is at least the mean of its members', at any data: what they disagree about is noise of training, of which
    the mixture keeps a part of K. `Amortised.disagreement` says how much that is.

    Reference: Papamakarios and Murray 2016, arXiv:1605.06376; Greenberg, Nonnenmacher and Macke 2019, arXiv:1905.07488 (NPE);
    Deistler, Goncalves and Macke 2022, arXiv:2210.04815 (rounds); Lakshminarayanan, Pritzel and Blundell 2017, arXiv:1612.01474,
    and Hermans et al. 2022, arXiv:2110.06581 (ensembles); the checks, see `inference.posterior_checks`.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def model(x):
        ...     m = ppl.sample("m", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> table = inference.simulators.reference_table(model, (0.0,))  # doctest: +SKIP
        >>> found = inference.amortise(table)  # doctest: +SKIP
        >>> draws = found.draws(jax.random.key(1), {"x": 2.0})  # doctest: +SKIP
        >>> found = inference.amortise(table, at={"x": 2.0})  # doctest: +SKIP
    """
    key = jax.random.key(0) if key is None else typed_key(key)
    if table.region is not None:
        raise ValueError(
            "amortise: the table has draws of the prior cut to where one posterior can be, which are wrong for other data. Give "
            "the table that the rounds began with."
        )
    check_counts("amortise", num_seeds=num_seeds)
    learned = functools.partial(
        _learned, guide=guide, num_steps=num_steps, num_seeds=num_seeds, progress=progress
    )
    if at is None:
        return learned(table, key)
    check_counts("amortise", num_rounds=num_rounds)
    if not _LEAST_EPSILON <= epsilon < 1 or not tolerance >= 0:
        raise ValueError(
            f"amortise: epsilon is {epsilon} and tolerance {tolerance}. Give a mass from {_LEAST_EPSILON} to 1, which draws can "
            "tell from nothing, and a number of nats that is not negative."
        )
    if table.simulate is None:
        raise ValueError(
            "amortise: rounds simulate, and the table's rows are from a file or given, so that nothing is known to make others. "
            "Make the table by reference_table."
        )
    data = checked_data(table, at)
    found, rounds = in_rounds(
        learned, table, data, num_rounds=num_rounds, epsilon=epsilon, tolerance=tolerance, key=key
    )
    return dataclasses.replace(found, rounds=rounds)


def _learned(
    table: ReferenceTable,
    key: Key,
    *,
    guide: ModelFn | None,
    num_steps: int | None,
    num_seeds: int,
    progress: bool,
) -> Amortised:
    """The posterior that one table tells."""
    net_key, learn_key, draw_key, check_key = jax.random.split(key, 4)
    own = default_guide(table, net_key) if guide is None else ppl.as_program(guide)
    check_guide(table, own)
    if guide is not None:
        check_density(table, own)
    if table.simulate is None and table.region is None:
        check_prior(table, check_key)
    problem = problem_of(table, own)
    training = [learn(problem, learn_key, num_steps=num_steps, progress=progress)]

    def member(number: int, turn: Turn) -> Learned:
        # The same program from another start on other rows of the same number: nothing is compiled anew.
        turn.compiled.set()
        net_key, again = jax.random.split(jax.random.fold_in(learn_key, number))
        begun = own if guide is not None else default_guide(table, net_key, number)
        other = problem_of(table, own, number)._replace(init=problem_of(table, begun, number).init)
        is_shown = progress and not turn.is_beside
        return learn(other, again, num_steps=num_steps, progress=is_shown, decay=training[0].decay)

    numbers = range(1, 1 if training[0].fit.interrupted else num_seeds)
    training += in_turn([functools.partial(member, n) for n in numbers], problem.name)
    held = losses_on(as_rows(table, "held out"), problem.loss)
    each = -np.stack([np.asarray(held(member.params, learn_key), float) for member in training])
    scores = np.logaddexp.reduce(each) - np.log(len(training))
    bound = guide_of(own, training)
    report = _report(bound, table, draw_key, check_key)
    mean, error = float(scores.mean()), float(scores.std(ddof=1) / len(scores) ** 0.5)
    disagreement = max(mean - float(each.mean()), 0.0)
    return Amortised(
        table, bound, (mean, error), report, tuple(training), disagreement=disagreement
    )


def _report(guide: ppl.Program, table: ReferenceTable, draw_key: Key, key: Key) -> PosteriorReport:
    """Checks of the guide's draws at held-out data against the parameters that made them."""
    truths, data = ({n: x[:_CHECKED] for n, x in v.items()} for v in table.rows("held out"))

    def posterior(inputs: tuple[Key, dict[str, Array]]) -> dict[str, Array]:
        key, data = inputs
        draw = lambda key: dict(guide.simulate(key, **data).choices)
        return jax.vmap(draw)(jax.random.split(key, _DRAWS))

    keys = jax.random.split(draw_key, len(next(iter(data.values()))))
    draws = shared_jit(lambda *all: jax.lax.map(posterior, all, batch_size=100))(keys, data)
    found = {n: np.asarray(x) for n, x in draws.items() if n in truths}
    return check_simulations(Simulations(truths, data, found), key)
