"""Koopman autoencoders: a linear law of hidden states with a known spectrum, and any decoder of each of them.

    z_1 ~ N(0, P),   z_{t+1} ~ N(A z_t, Q),   x_t ~ N(decoder(z_t), noise^2),

where the eigenvalues of A lie in a set that is declared: a constraint, not a penalty. Series may miss any cells. The guide sees a
series through an encoder that makes an observation of each state up; given these the law of all states is normal and is drawn
exactly, one state after the other. With a decoder that is affine, `ppl.eliminate(model, "z")` is the Kalman filter.

Law of states
    Spectrum                how many eigenvalues, of which modulus
    transition              a statement: the matrix A, a parameter with that spectrum
    eigenvalues             those of fitted parameters

Programs
    programs, Koopman       model and guide

Networks
    Encoder                 observations of states made up from a series with missing cells
    Decoder                 a network of each state

Source: Naiman et al. 2024 (ICLR, "Generative modeling of regular and irregular time series data via Koopman VAEs"), whose linear
prior is a least-squares operator with a penalty on its eigenvalues.
"""

from ._networks import Decoder as Decoder, Encoder as Encoder
from ._programs import Koopman as Koopman, programs as programs
from ._spectrum import Spectrum as Spectrum, eigenvalues as eigenvalues, transition as transition

__all__ = [
    "Spectrum",
    "transition",
    "eigenvalues",
    "programs",
    "Koopman",
    "Encoder",
    "Decoder",
]
