"""Torch's peers of imputation.py, in a process and an environment of their own: networks of PyPOTS, and a sup-not-MIWAE.

    uv venv --python 3.11 pypots-env && uv pip install --python pypots-env pypots notmiwae-pytorch

SAITS (Du et al. 2023) and BRITS (Cao et al. 2018) fill series, a classifier of imputation.py's then sees them filled; BRITS with
labels and sup-not-MIWAE (Ipsen et al. 2022, on flattened series, with a linear classifier) classify by themselves. They learn
from the training series; epochs are chosen on the validation series, of which a fifth of the seen cells is hidden for fillers.

    python imputation_pypots.py problem.npz answer.npz

The problem: "train_x", "valid_x", "test_x" [N, T, D], NaN where missing, "train_y", "valid_y", "num_classes", "seed". The answer:
of each method "<name>.seconds" of processor time and "<name>.filled", a row per series of all three, or "<name>.probs" of
validation and test series, or both.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from notmiwae_pytorch import SupNotMIWAE
from pypots.classification import BRITS as BRITSClassifier
from pypots.imputation import BRITS, SAITS
from pypots.utils.random import set_random_seed

Problem = dict[str, np.ndarray]
HIDDEN, EPOCHS, PATIENCE = 64, 200, 20
TRAINING = {"batch_size": 32, "epochs": EPOCHS, "patience": PATIENCE, "verbose": False}


def of_pypots(make: Callable[..., Any], **options: Any) -> Callable[[Problem], dict[str, Any]]:
    """A filler."""

    def fill(problem: Problem) -> dict[str, Any]:
        _, num_steps, num_channels = problem["train_x"].shape
        model = make(num_steps, num_channels, **options, **TRAINING)
        rng = np.random.default_rng(int(problem["seed"]))
        whole = problem["valid_x"]
        holed = np.where(rng.random(whole.shape) < 0.2, np.nan, whole)
        model.fit({"X": problem["train_x"]}, {"X": holed, "X_ori": whole})
        return {
            "filled": model.predict({"X": every(problem)})["imputation"].reshape(
                -1, num_steps, num_channels
            )
        }

    return fill


def brits(problem: Problem) -> dict[str, Any]:
    """BRITS with labels."""
    _, num_steps, num_channels = problem["train_x"].shape
    model = BRITSClassifier(
        num_steps, num_channels, int(problem["num_classes"]), HIDDEN, **TRAINING
    )
    model.fit(
        *({"X": problem[f"{part}_x"], "y": problem[f"{part}_y"]} for part in ("train", "valid"))
    )
    return {"probs": model.predict_proba({"X": every(problem)[len(problem["train_x"]) :]})}


def sup_not_miwae(problem: Problem) -> dict[str, Any]:
    """Sup-not-MIWAE on flattened series, self-masking, K = 5; the epoch with the best validation NLL of the labels."""
    flat = lambda x: (
        torch.tensor(np.nan_to_num(x).reshape(len(x), -1)),
        torch.tensor(~np.isnan(x).reshape(len(x), -1)).float(),
    )
    train, valid = flat(problem["train_x"]), flat(problem["valid_x"])
    labels, held = (torch.tensor(problem[f"{part}_y"]).long() for part in ("train", "valid"))
    model = SupNotMIWAE(
        train[0].shape[1], latent_dim=16, hidden_dim=128, n_samples=5, missing_process="selfmasking",
        y_dim=int(problem["num_classes"]), task="classification",
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    best, kept, waited = np.inf, copy.deepcopy(model.state_dict()), 0
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            model(train[0][rows], train[1][rows], labels[rows])["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        probs = model.predict(*valid, n_samples=50)
        loss = -torch.log(probs[torch.arange(len(held)), held] + 1e-12).mean().item()
        waited = 0 if loss < best else waited + 1
        if loss < best:
            best, kept = loss, copy.deepcopy(model.state_dict())
        if waited == PATIENCE:
            break
    model.load_state_dict(kept)
    x = every(problem)
    inputs = flat(x)
    filled = model.impute(*inputs, n_samples=200).reshape(x.shape)
    probs = model.predict(*inputs, n_samples=200)[len(labels) :]
    return {"filled": filled.numpy(), "probs": probs.numpy()}


def every(problem: Problem) -> np.ndarray:
    return np.concatenate([problem[f"{part}_x"] for part in ("train", "valid", "test")])


METHODS = {
    "saits": of_pypots(
        SAITS, n_layers=2, d_model=HIDDEN, n_heads=4, d_k=HIDDEN // 4, d_v=HIDDEN // 4, d_ffn=HIDDEN, dropout=0.1
    ),
    "brits": of_pypots(BRITS, rnn_hidden_size=HIDDEN),
    "brits, labels": brits,
    "sup-not-miwae": sup_not_miwae,
}  # fmt: skip


def main() -> None:
    problem = {
        n: a.astype(np.float32) if a.dtype == float else a for n, a in np.load(sys.argv[1]).items()
    }
    torch.set_num_threads(1)
    answer = {}
    for name, method in METHODS.items():
        set_random_seed(int(problem["seed"]))
        start = time.process_time()
        found = method(problem)
        answer |= {f"{name}.{k}": np.asarray(v) for k, v in found.items()}
        answer[f"{name}.seconds"] = np.asarray(time.process_time() - start)
        print(f"{name}: {answer[f'{name}.seconds']:.0f} s", flush=True)
    np.savez(sys.argv[2], **answer)


if __name__ == "__main__":
    main()
