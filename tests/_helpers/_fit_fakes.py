"""A small objective for the tests of fit, written by hand, with a closed form.

Model: mu ~ N(0, 1), x_i ~ N(mu, 1) in plate "rows". Guide: mu ~ N(loc, exp(log_scale)). ELBO with one draw of the guide; with
`num_draws=None` in closed form. It counts how often its step is traced.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lapilli.inference import AbstractObjective

LOG_2PI = jnp.log(2 * jnp.pi)


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * LOG_2PI


@jax.tree_util.register_pytree_node_class
class Params(dict):
    """A dict subclass that is a pytree in reverse order of names, to catch code that assumes one."""

    def tree_flatten(self):
        names = tuple(sorted(self, reverse=True))
        return tuple(self[name] for name in names), names

    @classmethod
    def tree_unflatten(cls, names, leaves):
        return cls(zip(names, leaves, strict=True))


@dataclasses.dataclass(frozen=True)
class Trace:
    choices: dict
    log_density: jax.Array
    sites: dict = dataclasses.field(default_factory=dict)

    @property
    def shared_choices(self):
        return self.choices


@dataclasses.dataclass(frozen=True)
class Model:
    params: Params | None = None

    def bind(self, params):
        return dataclasses.replace(self, params=params)

    def log_density(self, choices, x):
        mu = choices["mu"]
        return log_normal(mu, 0.0, 1.0) + log_normal(x, mu, 1.0).sum()

    def generate(self, key, choices, x):
        log_density = self.log_density(choices, x)
        return Trace(choices, log_density), log_density

    def predict(self, key, choices, x):
        mu = choices["mu"]
        return {"x": mu + jax.random.normal(key, x.shape), "double": 2 * mu}


@dataclasses.dataclass(frozen=True)
class Guide(Model):
    def simulate(self, key, x):
        loc, scale = self.params["loc"], jnp.exp(self.params["log_scale"])
        mu = loc + scale * jax.random.normal(key)
        return Trace({"mu": mu}, log_normal(mu, loc, scale))


class Objective(AbstractObjective):
    """See the module. State: number of steps and the running sum of the values."""

    name, direction = "by hand", "max"

    def __init__(self, sizes=None, *, noisy=True, direction="max", break_at=None, local=False):
        self.sizes, self.noisy, self.direction = dict(sizes or {}), noisy, direction
        self.break_at, self.local = break_at, local
        self.model, self.guide = Model(), Guide()
        self.num_traces = [0]  # shared with the copies that know plate sizes

    def init(self, key, x, *rest):
        params = Params(loc=jax.random.normal(key), log_scale=0.0)  # a weak type, on purpose
        if self.local:
            params["offsets"] = jnp.zeros(len(x))
        return params

    def init_state(self, params, key, x, *rest):
        return {"count": 0, "total": jnp.zeros(())}

    def terms(self, params, key, x):
        loc, scale = params["loc"], jnp.exp(params["log_scale"])
        noise = jax.random.normal(key) if self.noisy else 0.0
        mu = loc + scale * noise
        factor = self.sizes.get("rows", len(x)) / len(x)
        rows = log_normal(x, mu, 1.0)
        return mu, log_normal(mu, 0.0, 1.0), factor * rows, log_normal(mu, loc, scale)

    def value(self, params, key, x, *rest):
        _, prior, rows, guide = self.terms(params, key, x)
        elbo = prior + rows.sum() - guide
        return elbo if self.direction == "max" else -elbo

    def step(self, params, state, key, x, *rest):
        self.num_traces[0] += 1
        value, grads = jax.value_and_grad(self.value)(params, key, x)
        if self.break_at is not None:
            value, grads = self._break(value, grads, state["count"])
        new = {"count": state["count"] + 1, "total": state["total"] + value}
        return value, grads, new

    def _break(self, value, grads, count):
        what, steps = self.break_at
        is_bad = jnp.isin(count, jnp.array(steps)) if steps else True
        if what == "value":
            return jnp.where(is_bad, jnp.nan, value), grads
        grads = Params(grads)
        grads["loc"] = jnp.where(is_bad, jnp.inf, grads["loc"])
        return value, grads

    def plate_sizes(self, x, *rest):
        return {"rows": len(x)}

    def with_plate_sizes(self, sizes):
        new = Objective(
            sizes,
            noisy=self.noisy,
            direction=self.direction,
            break_at=self.break_at,
            local=self.local,
        )
        new.num_traces = self.num_traces
        return new

    def site_report(self, params, key, x, *rest):
        mu, prior, rows, _ = self.terms(params, key, x)
        return {"mu": {"log_prob": prior, "value": mu}, "x": {"log_prob": rows, "value": x}}
