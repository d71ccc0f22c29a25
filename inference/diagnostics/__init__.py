"""What a posterior, a guide or a gradient is worth.

Posteriors and guides
    importance_diagnostics                          k-hat, ESS and evidence of weighted draws
    evidence_bracket, EvidenceBracket               how far a guide is from the posterior
    calibrate, Calibration                          simulation-based calibration

Predictions
    expected_calibration_error                      whether predicted classes are as sure as they are right

Pictures
    plot_fit                                        values of a run with their noise
    plot_weights                                    the largest importance weights, and k-hat
    plot_calibration                                ranks and coverage of simulation-based calibration

Gradients
    gradient_report                                 mean, spread and cost of a gradient, by parameter and by site
    pilot                                           choose estimators by trial
"""

from ._calibration import Calibration as Calibration, calibrate as calibrate
from ._evidence_bracket import (
    EvidenceBracket as EvidenceBracket,
    evidence_bracket as evidence_bracket,
)
from ._expected_calibration import expected_calibration_error as expected_calibration_error
from ._gradient_report import (
    GradientReport as GradientReport,
    ParameterGradient as ParameterGradient,
    SiteGradient as SiteGradient,
    gradient_report as gradient_report,
)
from ._pilot import Pilot as Pilot, Trial as Trial, pilot as pilot
from ._plots import (
    plot_calibration as plot_calibration,
    plot_fit as plot_fit,
    plot_weights as plot_weights,
)
from ._weights import (
    ImportanceDiagnostics as ImportanceDiagnostics,
    importance_diagnostics as importance_diagnostics,
)

__all__ = [
    "importance_diagnostics",
    "evidence_bracket",
    "EvidenceBracket",
    "calibrate",
    "Calibration",
    "expected_calibration_error",
    "plot_fit",
    "plot_weights",
    "plot_calibration",
    "gradient_report",
    "pilot",
]
