"""Attend, infer, repeat in Pyro; see systems.py."""

from __future__ import annotations

from typing import Any

import air_nets
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO
from worker import Gradient, Make, serve

BACKEND = air_nets.Backend(
    torch, torch.sigmoid, torch.nn.functional.softplus, torch.nn.functional.relu
)


def one_more(t: int, so_far: Any, probs: Any, infer: dict | None = None) -> Any:
    """Whether there is an object t."""
    with poutine.mask(mask=so_far):
        more = pyro.sample(f"more_{t}", dist.Bernoulli(probs), infer=infer)
    return so_far & (more == 1)


def normal(name: str, loc: Any, scale: Any, present: Any) -> Any:
    """An object's vector, without density where there is none."""
    with poutine.mask(mask=present):
        return pyro.sample(name, dist.Normal(loc, scale).to_event(1))


def networks(names: Any, initial: Any) -> air_nets.Nets:
    layers = {
        name: {k: pyro.param(f"{name}.{k}", torch.tensor(a)) for k, a in initial[name].items()}
        for name in names
    }
    return air_nets.Nets(BACKEND, layers)


def programs(initial: Any, infer: dict | None) -> tuple[Any, Any]:
    """The model and its guide."""

    def model(x: Any) -> None:
        nets = networks(air_nets.DECODER, initial)
        with pyro.plate("images", x.shape[0], dim=-1):
            present, canvas = torch.ones(x.shape[0], dtype=torch.bool), torch.zeros_like(x)
            for t in range(1, air_nets.STEPS + 1):
                present = one_more(t, present, torch.tensor(air_nets.MORE_PROB))
                where = normal(f"where_{t}", torch.zeros(3), torch.ones(3), present)
                prior = torch.zeros(air_nets.WHAT), torch.ones(air_nets.WHAT)
                what = normal(f"what_{t}", *prior, present)
                canvas = canvas + present[..., None] * nets.write(nets.patch(what), where)
            pyro.sample("x", dist.Normal(canvas, air_nets.NOISE).to_event(1), obs=x)

    def guide(x: Any) -> None:
        nets = networks([n for n in air_nets.SHAPES if n not in air_nets.DECODER], initial)
        size = x.shape[0]
        with pyro.plate("images", size, dim=-1):
            present, embedded = torch.ones(size, dtype=torch.bool), nets.embed(x)
            state = torch.zeros(size, air_nets.HIDDEN)
            where, what = torch.zeros(size, 3), torch.zeros(size, air_nets.WHAT)
            for t in range(1, air_nets.STEPS + 1):
                state = nets.next_state(state, embedded, where, what)
                present = one_more(t, present, nets.more(state, present), infer)
                where = normal(f"where_{t}", *nets.where(state), present)
                what = normal(f"what_{t}", *nets.what(x, where), present)

    return model, guide


def pyros(loss: Any, infer: dict | None = None) -> Make:
    def build(initial: Any, x: Any) -> Gradient:
        model, guide = programs(initial, infer)
        images, store = torch.tensor(x), pyro.get_param_store()

        def run(seed: int) -> float:
            torch.manual_seed(seed)
            for _, leaf in store.named_parameters():
                leaf.grad = None
            return -loss.loss_and_grads(model, guide, images)

        def read(value: float) -> tuple[float, float]:
            grad = dict(store.named_parameters())["count.bias"].grad
            return value, 0.0 if grad is None else -float(grad)

        return Gradient(run, read)

    return build


COLUMNS = {
    "ELBO, REINFORCE": pyros(TraceGraph_ELBO()),
    "ELBO, ENUM": pyros(TraceEnum_ELBO(max_plate_nesting=1), {"enumerate": "parallel"}),
    "IWELBO 2, REINFORCE": pyros(RenyiELBO(alpha=0, num_particles=2)),
}

if __name__ == "__main__":
    pyro.enable_validation(False)  # as fast as it can be
    serve(COLUMNS, f"pyro {pyro.__version__}, torch {torch.__version__}")
