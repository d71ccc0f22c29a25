"""The result of fit: what it is asked for, at which parameters and arguments."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ...ppl._calls import checked_call
from ...ppl._show import shown
from ...ppl._types import ModelFn, ParamMap
from ...ppl.language import as_tuple, labelled_as, labels_of
from ...ppl.traces import strong
from .._abstract_objective import AbstractObjective
from .._game import Game
from .._made_for import MadeFor, own
from .._mapped import map_keys
from .._meshes import on_mesh, over_auto_axes
from ..inputs import check_new, evidence_of
from ._choose import choose_objective
from ._fit_facts import AVERAGED, ENDS, StopReason, last_values, named_args
from ._judgement import GuideWorth
from .prediction import Posterior, predict_batches, predictive, tell_of_nan, weighted_draws
from .stationarity import Averaging
from .storage import export_fit, load_fit, save_fit


@shown
@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` found.

    Attributes:
        objective: the objective that was fitted (plate sizes as in the program; a minibatch fit declares its own).
        params: fitted parameters, unconstrained; the running average if `average` was given. With several seeds, every leaf
            has a leading axis of length num_seeds.
        last_params: the last iterate; the same as `params` without averaging.
        state: the objective's state after the last step.
        history: "value": the objective at each step in nats, with the objective's own sign; float array of shape [steps] or
            [steps, num_seeds]. Non-finite where a step was skipped.
        args: the arguments given to fit; None if they came from an iterable.
        steps: number of completed steps, skipped ones included.
        num_skipped: number of steps not applied because they were not finite; an array [num_seeds] with several seeds.
        num_seeds: number of independent runs, or None for a single one without a seed axis.
        example: shapes of one step's arguments, where `args` is None.
        averaging: of `average="stationary"`, what is known of the iterates.
        labels: levels of categories and columns of frames among the arguments, by argument; new ones are put in their order.
        worth: what weighted draws say about the guide, k-hat and effective number; None where it was not judged, and of a loaded
            fit.
        stop_reason: "num_steps" (done), "settled" (the value had), "callback", "interrupt" (Ctrl-C), "data" (the iterator ended)
            or "error" (the fit inside a `NonFiniteError`).
    """

    objective: AbstractObjective
    params: PyTree
    last_params: PyTree
    state: PyTree
    history: dict[str, np.ndarray]
    args: tuple | None
    steps: int
    num_skipped: int | np.ndarray
    num_seeds: int | None
    stop_reason: StopReason
    example: tuple | None = dataclasses.field(default=None, repr=False)
    averaging: Averaging | None = dataclasses.field(default=None, repr=False)
    labels: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict, repr=False)
    worth: GuideWorth | None = dataclasses.field(default=None, repr=False)

    def _facts(self) -> dict[str, PyTree]:
        averaged = AVERAGED if self.params is not self.last_params else None
        skipped = int(np.sum(self.num_skipped))
        return {
            "objective": f"{self.objective.name}, {self.objective.direction}imised",
            "value": last_values(self.history["value"]),
            "steps": f"{self.steps}{f' ({skipped} skipped)' if skipped else ''}, {ENDS[self.stop_reason]}",
            "seeds": self.num_seeds,
            "worth": None if self.worth is None else str(self.worth),
            "evidence": evidence_of(getattr(self.objective, "model", None), self.args),
            "params": self.params,
            "averaged": averaged if self.averaging is None else str(self.averaging),
            "noise": None if self.averaging is None else self.averaging.noise_text(),
            "state": self.state if jax.tree.leaves(self.state) else None,
            "args": named_args(self.args),
        }

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run, which is no error: a script goes on, and ends with exit code 0."""
        return self.stop_reason == "interrupt"

    @property
    def label(self) -> str:
        """What `history["value"]` holds: the objective's name, and what site weights make of it; see `Objective.label`."""
        name, weights = self.objective.name, getattr(self.objective, "site_weights", None)
        if weights is None:
            return name
        if self.args is None:  # the sites are not known here
            return f"{name} with site weights (not a bound)"
        return self.objective.label(*self.args)

    @property
    def model(self) -> Any:
        """The objective's model with the fitted parameters bound, or None if it has none."""
        return self._bound("model")

    @property
    def guide(self) -> Any:
        """The objective's guide with the fitted parameters bound, or None if it has none."""
        return self._bound("guide")

    def with_params(self, params: ParamMap) -> Fit:
        """The fit at other parameters, e.g. those that a `KeepBest` kept: its model, guide, draws and files are then theirs.

        Args:
            params: unconstrained parameters, all or some of them by name; those left out stay.

        Raises:
            ValueError: a name or a shape is not that of the fit's parameters.
        """
        unknown = sorted(set(params) - set(self.params))
        if unknown:
            raise ValueError(
                f"Fit.with_params: {unknown} are no parameters of the fit, which has {sorted(self.params)}. Name some of these."
            )
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        for name, value in params.items():
            if shapes(value) != shapes(self.params[name]):
                raise ValueError(
                    f"Fit.with_params: parameter '{name}' has shapes {shapes(value)}, in the fit {shapes(self.params[name])}. "
                    "Give unconstrained values, with an axis of seeds in front if the fit has one."
                )
        as_own = lambda new, own: strong(jnp.asarray(new, own.dtype))
        given = {name: jax.tree.map(as_own, params[name], self.params[name]) for name in params}
        other = copy.copy(self.params)  # of its own class, which knows constraints
        other.update(given)
        return dataclasses.replace(self, params=other, last_params=other)

    def seed(self, number: int) -> Fit:
        """The run number `number` of a fit with several seeds, as a fit of its own.

        Raises:
            ValueError: if this fit has no seed axis.
            IndexError: if there is no such seed.
        """
        if self.num_seeds is None:
            raise ValueError("This fit has one run and no seed axis; use it as it is.")
        if not 0 <= number < self.num_seeds:
            raise IndexError(
                f"Seed {number} is out of range; there are {self.num_seeds} seeds. Give a number from 0 to {self.num_seeds - 1}."
            )
        take = lambda tree: jax.tree.map(lambda leaf: leaf[number], tree)
        return dataclasses.replace(
            self,
            params=take(self.params),
            last_params=take(self.last_params),
            state=take(self.state),
            history={name: array[:, number] for name, array in self.history.items()},
            num_skipped=int(np.asarray(self.num_skipped)[number]),
            num_seeds=None,
        )

    def best(self, window: int | None = None) -> Fit:
        """The run with the best mean value over the last `window` steps, as a fit of its own.

        Args:
            window: number of final steps to average, default a tenth of the steps. A run with a non-finite value among them is
                chosen only if there is no other.

        Returns:
            The chosen run; a fit with one run returns itself.

        Raises:
            ValueError: of a game; if no step was taken, or `window` is not between 1 and the number of steps.
        """
        if self.num_seeds is None:
            return self
        if isinstance(self.objective, Game):
            raise ValueError(
                f"Fit.best: values of {self.objective.name} are those of its players in turn, which rank no runs. Choose by a "
                "number of your own, and take Fit.seed(number)."
            )
        window = max(1, self.steps // 10) if window is None else window
        if not 1 <= window <= self.steps:
            raise ValueError(
                f"Argument 'window' is {window}, but there are {self.steps} steps. Give a number of steps from 1 to {self.steps}."
            )
        sign = 1 if self.objective.direction == "max" else -1
        gains = sign * self.history["value"][-window:].mean(0, dtype=float)
        return self.seed(int(np.argmax(np.where(np.isfinite(gains), gains, -np.inf))))

    @checked_call
    def save(self, path: str | os.PathLike, *, data: bool = True) -> None:
        """Write the fit to one file, whole or not at all.

        The file is a NumPy archive without pickled objects: arrays by name ("params/loc", "history/value") and a header of JSON.
        It does not hold the programs, which are code.

        Args:
            path: where.
            data: whether the arguments of the fit go with it. Without them, a loaded fit must be given the arguments that it is
                asked about.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
            ValueError: an argument is neither an array nor a plain value, nor a tuple, list or dict of these.
        """
        save_fit(self, path, data=data)

    @classmethod
    @checked_call
    def load(
        cls, path: str | os.PathLike, objective: AbstractObjective | ModelFn, *, args: PyTree = None
    ) -> Fit:
        """Read what `save` wrote.

        The objective is made anew, of the programs it was fitted with. They are compared with the file site by site: names,
        laws, shapes, and, where the versions of lapilli, JAX and NumPyro are the same, also the computation of each
        log-density with all numbers in it. Other versions are warned of.

        Args:
            path: the file.
            objective: as given to `fit`: an objective, or a model alone.
            args: arguments of the programs, a tuple or a dict, in place of those in the file.

        Returns:
            The fit; `fit(objective, ..., params=loaded.last_params)` trains on.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or has changed since; it belongs to another objective, each difference named;
                it has no arguments and none are given.
        """
        choose = lambda model, args: choose_objective(model, args, may_be_prior=True).objective
        return load_fit(cls, path, objective, args, choose)

    @over_auto_axes
    def posterior(
        self,
        key: jax.Array,
        num_samples: int,
        *,
        args: PyTree = None,
        batch_size: int = 100,
        mesh: Mesh | None = None,
    ) -> Posterior:
        """Draw latents from the guide and weigh them: log w = log p(z, x) - log q(z).

        Args:
            key: PRNG key.
            num_samples: number of draws S.
            args: arguments of model and guide, a tuple or a dict; default, those given to fit (in full, also after a fit on
                minibatches).
            batch_size: draws held on a device at once. It does not change which draws are made.
            mesh: devices over which draws are split, each with all parameters; the same draws, to rounding. Left out, parameters
                in parts stay so.

        Returns:
            `Posterior` with leading axis S.

        Raises:
            ValueError: if the objective has no guide or no model, or there are no stored arguments.
        """
        model, guide = self._both("posterior", mesh)
        raw = as_tuple(args or ())
        given = self._given("posterior", model, args)
        args = self._args_or_stored(given, "posterior")
        found = weighted_draws(model, guide, key, num_samples, batch_size, args, mesh)
        labels = {**labels_of(raw, model), **self.labels}
        kept = MadeFor(args if given is None else own(args), labels)
        return dataclasses.replace(found, made_for=kept)

    @over_auto_axes
    @checked_call
    def predict(
        self,
        key: jax.Array,
        *new_args: PyTree,
        num_samples: int,
        keep: str | Sequence[str] | None = None,
        batch_size: int = 100,
        mesh: Mesh | None = None,
        **new_kwargs: PyTree,
    ) -> dict[str, np.ndarray]:
        """Draw from the posterior predictive p(x_new | z), z ~ q(z).

        A statement whose `obs` is None at the new arguments is drawn: `model(X, y=None)` predicts y of new rows by
        `fit.predict(key, X_new, num_samples=1000)`. Statements that have an `obs` there are drawn anew, as a posterior predictive
        check asks for.

        Args:
            key: PRNG key.
            *new_args: arguments of model and guide; default, those given to fit.
            num_samples: number of draws S.
            keep: what the guide knows of new rows. None: it runs at the new arguments, as an amortised guide can, and one of
                global sites only. Or fnmatch patterns of sites, e.g. ["beta*", "sigma"]: it runs at the arguments of the fit,
                its draws of these sites are kept, and all other sites (those of the rows) are drawn from the model at the new
                arguments. "*" keeps all: the rows, or the past of a longer series, are those of the fit. What belongs to rows is
                told by a trace of the model with more of them, and not by equal lengths. A longer series begins as that of the
                fit.
            batch_size: draws held on a device at once, so that device memory does not grow with S. It does not change
                which draws are made.
            mesh: devices over which draws are split, as in `posterior`.
            **new_kwargs: keyword arguments of model and guide.

        Returns:
            All sites but those that the guide drew by name, NumPy arrays of shape [S, *site shape].

        Raises:
            ValueError: if the objective has no guide or no model; there are no arguments; a pattern matches no site; the guide
                cannot run at the new arguments, or draws a site of their rows without reading them (see `keep`); what is
                predicted depends on an observation that is given, and would be drawn anew; the model has a parameter for each
                row of the fit; an argument has other columns than at the fit, at which the model cannot be run.

        Validity: rows are the first axis of the arguments, or the first one that predictions follow. The rows of the fit and new
        ones must be independent given what is kept: of a Gaussian process, fit both together, the new ones unobserved.
        """
        model, guide = self._both("predict", mesh)
        args = self._args_or_stored(self._given("predict", model, new_args, new_kwargs), "predict")
        draw, arguments = predictive(model, guide, args, self.args, keep)
        found = map_keys(lambda *a: draw(*a)[1], key, num_samples, batch_size, arguments, mesh=mesh)
        tell_of_nan("Fit.predict", model, found, {}, args)
        return found

    @over_auto_axes
    @checked_call
    def predict_batches(
        self,
        key: jax.Array,
        batches: Iterable[tuple | Mapping[str, PyTree]],
        *,
        num_samples: int,
        keep: str | Sequence[str] | None = None,
        batch_size: int = 100,
        mesh: Mesh | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Draw from the posterior predictive of rows that come in batches, more of them than memory holds.

        All batches have the same S draws of what the rows share, so that sample s of all batches together is one draw of all
        rows; what belongs to rows (their latent sites, their noise) is drawn with each batch.

        Args:
            key: PRNG key.
            batches: iterable of arguments of model and guide, a tuple or a dict for each batch. They are read one by one, the
                first at once; batches of one shape are compiled once.
            num_samples: number of draws S.
            keep: as for `predict`. None: sites that the guide draws without reading the rows are shared; those that it draws
                from rows must lie in a plate of theirs.
            batch_size: draws held on a device at once.
            mesh: devices over which draws are split, as in `posterior`.

        Returns:
            An iterator over dicts as `predict` returns them, one for each batch.

        Raises:
            TypeError: a batch is neither a tuple nor a dict.
            ValueError: there is no batch; a site that all rows share would be drawn anew with each batch; what `predict` refuses,
                of the first batch; a later batch has another structure than the first.

        Validity: given the shared draws the rows of different batches must be independent in the model.
        """
        model, guide = self._both("predict_batches", mesh)
        return predict_batches(
            model, guide, self.args, key, batches, num_samples, keep, batch_size, self.labels, mesh
        )

    @checked_call
    def export(
        self,
        path: str | os.PathLike,
        *args: PyTree,
        keep: str | Sequence[str] | None = None,
        only: Literal["posterior"] | None = None,
        symbolic_rows: bool = True,
        platforms: Sequence[str] | None = None,
        **kwargs: PyTree,
    ) -> None:
        """Write draws and predictions as a compiled function, which runs with JAX alone: `jax.export`.

        In a process without lapilli, NumPyro and the programs (JAX and flatbuffers are needed),

            served = jax.export.deserialize(open(path, "rb").read())
            keys = jax.random.key_data(jax.random.split(jax.random.key(0), 1000))
            draws = served.call(keys, {"X": X_new})

        returns {"posterior": the guide's sites, "predictive": all other sites}, each by name with one draw for each key: those
        that `predict` makes with the key that was split. Such a file is a program: load exports only from those you trust.

        Args:
            path: the file.
            *args: arguments as for `predict`, examples of those that will come; default, those given to fit. Arrays, by name of
                the program's argument, are the inputs of the function; all else stays as it is here.
            keep: see `predict`. Sites that the guide draws from the data of the fit take these into the file.
            only: "posterior" for the guide alone, as an encoder is served: the model is not in the file.
            symbolic_rows: whether the function takes any number of rows: the leading axis of the first array, and of each that
                must grow with it. Programs that need to know the number (a scan over rows) are compiled for one: False.
            platforms: "cpu", "cuda", "tpu", "rocm"; default the one in use.
            **kwargs: keyword arguments of model and guide.

        Raises:
            ImportError: flatbuffers is missing.
            ValueError: as for `predict`; the programs cannot be compiled for any number of rows, or then draw something else
                (tried at the rows of the arguments and at one more).

        Validity: JAX loads such files for some versions to come (its compatibility guarantees); `save` keeps a fit for good.
        """
        model, guide = self._both("export")
        arguments = self._args_or_stored(self._given("export", model, args, kwargs), "export")
        export_fit(
            model, guide, path, arguments, self.args,
            keep=keep, only=only, symbolic_rows=symbolic_rows, platforms=platforms,
        )  # fmt: skip

    def _bound(self, which: str) -> Any:
        program = getattr(self.objective, which)
        if program is None:
            return None
        if self.num_seeds is not None:
            raise ValueError(
                f"This fit holds {self.num_seeds} runs, so there is no single {which}. Choose one: fit.best().{which} or "
                f"fit.seed(0).{which}."
            )
        return program.bind(self.params)

    def _both(self, method: str, mesh: Mesh | None = None) -> tuple[Any, Any]:
        """Model and guide, with all parameters on each device of the mesh."""
        fit = self if mesh is None else dataclasses.replace(self, params=on_mesh(self.params, mesh))
        return fit._need("model", method), fit._need("guide", method)

    def _need(self, which: str, method: str) -> Any:
        program = self._bound(which)
        if program is None:
            raise ValueError(f"Fit.{method} needs a {which}, but the objective has none.")
        return program

    def _given(
        self,
        method: str,
        program: ModelFn,
        args: PyTree,
        kwargs: Mapping[str, object] | None = None,
    ) -> tuple | None:
        """Arguments in the order of the fit's levels and columns; None where there are none."""
        if args is None or not args and not kwargs:
            return None
        given = labelled_as(self.labels, as_tuple(args, kwargs), program)
        check_new(f"Fit.{method}", program, given)
        return given

    def _args_or_stored(self, args: tuple | None, method: str) -> tuple:
        if args is not None:
            return args
        if self.args is None:
            raise ValueError(
                f"Fit.{method} has no arguments: they came from an iterable or were not saved. Pass the arguments of the "
                "program."
            )
        return self.args
