"""The table of JAX's primitives: which are continuous, and where not.

Every primitive is in one row. What is in none, and every function that cannot be opened, may jump silently in everything it
depends on. What may jump is searched numerically (`checks/_jumps.py`); what is continuous by this table is not, so that a name in
a wrong row is a wrong number: the rows claim no more than is true for all finite operands.
"""

from __future__ import annotations

import numpy as np

from .._compat import CALLS


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Elements are moved, chosen by integers, or copied.
PLACES = _names(
    """
    all_gather all_gather_invariant all_to_all broadcast_in_dim broadcast_to concatenate convert_element_type copy copy_p
    device_put dynamic_slice dynamic_update_slice gather layout_constraint optimization_barrier pad pbroadcast ppermute pvary real
    imag complex reduced_vary_cast reshape reshard rev scatter sharding_constraint slice split squeeze stack stop_gradient
    tile transpose unstack with_memory_space_constraint zeros_like vary_unreduced_cast relayout tie
    """
)
# An infinite operand makes an infinite (or NaN) result.
SUMS = _names(
    """
    add add_any sub neg reduce_sum cumsum scatter-add scatter-sub conj psum psum_invariant conv_general_dilated
    reduce_window_sum
    """
)
PRODUCTS = _names("mul dot_general")
KEEPS_INFINITY = _names("abs square")
# May leave the numbers of 32 bits for operands of a size that draws have.
GROWING = _names("exp exp2 expm1 sinh cosh pow cumprod reduce_prod")
MAX_POWER = 8  # of integer powers that stay among them
MAX_FACTOR = 1e8  # of constants
# Continuous in all finite operands.
SMOOTH = _names(
    """
    asinh atan bessel_i0e bessel_i1e cbrt clamp cos cosh cumlogsumexp cummax cummin cumprod erf erfc exp exp2 expm1
    fft householder_product logistic max min one_minus_square pmax pmin random_gamma reduce_max reduce_min
    reduce_prod reduce_scatter reduce_window_max reduce_window_min rng_uniform scatter-max scatter-min scatter-mul sin sinh
    symmetric_product tanh
    """
)
# Piecewise constant, or with pieces that do not meet.
STEPS = _names(
    """
    argmax argmin bitcast_convert_type ceil eq eq_to floor ge gt is_finite le le_to lt lt_to ne nextafter reduce_precision
    rem round sign to_edtype from_edtype
    """
)
# Continuous away from a branch cut, a change of sign, of pivots or of the order of what is carried along.
CUTS = _names(
    """
    approx_top_k atan2 eig geqp3 geqrf hessenberg lu ormqr qr schur select_and_gather_add select_and_scatter
    select_and_scatter_add tridiagonal
    """
)
# Of integers, booleans or random keys alone: they have no real operand.
INTEGERS = _names(
    """
    and clz iota iota_2x32_shape lu_pivots_to_permutation mulhi multiple_of not or philox2x32 philox4x32 population_count
    random_bits random_clone random_fold_in random_seed random_split random_unwrap random_wrap reduce_and reduce_or reduce_xor
    rng_bit_generator shift_left shift_right_arithmetic shift_right_logical threefry2x32 threefry4x32 xor after_all
    axis_index create_token dim_as_value dimension_size program_id num_programs
    """
)
# Functions that cannot be looked into, or are not worth it: whatever they depend on may make them jump.
OPAQUE = _names(
    """
    accum_grad_in_ref addupdate all_gather_done all_gather_reduced all_gather_reduced_start all_gather_start all_to_all_done
    all_to_all_start call_exported call_hi_primitive call_hi_primitive_linearized check cholesky_update composite create_linear
    cudnn_fusion custom_jvp_call_jaxpr custom_lin custom_linear_solve custom_partitioning custom_vmap_call dce_sink debug_callback
    debug_print delay dot_product_attention_bwd dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd
    dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper
    dot_product_attention_fwd dot_product_attention_fwd_wrapper empty empty2 empty_ref ffi_call free_ref freeze get
    get_global inspect_sharding io_callback linear_call masked_load masked_swap mpmd_map name new_ref pallas_call
    pbroadcast_dynamic pin platform_index polynomial ppermute_done ppermute_start precv preduced psend psum_done
    psum_invariant_start pure_callback ragged_all_to_all ragged_dot_general reduce reduce_scatter_done reduce_scatter_start
    reduce_window remat_opt run_scoped run_state scaled_dot scaled_matmul scaled_matmul_wrapper semaphore_read semaphore_signal
    semaphore_wait shape_assertion shard_map stage swap unpin unreachable unreduced_pmax unreduced_pmin unreduced_psum
    unreduced_reduce_scatter xla_metadata_call xla_metadata_value

    box_get box_set call core_map jaxpr_call log_extend log_read new_box new_log pbroadcast_done pbroadcast_start program_order
    psum_start reduced_vary_cast_p unreduced_psum_start unreduced_reduce_scatter_start vary_unreduced_cast_p
    """
)
CONTROL = _names("scan while cond")
HANDLED = _names("select_n sort top_k eigh svd")
COMPARISONS = _names("eq ne lt le gt ge")
# Zero only where an operand is.
SIGNED = PLACES | _names(
    "mul div neg abs square sqrt rsqrt integer_pow reciprocal cbrt reduce_prod"
)

