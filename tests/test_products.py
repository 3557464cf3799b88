"""Products with gradients of their own: they compute what JAX's do, in either dtype, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rastp_jax.runtime import products, target

# a, b of a @ b; b may be one matrix for all leading axes; sizes of one are where XLA rewrites products
MATMUL = [
  ((6, 5), (5, 4)),
  ((2, 6, 5), (5, 4)),
  ((2, 6, 4), (4, 9)),
  ((2, 3, 6, 5), (2, 3, 5, 4)),
  ((2, 3, 6, 4), (2, 3, 4, 9)),
  ((1, 3, 6, 5), (1, 3, 5, 1)),
  ((2, 1, 1, 5), (2, 1, 5, 4)),
  ((2, 3, 6, 1), (2, 3, 1, 4)),
  ((1, 1, 5), (5, 4)),
  ((8, 1), (1, 4)),
  ((8, 5), (5, 1)),
  ((1, 1), (1, 1)),
]
ADDED = [((2, 3, 4), (4,)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (1, 3, 4)), ((2, 3, 4), (2, 3, 4)), ((1, 1), (1,))]

CASES = [
  *((products.matmul, jnp.matmul, a, b) for a, b in MATMUL),
  *(
    (products.matmul_transposed, lambda a, b: a @ jnp.swapaxes(b, -1, -2), a, (*b[:-2], b[-1], b[-2]))
    for a, b in MATMUL
    if len(a) == len(b)
  ),
  *((products.add_to_each, lambda x, y: x + jnp.broadcast_to(y, x.shape), x, y) for x, y in ADDED),
]


def result_and_gradients(function, a, b, weight):
  value, backward = jax.vjp(function, a, b)
  return value, *backward(weight.astype(value.dtype))


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def platform(request):
  """Forms are chosen while a program is traced; those of an accelerator run on a CPU, too."""
  with target.tracing_as(request.param):
    yield request.param


@pytest.mark.parametrize(("ours", "theirs", "a_shape", "b_shape"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_values_and_gradients_are_those_of_jax(ours, theirs, a_shape, b_shape, platform):
  draw = np.random.default_rng(0).standard_normal
  a, b = (jnp.asarray(draw(shape), jnp.float32) for shape in (a_shape, b_shape))
  weight = jnp.asarray(draw(jax.eval_shape(theirs, a, b).shape), jnp.float32)
  expected = result_and_gradients(theirs, a, b, weight)
  for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 0.05)):
    # a function of its own, because JAX keeps what was traced for the other platform
    traced = jax.jit(lambda *arrays: result_and_gradients(ours, *arrays))
    seen = traced(a.astype(dtype), b, weight)
    assert seen[0].dtype == (jnp.float32 if ours is products.matmul_transposed else dtype)
    assert (seen[1].dtype, seen[2].dtype) == (dtype, jnp.float32), "a parameter's gradient keeps its float32"
    for got, want in zip(seen, expected, strict=True):
      np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=tolerance, atol=tolerance * max(a_shape + b_shape))


def test_sums_are_float32(platform):
  """4,096 times 1 + 2^-7: sums in bfloat16 would be stuck long before."""
  a, b = jnp.full((1, 4096), 1 + 2**-7, jnp.bfloat16), jnp.ones((4096, 1))
  assert products.matmul_transposed(a, b.T)[0, 0] == 4096 + 32
  gradient = jax.grad(lambda shared: jnp.sum(products.add_to_each(jnp.zeros((4096, 1), jnp.bfloat16), shared)))
  assert gradient(jnp.zeros((1,)))[0] == 4096


@pytest.mark.parametrize("rows", [(7,), (2, 3), (2, 3, 4)])
def test_looking_up_is_indexing(rows, platform):
  draw = np.random.default_rng(0)
  table = jnp.asarray(draw.standard_normal((5, 6)), jnp.float32)
  places = jnp.asarray(draw.integers(0, 5, rows), jnp.int32)
  weight = jnp.asarray(draw.standard_normal((*rows, 6)), jnp.float32)
  value, backward = jax.vjp(lambda table: products.look_up(table, places, "float32"), table)
  expected, expected_backward = jax.vjp(lambda table: table[places], table)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_allclose(backward(weight)[0], expected_backward(weight)[0], rtol=1e-6, atol=1e-6)
  if len(rows) == 3:
    value, backward = jax.vjp(lambda table: products.look_up_few(table, places), table)
    np.testing.assert_allclose(value, jnp.moveaxis(expected, -1, 1), rtol=1e-6)
    np.testing.assert_allclose(
      backward(jnp.moveaxis(weight, -1, 1))[0], expected_backward(weight)[0], rtol=1e-6, atol=1e-6
    )


def test_a_gpu_adds_up_a_small_tables_gradient_in_many_products():
  """Its V x H sums are one tile of a product: with all terms in one product, one core of the GPU would work for it."""
  rows, changes = jax.ShapeDtypeStruct((64, 7, 7), jnp.int32), jax.ShapeDtypeStruct((64, 6, 7, 7), jnp.float32)
  table = jax.ShapeDtypeStruct((32, 6), jnp.float32)

  def gradient(table, rows, changes):
    return jax.vjp(lambda table: products.look_up_few(table, rows), table)[1](changes)[0]

  with target.tracing_as("gpu"):
    traced = jax.make_jaxpr(gradient)(table, rows, changes)
  dots = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == "dot_general"]
  assert all(equation.outvars[0].aval.size >= 64 * 32 * 6 for equation in dots) and dots
