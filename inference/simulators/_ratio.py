"""Ratios of densities, learned by telling pairs apart: f(theta, x) = log p(theta, x) / (p(theta) p(x)).

A critic f sees data x with K parameters. In one class all of them are draws of the prior; in the others one of them, the k-th, is
the parameter that x was simulated with. With prior odds gamma of a pair (Miller et al. 2022, arXiv:2210.06170, equations 6 to 9)

    q(none | theta_1..K, x) = K / (K + gamma sum_k exp f_k),    q(k | ...) = gamma exp f_k / (K + gamma sum_k exp f_k)

and the loss is the cross-entropy, whose one optimum is f = log p(x | theta) / p(x), for each K and gamma. K = gamma = 1 is the
logistic loss of two classes. Without the class "none" (the softmax over K) f is free up to c(x): shapes of posteriors are right,
and no evidence is.

What must hold of a ratio, and costs nothing to see: E_{p(theta)} exp f(theta, x) = 1 for each x. Its logarithm is printed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn
from ..fitting.storage import hashed
from ._learn import Learned, RowProblem, learn
from ._saved import LearnedFile, save_learned
from ._standing_in import reads_of, refuse_noise, standing_in
from ._table import Part, ReferenceTable

Kind = Literal["contrastive", "logistic", "balanced", "softmax"]
_BALANCE = 50.0  # 100 beside the sum of both cross-entropies, of which the loss here is half
_DATA_SETS, _PRIOR_DRAWS = 200, 2_000  # held-out data, and draws of the prior, behind the evidence


class CriticFn(Protocol):
    """f(parameters, data) of standardised coordinates, [p] and [d], a number: an equinox module, to be trained."""

    def __call__(self, parameters: Array, data: Array, /) -> Array: ...


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Ratio:
    """A learned ratio of a likelihood to the evidence. Made by `ratio`.

    Attributes:
        table: what it was learned from.
        critic: f of standardised coordinates.
        kind: how it was learned, see `ratio`.
        training: the run, its looks at the validation rows, which parameters were kept.
        num_contrasts, gamma: as for `ratio`.
    """

    table: ReferenceTable
    critic: CriticFn
    kind: Kind
    training: Learned
    num_contrasts: int
    gamma: float

    def log_ratio(
        self, parameters: Mapping[str, ArrayLike], data: Mapping[str, ArrayLike]
    ) -> Float[Array, "*rows"]:
        """The learned log p(x | theta) / p(x), nats; of kind "softmax" up to a number that depends on the data.

        Args:
            parameters: latent site -> value, or rows of them.
            data: observed site -> value, or rows of them.
        """
        of_parameters, of_data = self.table.coordinates
        theta, x = of_parameters.flat(parameters), of_data.flat(data)
        return jnp.vectorize(self.critic, signature="(p),(d)->()")(theta, x)

    @property
    def model(self) -> ppl.Program:
        """The prior with the log-ratio at the data as a factor: a density of parameters whose evidence is 1.

        NUTS, `infer`, `tempered_smc` and `ppl.normalize` take it, with the arguments that the simulated program takes.

        Raises:
            ValueError: of kind "softmax", whose factor is known up to a number of the data.
        """
        self._check_normalised("model")

        def finish(values: Mapping[str, Array]) -> None:
            ppl.factor("log_ratio", self.log_ratio(values, values))

        return standing_in(self.table.model, list(self.table.data), None, finish)

    def log_evidence(self, data: Mapping[str, ArrayLike] | None = None) -> tuple[float, float]:
        """Log E_prior exp f and its standard error, nats; of a ratio it is 0.

        Args:
            data: observed site -> value. None: the mean over held-out data, and its error.

        Raises:
            ValueError: of kind "softmax".

        Validity: draws of the prior that are stored stand for it; where a posterior is narrow few of them count, and the error,
            first order in their number, says so as long as any does.
        """
        self._check_normalised("log_evidence")
        parameters = {n: x[:_PRIOR_DRAWS] for n, x in prior_draws(self.table).items()}
        if data is not None:
            weights = np.asarray(self.log_ratio(parameters, data), float)
            mean, error = _log_mean(weights)
            return float(mean), float(error)
        rows = {n: x[:_DATA_SETS] for n, x in self.table.rows("held out")[1].items()}
        each = lambda data: self.log_ratio(parameters, data)
        weights = np.asarray(shared_jit(lambda d: jax.lax.map(each, d))(rows), float)
        means = np.array([_log_mean(w)[0] for w in weights])
        return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)

    def mutual_information(self) -> tuple[float, float]:
        """E_{p(theta, x)} f over held-out rows and its standard error: the mutual information, nats, if f is the ratio.

        Raises:
            ValueError: of kind "softmax".
        """
        self._check_normalised("mutual_information")
        values = np.asarray(self.log_ratio(*self.table.rows("held out")), float)
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write the critic's parameters and the rows to one file, whole or not at all; what is code is given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        facts = {"kind": self.kind, "num_contrasts": self.num_contrasts, "gamma": self.gamma}
        given = _structure(self.table, self.critic)
        save_learned(path, "Ratio", self.table, self.training, given, facts)

    @classmethod
    @checked_call
    def load(
        cls,
        path: str | os.PathLike,
        model: ModelFn,
        args: tuple | None = None,
        *,
        critic: CriticFn | None = None,
    ) -> Ratio:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the program, or the prior of a simulator that is a function, as given to `reference_table`.
            args: its arguments, likewise.
            critic: as given to `ratio`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or has changed since; the model or the critic is another, each difference
                named.
        """
        file = LearnedFile.read(path, "Ratio", model, args)
        table, facts = file.table, file.facts()
        own = _default_critic(table, jax.random.key(0)) if critic is None else critic
        file.check(_structure(table, own), {"critic"} if critic is None else ())
        training = file.training(_problem(table, own, **facts))
        return cls(table, _with_parameters(own, training.params), training=training, **facts)

    def _check_normalised(self, asked: str) -> None:
        if self.kind == "softmax":
            raise ValueError(
                f"Ratio.{asked}: a ratio of kind 'softmax' (NRE-B) is learned up to a number c(x) that nothing determines, so "
                "that its normaliser, an evidence and comparisons between data sets are meaningless. Learn it by "
                "kind='contrastive'; log_ratio of several parameters at one data set differs as it should."
            )

    def _facts(self) -> dict[str, PyTree]:
        facts: dict[str, PyTree] = {
            "kind": self.kind + (", biased on purpose" if self.kind == "balanced" else ""),
            "simulations": self.table.num_simulations,
            "training": str(self.training),
        }
        if self.kind != "softmax":
            (evidence, error), (information, other) = self.log_evidence(), self.mutual_information()
            facts["log evidence"] = f"{evidence:.3g} +- {error:.2g} nats, of a ratio 0"
            facts["mutual information"] = f"{information:.3g} +- {other:.2g} nats"
        return facts


