"""torchcfm's side of flow_matching.py, in a process and an environment of its own: its network, matchers and recipe.

    uv venv --python 3.11 torchcfm-env && uv pip install --python torchcfm-env torch torchcfm

The recipe is that of its notebook on 8 Gaussians and moons: Adam as it is, batches of 256, sigma 0.1, the mean of squares. Ends
are drawn from the rows that the others train on, and points are carried by the same 100 Euler steps.

    python flow_matching_torchcfm.py problem.npz answer.npz

The problem: "start", "end" [rows, 2], "points" [n, 2], "seed", "num_steps", "batch". The answer: of each matcher "<name>.points"
and "<name>.seconds" of processor time.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.models.models import MLP

MATCHERS = {
    "torchcfm": ConditionalFlowMatcher,
    "torchcfm, transport": ExactOptimalTransportConditionalFlowMatcher,
}
EULER = 100


def trained(
    matcher: ConditionalFlowMatcher, start: torch.Tensor, end: torch.Tensor, num_steps: int, batch: int
) -> MLP:  # fmt: skip
    model = MLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(num_steps):
        optimizer.zero_grad()
        x0, x1 = (rows[torch.randint(len(rows), (batch,))] for rows in (start, end))
        t, x, u = matcher.sample_location_and_conditional_flow(x0, x1)
        loss = torch.mean((model(torch.cat([x, t[:, None]], dim=-1)) - u) ** 2)
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def carried(model: MLP, x: torch.Tensor) -> np.ndarray:
    for n in range(EULER):
        t = torch.full((len(x), 1), n / EULER)
        x = x + model(torch.cat([x, t], dim=-1)) / EULER
    return x.numpy()


def main() -> None:
    problem = np.load(sys.argv[1])
    start, end, points = (torch.tensor(problem[name]) for name in ("start", "end", "points"))
    torch.set_num_threads(1)
    answer = {}
    for name, matcher in MATCHERS.items():
        torch.manual_seed(int(problem["seed"]))
        before = time.process_time()
        model = trained(
            matcher(sigma=0.1), start, end, *(int(problem[n]) for n in ("num_steps", "batch"))
        )
        answer[f"{name}.seconds"] = time.process_time() - before
        answer[f"{name}.points"] = carried(model, points)
        print(f"{name}: {answer[f'{name}.seconds']:.0f} s", flush=True)
    np.savez(sys.argv[2], **answer)


if __name__ == "__main__":
    main()
