"""What samples of a generative model are worth: numbers with an error, and with their floor.

A metric compares generated rows with real ones, [n, d], and returns an `Estimate`: its value and standard error, the floor (the
same metric of real rows against other real ones, at the same sizes, with `held_out=`), and what it is in mean where both laws are
one, if that is known. `features=` is any function of a sample.

Numbers
    Estimate                            value, error, floor, exact value under equality; prints in one line
    to_xarray, plot_estimates           estimates by name as a data set, and as a picture

Distances
    frechet_distance                    ... with its bias in the sample size taken out
    frechet_of_moments                  ... between two Normals
    kernel_distance                     unbiased squared maximum mean discrepancy
    sliced_wasserstein                  ... with control variates
    sliced_wasserstein_gradient         its gradient in the points of a sample
    sliced_wasserstein_flow                 points moved along it

Where samples lie
    fidelity_diversity                      precision, recall, density and coverage
    expected_coverage                   the last under equality, exactly
    nearest_distance                    whether rows are copies of training rows

Tests
    classifier_test                     whether a classifier tells samples apart; bound of the Jensen-Shannon divergence
    attribution                         which model rows come from
    permutation_test                    an exact test from any metric

Images
    spectral_gap                        log power by scale
    high_pass                           images without low frequencies
    blur, rescale, quantise             what becomes of images on their way

Labels
    classification_accuracy_score       what a classifier learns from generated rows, alone or beside real ones
    intra_class_frechet                 distances within classes
    effective_robustness                what a classifier keeps under a shift, beside usual ones

Models
    compare_samples                     several models by several metrics
    rank_stability                      whether two judges agree on the order
"""

from ._classifier import (
    Attribution as Attribution,
    ClassifierTest as ClassifierTest,
    attribution as attribution,
    classifier_test as classifier_test,
)
from ._compare import (
    SampleComparison as SampleComparison,
    compare_samples as compare_samples,
)
from ._estimate import (
    Estimate as Estimate,
    plot_estimates as plot_estimates,
    to_xarray as to_xarray,
)
from ._frechet import (
    frechet_distance as frechet_distance,
    frechet_of_moments as frechet_of_moments,
)
from ._kernel import kernel_distance as kernel_distance
from ._labels import (
    classification_accuracy_score as classification_accuracy_score,
    intra_class_frechet as intra_class_frechet,
)
from ._neighbours import (
    FidelityDiversity as FidelityDiversity,
    expected_coverage as expected_coverage,
    fidelity_diversity as fidelity_diversity,
    nearest_distance as nearest_distance,
)
from ._permutation import (
    PermutationTest as PermutationTest,
    permutation_test as permutation_test,
)
from ._perturbations import blur as blur, quantise as quantise, rescale as rescale
from ._ranks import rank_stability as rank_stability
from ._robustness import effective_robustness as effective_robustness
from ._sliced import sliced_wasserstein as sliced_wasserstein
from ._sliced_flow import (
    SlicedFlow as SlicedFlow,
    sliced_wasserstein_flow as sliced_wasserstein_flow,
    sliced_wasserstein_gradient as sliced_wasserstein_gradient,
)
from ._spectra import (
    SpectralGap as SpectralGap,
    high_pass as high_pass,
    spectral_gap as spectral_gap,
)

__all__ = [
    "Estimate",
    "to_xarray",
    "plot_estimates",
    "frechet_distance",
    "frechet_of_moments",
    "kernel_distance",
    "sliced_wasserstein",
    "sliced_wasserstein_gradient",
    "sliced_wasserstein_flow",
    "fidelity_diversity",
    "expected_coverage",
    "nearest_distance",
    "classifier_test",
    "attribution",
    "permutation_test",
    "spectral_gap",
    "high_pass",
    "blur",
    "rescale",
    "quantise",
    "classification_accuracy_score",
    "intra_class_frechet",
    "effective_robustness",
    "compare_samples",
    "rank_stability",
]
