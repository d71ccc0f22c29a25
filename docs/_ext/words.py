"""The glossary, from the words that the language's docstring defines; the bibliography, from the references of all docstrings."""

from __future__ import annotations

import inspect
import re

from faces import ROOT, faces, load, public, renew

# Words of the field, with what there is for them here, and words of our own that the language's docstring does not define.
MORE = {
    "ADVI": "see *variational inference*.",
    "A/B test": "which of two is better, and by how much: [cookbook](howto/cookbook.md).",
    "amortised": "of a posterior: one network for all rows or data sets in place of parameters for each, "
    "{py:obj}`~lapilli.inference.elbo` with a guide that reads its arguments.",
    "best-of-N": "the best of N draws by a reward, as a law with its density: {py:obj}`~lapilli.inference.best_of`.",
    "both sides": "a lower and an upper bound of one number, so that the truth lies between: "
    "{py:obj}`~lapilli.inference.diagnostics.evidence_bracket`.",
    "change point": "a discrete site, summed out and drawn afterwards by {py:obj}`~lapilli.inference.infer`: "
    "[cookbook](howto/cookbook.md).",
    "classifier guidance": "see *steering*, which has weights beside the gradient; free of classifiers: "
    "{py:obj}`~lapilli.inference.diffusion.fkc` with exponents.",
    "conditional flow matching": "see *flow matching*.",
    "credible interval": "two quantiles of the posterior's draws; of new data, a *predictive interval*: "
    "{py:meth}`~lapilli.inference.Fit.predict` and `numpy.quantile`.",
    "discrete flow matching": "flow matching of tokens, masked or not, by the rates at which they jump: "
    "{py:obj}`~lapilli.models.paths.tokens`.",
    "DPO": "preferences fitted without a reward, a few lines as an objective: [alter a model](howto/altering.md).",
    "ELBO": "evidence lower bound, E log p(z, x) - log q(z): {py:obj}`~lapilli.inference.elbo`.",
    "ESS": "effective sample size, (sum w)^2 / sum w^2: how many equally weighted draws weighted ones are worth.",
    "evidence": "p(data), the marginal likelihood: the density of the observations, latent sites integrated out; its "
    "logarithm in nats.",
    "floor": "of a metric of samples: its value for two samples of one law, of the sizes at hand.",
    "flow matching": "a velocity is learned that carries noise to data, or one law to another: "
    "{py:obj}`~lapilli.models.paths.flow_matching`.",
    "formula": "a regression in one line, as in R and bambi: {py:obj}`~lapilli.ppl.formula`.",
    "GLM": "generalised linear model, a regression of counts or classes: {py:obj}`~lapilli.ppl.formula` with `family=`.",
    "hidden Markov model": "discrete states summed out along a scan: {py:obj}`~lapilli.ppl.eliminate`, "
    "[how to](howto/hmm.md).",
    "IWELBO": "importance-weighted bound, E log of the mean of K weights: {py:obj}`~lapilli.inference.iwelbo`.",
    "jump": "a place where a density is not continuous in a draw; a reparameterised gradient misses it, and is refused there.",
    "k-hat": "shape of the tail of importance weights; above its threshold weighted means cannot be trusted.",
    "Kalman filter": "normal states with affine means, integrated out along a scan: {py:obj}`~lapilli.ppl.eliminate`, "
    "[how to](howto/normal_states.md).",
    "Laplace approximation": "of local sites, in closed form: {py:obj}`~lapilli.inference.local_laplace`; of a whole "
    "model it is where {py:obj}`~lapilli.inference.fit` begins.",
    "law": "a probability distribution.",
    "leave-one-out": "LOO, how well a model predicts one more row: {py:obj}`~lapilli.inference.to_arviz`, then `arviz.loo`; "
    "[compare models](howto/compare_models.md).",
    "LoRA": "low-rank adaptation, small matrices trained beside the layers of a network that stays: "
    "{py:obj}`~lapilli.models.adapters.adapt`.",
    "marginalise": "also marginalize: sum or integrate a site out, exactly: {py:obj}`~lapilli.ppl.eliminate`.",
    "MCMC": "Markov chain Monte Carlo: {py:obj}`~lapilli.inference.infer`, {py:obj}`~lapilli.inference.nuts`; NumPyro's samplers "
    "run every program.",
    "mixed model": "multilevel or hierarchical regression, with random effects of groups: {py:obj}`~lapilli.ppl.formula`; normal "
    "effects are integrated out by {py:obj}`~lapilli.ppl.eliminate`.",
    "multiple imputation": "a table with holes completed many times, estimates pooled: "
    "{py:obj}`~lapilli.models.imputation.TableImputer`, {py:obj}`~lapilli.models.imputation.pool`.",
    "neural likelihood estimation": "NLE: the law of simulated data given parameters is learned, and stands in a program: "
    "{py:obj}`~lapilli.inference.surrogate`.",
    "neural posterior estimation": "NPE: a guide is trained on simulated parameters and data: "
    "{py:obj}`~lapilli.inference.amortise` on stored simulations, {py:obj}`~lapilli.inference.sleep` on fresh ones.",
    "neural ratio estimation": "NRE: pairs of parameters and data are told from pairs of no relation, which gives the likelihood "
    "over the evidence: {py:obj}`~lapilli.inference.ratio`.",
    "normalising flow": "also normalizing flow, an invertible network as a law: {py:obj}`~lapilli.models.flows.AutoSpline` is a "
    "guide made of one.",
    "nats": "unit of log-densities with the natural logarithm; 1 nat is 1.44 bits.",
    "optimal transport": "between the rows of two batches: {py:obj}`~lapilli.models.paths.transport`.",
    "particle filter": "sequential Monte Carlo over the steps of a series: {py:obj}`~lapilli.inference.smc`.",
    "perturbed data": "known noise added to data, anew in each run, and exactly to their law, which may have no density of use "
    "without it: {py:obj}`~lapilli.ppl.perturb`.",
    "posterior predictive": "the law of new data given the old: {py:meth}`~lapilli.inference.Fit.predict`, "
    "{py:obj}`~lapilli.inference.predict`.",
    "random effects": "see *mixed model*.",
    "R-hat": "of chains: how much their spread between exceeds that within; 1 if all have found one law.",
    "refused": "stopped by an error before anything runs, which names the site and what to do.",
    "rectified flow": "flow matching along straight lines, {py:obj}`~lapilli.models.paths.linear`.",
    "reparameterise": "write a draw as a differentiable function of noise and parameters.",
    "RLHF": "reinforcement learning from preferences, with a KL penalty: see *reward*, *tilt*; without a reward: see *DPO*.",
    "Schrödinger bridge": "also Schroedinger or Schrodinger bridge; of all paths between two laws the most probable under a "
    "Brownian motion: {py:obj}`~lapilli.models.paths.bridge`, or {py:obj}`~lapilli.models.paths.entropic` on batches.",
    "score": "derivative of a log-density in its parameters.",
    "reward": "of a trained model's samples, also learned from preferences: their law is tilted by it, see *tilt*, or without "
    "training, see *steering*; objects are drawn in proportion to one by {py:obj}`~lapilli.models.gflownet.ObjectSampler`.",
    "SBC": "simulation-based calibration: ranks of parameters among draws of their posteriors, "
    "{py:obj}`~lapilli.inference.diagnostics.calibrate`.",
    "simulation-based inference": "SBI, likelihood-free inference: posteriors from a simulator whose density is not known; "
    "see *neural posterior estimation*, *neural likelihood estimation* and *neural ratio estimation*.",
    "sound": "of an estimator at a site: its expectation is the gradient.",
    "steering": "draws of a trained model are moved towards a reward by weights and resampling: "
    "{py:obj}`~lapilli.inference.diffusion.fk_steering`.",
    "stochastic interpolant": "a path between two laws with noise between its ends: {py:obj}`~lapilli.models.paths.Interpolant`.",
    "survival analysis": "times of which some are only known to be longer: [cookbook](howto/cookbook.md).",
    "tilt": "the law of a model times exp(reward / temperature), normalised: {py:obj}`~lapilli.inference.tilt`; "
    "[alter a model](howto/altering.md).",
    "unlearning": "forgetting a class or rows by a tilt: [alter a model](howto/altering.md).",
    "VAE": "variational autoencoder, an amortised guide and a decoder: [tutorial](tutorials/03_vae.md).",
    "variational inference": "a guide is trained towards the posterior: {py:obj}`~lapilli.inference.fit` with "
    "{py:obj}`~lapilli.inference.elbo`.",
    "tempering": "a path of laws from the prior to the posterior by a likelihood raised to a rising power: "
    "{py:obj}`~lapilli.inference.tempered_smc`.",
}


