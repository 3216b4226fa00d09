"""Linear layers on the emulated GPU against float64, one row at a time and 32 side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.conftest import GRID, loaded
from tests.cuda.emulation import Driver, to_gpu
from tests.cuda.test_lstm import to_type
from tests.kernels.conftest import sparse_matrix, structure
from tvm_doping import structures
from tvm_doping.kernels import LinearPlan, linear
from tvm_doping.kernels.plan import Config, Product
from tvm_doping.kernels.product import part_of

OUTPUTS, INPUTS = 52, 12
# Values in 16 bits, of S and of the dense matrices of each structure; z is rounded too by tensor cores, which mma16 is made for.
CASES = [
    ("kronecker", "fp16", "sell32"),
    ("kronecker", "bf16", "mma16"),
    ("hybrid", "fp16", "mma16"),
    ("low_rank", "bf16", "sell32"),
    ("dense", "bf16", None),
]


@pytest.mark.parametrize(("family", "values", "format"), CASES)
def test_narrow_values_are_summed_in_fp32(
    emulated: Driver, family: str, values: Any, format: str | None
) -> None:
    rng = np.random.default_rng(0)
    base = structure(rng, family, OUTPUTS, INPUTS)
    S = sparse_matrix(rng, OUTPUTS, INPUTS, 0.3 if format else 0.0)
    product = Product(part=part_of(base), sparse=format, nnz=int(S.nnz), values=values)
    plan = LinearPlan(
        inputs=INPUTS, outputs=OUTPUTS, product=product, config=Config(lanes=1, registers=0, grid=GRID)
    )
    bias = rng.standard_normal(OUTPUTS).astype("float32")
    arrays = linear.pack(plan, structures.Doped(base, S), bias)
    function = loaded(linear.prim_func(plan, arrays, "f"), emulated)
    emulated.order("backward")
    for rows in (1, 3, 40):
        x = rng.standard_normal((rows, INPUTS)).astype("float32")
        y = to_gpu(np.full((rows, OUTPUTS), np.nan, "float32"))
        function(to_gpu(x), *map(to_gpu, arrays.values()), y)
        z = to_type(x, values) if format == "mma16" else x
        wanted = x @ _stored(base, values).T + z.astype("float64") @ to_type(S.toarray(), values).T + bias
        np.testing.assert_allclose(y.numpy(), wanted, atol=3e-6)
        np.testing.assert_allclose(linear.reference(plan, arrays, x)[0], wanted, atol=3e-6)


def _stored(base: Any, values: Any) -> np.ndarray:
    """The structure as it is stored, in float64: a Kronecker product's factors stay fp32."""
    if base.kind == "kronecker":
        return base.to_dense().astype("float64")  # type: ignore[no-any-return]
    rounded = {name: to_type(array, values) for name, array in base.arrays().items()}
    matrix = {name: array.astype("float64") for name, array in rounded.items()}
    if base.kind == "dense":
        return matrix["W"]
    below = matrix["U"] @ matrix["V"]
    return np.concatenate([matrix["D"], below]) if base.kind == "hybrid" else below