@checked_call
def ratio(
    table: ReferenceTable,
    *,
    kind: Kind = "contrastive",
    num_contrasts: int = 10,
    gamma: float = 1.0,
    critic: CriticFn | None = None,
    key: Key | None = None,
    num_steps: int | None = None,
    progress: bool = True,
) -> Ratio:
    """The ratio of likelihood and evidence, log p(x | theta) / p(x), learned from simulations: neural ratio estimation (NRE).

    Args:
        table: simulations, of `simulators.reference_table`.
        kind: "contrastive" (NRE-C), among K parameters and none; "logistic" (NRE-A), the same with K = gamma = 1; "balanced"
            (BNRE), logistic with a penalty for classes that do not balance: *biased on purpose*, to posteriors that are too wide
            rather than too narrow; "softmax" (NRE-B), among K parameters, whose normaliser is not known and refused.
        num_contrasts: K, at least 2 for "softmax".
        gamma: prior odds of a pair against none, for "contrastive".
        critic: f of standardised coordinates of parameters [p] and data [d], an equinox module that is trained; default a
            quadratic form and a network.
        key: PRNG key; default `jax.random.key(0)`.
        num_steps: at most so many; default 120 for the root of the number of rows. It ends when the validation loss has not
            fallen for a third of them, and the best parameters are kept; where these are of an early step, it is run again with
            weights that decay, as long as the validation loss gains.
        progress: show a bar.

    Returns:
        A `Ratio`; `Ratio.model` is the posterior as a program.

    Raises:
        ValueError: numbers are impossible, or do not belong to the kind.

    Validity: each kind but "balanced" is strictly proper: with critic and data without limit f is the ratio. What was learned
    from finite data is judged by `Ratio.log_evidence`, which must be 0.

    Reference: Hermans, Begy and Louppe 2020, arXiv:1903.04057 (A); Durkan, Murray and Papamakarios 2020, arXiv:2002.03712 (B);
    Miller, Weniger and Forré 2022, arXiv:2210.06170 (C); Delaunoy et al. 2022, arXiv:2208.13624 (balanced).
    """
    check_counts("ratio", 2 if kind == "softmax" else 1, num_contrasts=num_contrasts)
    if not 0 < gamma < np.inf:
        raise ValueError(
            f"ratio: gamma is {gamma}, and odds are positive numbers. Give 1, or more to see more pairs; infinite odds are "
            "kind='softmax'."
        )
    if table.region is not None:
        raise ValueError(
            "ratio: the table has draws of the prior cut to where one posterior can be, and a ratio to the evidence of the whole "
            "prior cannot be learned from them. Give the table that the rounds began with."
        )
    refuse_noise("ratio", reads_of(table.model, table.args), list(table.data))
    key = jax.random.key(0) if key is None else typed_key(key)
    init_key, learn_key = jax.random.split(key)
    own = _default_critic(table, init_key) if critic is None else critic
    if kind in ("logistic", "balanced"):
        num_contrasts, gamma = 1, 1.0
    problem = _problem(table, own, kind, num_contrasts, gamma)
    learned = learn(problem, learn_key, num_steps=num_steps, progress=progress)
    made = _with_parameters(own, learned.params)
    return Ratio(table, made, kind, learned, num_contrasts, gamma)


