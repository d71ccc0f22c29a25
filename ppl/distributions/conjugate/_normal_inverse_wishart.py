"""The normal-inverse-Wishart law: mean and covariance of a normal vector, through Cholesky factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import digamma, multigammaln
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ..._precision import full_precision
from ..._types import Key
from ._mean_and_scale import mean_and_cholesky
from ._normal_inverse_gamma import LOG_2PI, ExpectedNormal

LOG_2 = 0.6931471805599453
MAX_ROUNDED = 0.1  # of a scale given the coordinates before, that rounding may make


class NormalInverseWishart(dist.Distribution):
    """Conjugate law of the mean and the covariance of a normal vector in R^d.

        Sigma ~ InverseWishart(df, V),   mean | Sigma ~ Normal(loc, Sigma / mean_precision),   V = scale_tril scale_tril'.

    One event is [mean | L], Sigma = L L', shape (d, d + 1); densities are in these coordinates (`log_prob_moments` gives that
    of (mean, Sigma)). E[Sigma^-1] = df V^-1 and E[Sigma] = V / (df - d - 1). Nothing is inverted: V and Sigma are kept as
    Cholesky factors.

    Args:
        loc: shape [*batch, d].
        mean_precision: precision of the mean in units of Sigma^-1 (pseudo-observations of the mean), positive [*batch].
        scale_tril: lower triangular with positive diagonal, [*batch, d, d].
        df: degrees of freedom, > d - 1, [*batch].

    Raises:
        ValueError: the shapes of `loc` and `scale_tril` do not fit.

    Validity: `sample` is differentiable in all parameters (Bartlett's decomposition; for df the implicit derivative that
    JAX's gamma sampler carries).
    Reference: Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution, section 9; Bartlett 1933.

    Example:
        >>> from lapilli import ppl
        >>> prior = ppl.distributions.NormalInverseWishart(jax.numpy.zeros(2), 2.0, jax.numpy.eye(2), 4.0)
        >>> jax.eval_shape(prior.sample, jax.random.key(0)).shape
        (2, 3)
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "mean_precision": constraints.positive,
        "scale_tril": constraints.lower_cholesky,
        "df": constraints.dependent(is_discrete=False, event_dim=0),  # > d - 1
    }
    support = mean_and_cholesky  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "mean_precision", "scale_tril", "df"]
    pytree_data_fields = ("loc", "mean_precision", "scale_tril", "df")

    def __init__(
        self,
        loc: Float[Array, "*batch d"],
        mean_precision: Float[Array, "*batch"] | float,
        scale_tril: Float[Array, "*batch d d"],
        df: Float[Array, "*batch"] | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        loc, scale_tril = jnp.asarray(loc, float), jnp.asarray(scale_tril, float)
        if not loc.ndim or scale_tril.shape[-2:] != (loc.shape[-1],) * 2:
            raise ValueError(
                f"NormalInverseWishart: loc has shape {loc.shape} and scale_tril {scale_tril.shape}, but in d dimensions they "
                "are [*batch, d] and [*batch, d, d]. Give scale_tril the Cholesky factor of V."
            )
        batch = jnp.broadcast_shapes(
            loc.shape[:-1], scale_tril.shape[:-2], jnp.shape(mean_precision), jnp.shape(df)
        )
        d = loc.shape[-1]
        self.loc = jnp.broadcast_to(loc, (*batch, d))
        self.scale_tril = jnp.broadcast_to(scale_tril, (*batch, d, d))
        self.mean_precision = jnp.broadcast_to(jnp.asarray(mean_precision, float), batch)
        self.df = jnp.broadcast_to(jnp.asarray(df, float), batch)
        super().__init__(batch, (d, d + 1), validate_args=validate_args)

    @staticmethod
    def unpack(value: Float[Array, "*batch d d+1"]) -> tuple[Array, Array]:
        """(mean [*batch, d], L [*batch, d, d]) of packed values."""
        return value[..., 0], value[..., 1:]

    @staticmethod
    def conditional(value: Float[Array, "*batch d d+1"]) -> dist.MultivariateNormal:
        """The normal law of a vector given its packed mean and Cholesky factor."""
        return dist.MultivariateNormal(value[..., 0], scale_tril=value[..., 1:])

    @property
    def _dimension(self) -> int:
        return self.event_shape[0]

    @property
    def _chi2_df(self) -> Array:
        """Degrees of freedom of the squared diagonal of the Bartlett factor, [*batch, d]: df - d + j, j = 1 ... d."""
        d = self._dimension
        return self.df[..., None] - d + 1 + jnp.arange(d)

    @property
    def _log_det(self) -> Array:
        """Log |V|."""
        return 2 * _log_diagonal(self.scale_tril).sum(-1)

    @full_precision
    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Packed draws, shape [*sample_shape, *batch, d, d + 1]."""
        d = self._dimension
        shape = (*sample_shape, *self.batch_shape)
        key_diagonal, key_below, key_mean = jax.random.split(key, 3)
        chi2 = jax.random.loggamma(
            key_diagonal, jnp.broadcast_to(0.5 * self._chi2_df, (*shape, d)), (*shape, d)
        )
        diagonal = jnp.exp(0.5 * (LOG_2 + chi2))
        normal = jax.random.normal(key_below, (*shape, d, d), self.loc.dtype)
        # B'B ~ Wishart(df, 1) for B lower triangular, so Sigma = L L' with L = scale_tril B^-1, lower triangular too.
        bartlett = jnp.tril(normal, -1) + jnp.eye(d) * diagonal[..., None]
        scale_tril = jnp.broadcast_to(self.scale_tril, (*shape, d, d))
        tril = solve_triangular(bartlett.mT, scale_tril.mT, lower=False).mT
        tril = jnp.tril(tril)  # exact zeros above, for the support
        noise = jax.random.normal(key_mean, (*shape, d), self.loc.dtype)
        offset = (tril @ noise[..., None])[..., 0] / jnp.sqrt(self.mean_precision)[..., None]
        return jnp.concatenate([(self.loc + offset)[..., None], tril], -1)

    def log_prob(self, value: Array) -> Array:
        """Log-density of [mean | L], nats, shape [*batch]."""
        mean, tril = self.unpack(value)
        # dSigma / dL = 2^d prod_j L_jj^(d - j + 1)
        powers = self._dimension - jnp.arange(self._dimension)
        jacobian = self._dimension * LOG_2 + (powers * _log_diagonal(tril)).sum(-1)
        return self._log_prob(mean, tril) + jacobian

    def log_prob_moments(self, mean: Array, covariance: Array) -> Array:
        """Log-density of (mean, Sigma), nats [*batch]."""
        return self._log_prob(mean, jnp.linalg.cholesky(covariance))

    def _log_prob(self, mean: Array, tril: Array) -> Array:
        d, n = self._dimension, self.df
        log_det = 2 * _log_diagonal(tril).sum(-1)
        batch = jnp.broadcast_shapes(tril.shape[:-2], mean.shape[:-1], self.batch_shape)
        tril = jnp.broadcast_to(tril, (*batch, d, d))
        shift = jnp.broadcast_to(mean - self.loc, (*batch, d))
        offset = solve_triangular(tril, shift[..., None], lower=True)[..., 0]
        normal = 0.5 * (
            d * jnp.log(self.mean_precision)
            - d * LOG_2PI
            - log_det
            - self.mean_precision * (offset**2).sum(-1)
        )
        root = solve_triangular(tril, jnp.broadcast_to(self.scale_tril, tril.shape), lower=True)
        wishart = (
            0.5 * n * self._log_det
            - 0.5 * n * d * LOG_2
            - multigammaln(0.5 * n, d)
            - 0.5 * (n + d + 1) * log_det
            - 0.5 * (root**2).sum((-2, -1))
        )
        return normal + wishart

    @full_precision
    def expected_natural_params(self) -> ExpectedNormal:
        """Expectations of the natural parameters of `conditional`: shapes [*batch, d], [*batch, d, d], [*batch], [*batch]."""
        precision = self.df[..., None, None] * _inverse(self.scale_tril)
        precision_mean = (precision @ self.loc[..., None])[..., 0]
        quadratic = self._dimension / self.mean_precision + (self.loc * precision_mean).sum(-1)
        log_det = self._log_det - self._dimension * LOG_2 - self._digamma()
        return ExpectedNormal(precision_mean, precision, quadratic, log_det)

    def expected_conditional(self) -> tuple[dist.MultivariateNormal, Array]:
        """(r, gap) with E_phi[log N(x; phi)] = log r(x) - gap / 2 for phi ~ this law.

        r is the normal law with the expected natural parameters, N(loc, V / df); the gap, nats [*batch], is not negative, and
        zero only where mean_precision and df are infinite.
        """
        root = self.scale_tril / jnp.sqrt(self.df)[..., None, None]
        d = self._dimension
        gap = d / self.mean_precision + d * jnp.log(0.5 * self.df) - self._digamma()
        return dist.MultivariateNormal(self.loc, scale_tril=root), gap

    def expected_kl(self, normal: dist.Distribution) -> Array:
        """E_phi[KL(normal || N(phi))] for phi ~ this law, nats [*batch]; `normal` a NumPyro MultivariateNormal."""
        expected, gap = self.expected_conditional()
        return kl_divergence(normal, expected) + 0.5 * gap

    @property
    @full_precision
    def mode(self) -> tuple[Array, Array]:
        """(mean, Sigma) where the density of (mean, Sigma) is largest: (loc, V / (df + d + 2))."""
        total = self.df + self._dimension + 2
        return self.loc, self.scale_tril @ self.scale_tril.mT / total[..., None, None]

    def entropy(self) -> Array:
        """-E[log_prob], nats [*batch]."""
        d, n = self._dimension, self.df
        log_det = self._log_det - d * LOG_2 - self._digamma()
        mean = 0.5 * d * (1 + LOG_2PI - jnp.log(self.mean_precision)) + 0.5 * log_det
        covariance = (
            -0.5 * n * self._log_det
            + 0.5 * n * d * (LOG_2 + 1)
            + multigammaln(0.5 * n, d)
            + 0.5 * (n + d + 1) * log_det
        )
        # L_jj = scale_tril_jj / B_jj
        log_tril = _log_diagonal(self.scale_tril) - 0.5 * (LOG_2 + digamma(0.5 * self._chi2_df))
        jacobian = d * LOG_2 + ((d - jnp.arange(d)) * log_tril).sum(-1)
        return mean + covariance - jacobian

    @full_precision
    def posterior(
        self,
        x: Float[Array, "*batch rows d"],
        *,
        covariance: Float[Array, "*batch rows d d"] | float = 0.0,
        weight: Float[Array, "*batch rows"] | float = 1.0,
    ) -> NormalInverseWishart:
        """The law given independent observations of the normal vector.

        Args:
            x: observations.
            covariance: covariance of each observation that is itself uncertain, x_i ~ N(x_i, covariance_i) (its expected
                sufficient statistics are used, as in variational message passing).
            weight: how often each row counts; zero for padding, N / B for a subsample.

        Validity: scale_tril is NaN from the coordinate on whose scale given those before it is made by rounding to a tenth (in
        single precision at condition numbers of its own above some 1e6): use double precision, or a wider prior.
        """
        weight = jnp.broadcast_to(weight, jnp.shape(x)[:-1])
        count = weight.sum(-1)
        mean = (weight[..., None] * x).sum(-2) / jnp.where(count == 0, 1.0, count)[..., None]
        centred = x - mean[..., None, :]
        total = self.mean_precision + count
        shrinkage = self.mean_precision * count / total
        shift = mean - self.loc
        weights = (self.mean_precision / total)[..., None], (count / total)[..., None]
        one = jnp.ones_like(self.loc)
        columns = [  # the widest first: its rounding stays its own
            (shift[..., None], shrinkage[..., None]),
            (centred.mT, weight),
            (self.scale_tril, one),
        ]
        is_certain = isinstance(covariance, int | float) and covariance == 0
        own = None if is_certain else (weight[..., None, None] * covariance).sum(-3)
        return NormalInverseWishart(
            weights[0] * self.loc + weights[1] * mean,
            total,
            _cholesky_of(columns, own),
            self.df + count,
        )

    def predictive(self) -> dist.MultivariateStudentT:
        """The marginal law of the normal vector: multivariate Student t with df - d + 1 degrees of freedom."""
        df = self.df - self._dimension + 1
        factor = jnp.sqrt((self.mean_precision + 1) / (self.mean_precision * df))
        return dist.MultivariateStudentT(df, self.loc, factor[..., None, None] * self.scale_tril)

    @full_precision
    def natural_params(self) -> tuple[Array, Array, Array, Array]:
        """Coefficients of (Sigma^-1 mean, -mean' Sigma^-1 mean / 2, -Sigma^-1 / 2, -log |Sigma| / 2).

        They interpolate (a step of natural-gradient variational inference) and add under conjugacy.
        """
        first = self.mean_precision[..., None] * self.loc
        second = self.scale_tril @ self.scale_tril.mT + first[..., :, None] * self.loc[..., None, :]
        return first, self.mean_precision, second, self.df + self._dimension + 2

    @classmethod
    def from_natural_params(cls, params: tuple[Array, Array, Array, Array]) -> NormalInverseWishart:
        """The law with these `natural_params`."""
        first, precision, second, count = params
        loc = first / precision[..., None]
        matrix = second - first[..., :, None] * loc[..., None, :]
        return cls(loc, precision, jnp.linalg.cholesky(matrix), count - loc.shape[-1] - 2)

    def _digamma(self) -> Array:
        """sum_j digamma((df + 1 - j) / 2), j = 1 ... d."""
        return digamma(0.5 * self._chi2_df).sum(-1)


def _log_diagonal(tril: Array) -> Array:
    return jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1))


@full_precision
def _cholesky_of(columns: list[tuple[Array, Array]], own: Array | None) -> Array:
    """The Cholesky factor of sum_j w_j x_j x_j' + own, for columns x_j [*batch, d, k] with weights [*batch, k].

    Its value L_0 comes from the columns themselves, whose condition number is the root of the sum's. Its derivatives are those of
    L_0 chol(sum_j w_j y_j y_j' + L_0^-1 own L_0'^-1), y = L_0^-1 x, which is L_0: the root of a weight has none at 0.
    """
    size = columns[0][0].shape[-2]
    roots = [x * jnp.sqrt(w)[..., None, :] for x, w in columns]
    if own is not None:
        own = jnp.broadcast_to(own, jnp.broadcast_shapes(own.shape, (size, size)))
        values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(own))
        roots.append(vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :])
    batch = jnp.broadcast_shapes(*(x.shape[:-2] for x in roots))
    root = jnp.concatenate([jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in roots], -1)
    tril = jnp.linalg.qr(jax.lax.stop_gradient(root).mT)[1].mT
    diagonal = jnp.diagonal(tril, axis1=-2, axis2=-1)
    tril = tril * jnp.where(diagonal < 0, -1, 1)[..., None, :]
    # A row is rounded in units of its length: what of it is left beside the rows above has to be more than that.
    rounded = 0.5 * jnp.finfo(tril.dtype).eps * jnp.sqrt((tril**2).sum(-1))
    tril = jnp.where((rounded <= MAX_ROUNDED * jnp.abs(diagonal))[..., None], tril, jnp.nan)

    def whitened(x: Array) -> Array:
        return solve_triangular(tril, jnp.broadcast_to(x, (*batch, *x.shape[-2:])), lower=True)

    total = jnp.zeros_like(tril)
    for x, w in columns:
        y = whitened(x)
        total = total + (y * w[..., None, :]) @ y.mT
    if own is not None:
        total = total + whitened(whitened(own).mT)
    moved = total - jax.lax.stop_gradient(total)
    return tril @ jnp.linalg.cholesky(jnp.eye(size, dtype=tril.dtype) + moved)


@full_precision
def _inverse(tril: Array) -> Array:
    """(tril tril')^-1."""
    eye = jnp.broadcast_to(jnp.eye(tril.shape[-1]), tril.shape)
    root = solve_triangular(tril, eye, lower=True)
    return root.mT @ root


def _kl_normal_inverse_wishart(p: NormalInverseWishart, q: NormalInverseWishart) -> Array:
    """KL(p || q), nats."""
    d = p.event_shape[0]
    batch = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    tril = jnp.broadcast_to(p.scale_tril, (*batch, d, d))
    shift = jnp.broadcast_to(p.loc - q.loc, (*batch, d))
    offset = solve_triangular(tril, shift[..., None], lower=True)[..., 0]
    root = solve_triangular(tril, jnp.broadcast_to(q.scale_tril, tril.shape), lower=True)
    ratio = q.mean_precision / p.mean_precision
    mean = d * (ratio - 1 - jnp.log(ratio)) + q.mean_precision * p.df * (offset**2).sum(-1)
    covariance = (
        0.5 * p.df * ((root**2).sum((-2, -1)) - d)
        + 0.5 * q.df * (p._log_det - q._log_det)
        + multigammaln(0.5 * q.df, d)
        - multigammaln(0.5 * p.df, d)
        + 0.5 * (p.df - q.df) * p._digamma()
    )
    return 0.5 * mean + covariance


kl_divergence.register(NormalInverseWishart, NormalInverseWishart)(_kl_normal_inverse_wishart)