# Of those in `DOMAINS`: an infinite operand makes an infinite (or NaN) result.
KEEPS_INFINITY_INSIDE = _names("log log2 log1p sqrt acosh lgamma cholesky")
# Infinite, or NaN, at zero and beyond only: name -> the operand that must not reach zero.
ZEROS = {"div": 1, "integer_pow": 0, "log": 0, "log2": 0, "reciprocal": 0, "rsqrt": 0, "sqrt": 0}
# Infinite where a matrix is singular: name -> the number of operands, the first ones, that make up the matrix.
SOLVED = {"triangular_solve": 1, "tridiagonal_solve": 3}
# Infinite, or NaN, elsewhere: name -> whether the operands' ranges keep it away from there.
DOMAINS = {
    "acos": lambda a: -1 <= a.low and a.high <= 1,
    "acosh": lambda a: a.low >= 1,
    "asin": lambda a: -1 <= a.low and a.high <= 1,
    "atanh": lambda a: a.is_within(-1.0, 1.0),
    "cholesky": lambda *_: False,
    "digamma": lambda a: a.is_positive,
    "erf_inv": lambda a: a.is_within(-1.0, 1.0),
    "igamma": lambda a, x: a.is_positive and x.low >= 0,
    "igamma_grad_a": lambda a, x: a.is_positive and x.is_positive,
    "igammac": lambda a, x: a.is_positive and x.low >= 0,
    "lgamma": lambda a: a.is_positive,
    "log1p": lambda a: a.is_within(-1.0, float("inf")),
    "polygamma": lambda m, a: a.is_positive,
    "pow": lambda a, b: a.is_positive,
    "random_gamma_grad": lambda a, x: a.is_positive and x.is_positive,
    "regularized_incomplete_beta": lambda a, b, x: (
        a.is_positive and b.is_positive and 0 <= x.low and x.high <= 1
    ),
    "tan": lambda a: a.is_within(-np.pi / 2, np.pi / 2),
    "zeta": lambda x, q: x.is_within(1.0, float("inf")) and q.is_positive,
}
# Complex functions that are continuous on the whole plane.
ENTIRE = _names(
    "cos cosh exp exp2 expm1 sin sinh abs square integer_pow conj real imag complex mul div"
)


CATALOGUE = frozenset().union(
    PLACES, SUMS, PRODUCTS, KEEPS_INFINITY, SMOOTH, STEPS, CUTS, INTEGERS, OPAQUE, CALLS, CONTROL, HANDLED, ZEROS, SOLVED, DOMAINS
)  # fmt: skip


# Continuous and finite in all finite operands; integer_pow but for negative powers.
EVERYWHERE = PLACES | SUMS | PRODUCTS | KEEPS_INFINITY | SMOOTH | INTEGERS | {"integer_pow"}