def _as_rows(table: ReferenceTable, part: Part) -> dict[str, np.ndarray]:
    """Coordinates of parameters and data of one part."""
    of_parameters, of_data = table.coordinates
    parameters, data = table.rows(part)
    return {
        "theta": np.asarray(of_parameters.flat(parameters)),
        "x": np.asarray(of_data.flat(data)),
    }


def _default_critic(table: ReferenceTable, key: Key) -> CriticFn:
    from ._networks import Critic

    of_parameters, of_data = table.coordinates
    training = _as_rows(table, "training")
    begun = Critic(of_parameters.size, of_data.size, key=key)
    return begun.fitted(training["theta"], training["x"])


def _problem(
    table: ReferenceTable, critic: CriticFn, kind: Kind, num_contrasts: int, gamma: float
) -> RowProblem:
    """What the critic is to learn from a table."""
    import equinox as eqx

    pool = jnp.asarray(table.coordinates[0].flat(prior_draws(table)))

    def loss(params: Mapping[str, PyTree], key: Key, rows: Mapping[str, Array]) -> Array:
        f = jax.vmap(_with_parameters(critic, params))
        theta, x = rows["theta"], rows["x"]
        size = num_contrasts * 2 - 1
        others = pool[jax.random.randint(key, (size, len(x)), 0, len(pool))]
        contrasts = jax.vmap(lambda theta: f(theta, x))(others)
        return _LOSSES[kind](f(theta, x), contrasts, gamma)

    init = lambda key: ppl.Params({"critic": eqx.filter(critic, eqx.is_inexact_array)})
    return RowProblem(
        "ratio", init, loss, _as_rows(table, "training"), _as_rows(table, "validation")
    )


def _with_parameters(critic: CriticFn, params: Mapping[str, PyTree]) -> CriticFn:
    import equinox as eqx

    return eqx.combine(params["critic"], eqx.filter(critic, eqx.is_inexact_array, inverse=True))


def _structure(table: ReferenceTable, critic: CriticFn) -> dict[str, PyTree]:
    """What a file says of the critic: its class, and the digest of what it computes."""
    import equinox as eqx

    sizes = [jax.ShapeDtypeStruct((c.size,), jnp.result_type(float)) for c in table.coordinates]
    called = lambda arrays, *both: _with_parameters(critic, {"critic": arrays})(*both)
    digest = hashed(called, eqx.filter(critic, eqx.is_inexact_array), *sizes)
    return {"critic": {"critic": [type(critic).__name__, digest]}}


def prior_draws(table: ReferenceTable) -> dict[str, np.ndarray]:
    """Parameters of the training rows with their share of those whose simulations failed: draws of the whole prior."""
    rows = table.rows("training")[0]
    share = len(table.parts["training"]) / table.num_simulations
    few = round(share * table.num_failed)
    both = {n: np.concatenate([x, table.failed[n][:few]]) if few else x for n, x in rows.items()}
    size = len(next(iter(both.values())))
    order = np.random.default_rng(1).permutation(size)
    return {n: x[order] for n, x in both.items()}


def _contrastive(pairs: Array, contrasts: Array, gamma: float) -> Array:
    """Of K = (number of contrasts + 1) / 2: the first K stand without a pair, the others beside one."""
    num = (len(contrasts) + 1) // 2
    log_k, log_gamma = jnp.log(num), jnp.log(gamma)
    with_none = lambda f: jax.nn.logsumexp(
        jnp.concatenate([jnp.full((1, *f.shape[1:]), log_k), log_gamma + f]), axis=0
    )
    none = log_k - with_none(contrasts[:num])
    pair = log_gamma + pairs - with_none(jnp.concatenate([pairs[None], contrasts[num:]]))
    return -(none + gamma * pair) / (1 + gamma)


def _softmax(pairs: Array, contrasts: Array, gamma: float) -> Array:
    num = (len(contrasts) + 1) // 2
    all_f = jnp.concatenate([pairs[None], contrasts[num:]])
    return jax.nn.logsumexp(all_f, axis=0) - pairs


def _balanced(pairs: Array, contrasts: Array, gamma: float) -> Array:
    balance = jax.nn.sigmoid(pairs).mean() + jax.nn.sigmoid(contrasts[0]).mean() - 1
    return _contrastive(pairs, contrasts, 1.0) + _BALANCE * balance**2


_LOSSES: dict[Kind, Callable[[Array, Array, float], Array]] = {
    "contrastive": _contrastive,
    "logistic": _contrastive,
    "balanced": _balanced,
    "softmax": _softmax,
}


def _log_mean(log_weights: np.ndarray) -> tuple[float, float]:
    """Log of the mean of the exponentials, and its standard error, first order."""
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    mean = weights.mean()
    return float(largest + np.log(mean)), float(weights.std(ddof=1) / mean / len(weights) ** 0.5)