def words() -> dict[str, str]:
    """Word -> what it means, in order of the alphabet."""
    text = " ".join((inspect.getdoc(load("ppl")) or "").split())
    own = text.partition("Words: ")[2]
    found = {
        word: meaning.strip(" ,;.") + "."
        for word, meaning in re.findall(r"\*([\w -]+)\*,? (.*?)(?=[;,] \*|$)", own)
    }
    return dict(sorted((found | MORE).items(), key=lambda item: item[0].lower()))


def references() -> dict[str, str]:
    """Full name -> what stands under Reference in its docstring."""
    found = {}
    for face in faces():
        for name in public(face):
            doc = inspect.getdoc(getattr(load(face), name)) or ""
            match = re.search(r"^References?:\s*(.*?)(?=\n\n|\n[A-Z]\w+:|\Z)", doc, re.M | re.S)
            if match:
                found.setdefault(f"lapilli.{face}.{name}", " ".join(match[1].split()).rstrip("."))
    return found


def linked(text: str) -> str:
    text = re.sub(r"([*_<$\[\]])", r"\\\1", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def texts() -> dict[str, str]:
    terms = "\n\n".join(f"{word}\n: {meaning}" for word, meaning in words().items())
    lines = [
        f"- {{py:obj}}`~{name}`: {linked(text)}."
        for name, text in sorted(
            references().items(), key=lambda r: r[0].rpartition(".")[2].lower()
        )
    ]
    return {
        "glossary.md": f"# Glossary\n\nOne meaning a word, here and in the code.\n\n{terms}\n",
        "bibliography.md": "# Bibliography\n\nWhat an estimator, objective or sampler is taken from.\n\n"
        + "\n".join(lines)
        + "\n",
    }


def write() -> None:
    for name, text in texts().items():
        renew(ROOT / "docs" / name, text)
