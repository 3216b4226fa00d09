"""The constants behind what the schedules predict: cycles, if nothing else is said. Only their ratios matter to the choice.

x86-64: measured, AVX2 on one core of an AMD Zen 3 server, AVX-512 on AMD Zen 4 and Zen 5 servers.

Arm: **not measured**. Loops: cycles an iteration by llvm-mca 19 of the code generated for the core (for the A72 LLVM has the
A57's numbers, for the A76 the Neoverse N1's; for the M1 the Neoverse V1's are taken, without SVE). What mca does not see, the
ends of loops and what is outside of them, is estimated from the length of the core's pipeline; bandwidths are estimates too,
without a source.
"""

from __future__ import annotations

from tvm_doping.targets import Target


def rate(name: str, target: Target) -> float:
    """A constant of the tables, for the instruction set of the target."""
    if target.name in CORES:
        return _ARM[name][CORES.index(target.name)]
    return _X86[name][target.lanes == 16]


_X86: dict[str, tuple[float, float]] = {
    # AVX2 and below, AVX-512
    # Bytes a cycle that one core reads from its L2, its L3, and memory, as weights: in one stream, used as they come.
    "l2": (30.0, 60.0),
    "l3": (17.5, 25.0),
    "memory": (7.0, 9.0),
    # Of a cache, what a product may count on: a model's products share it, four for a two-layer LSTM, with what runs beside it.
    "share": (0.2, 0.12),
    # The same of a weight that is read step after step, with no other in between.
    "share_again": (0.5, 0.12),
    # An FMA of a tile with the load of its vector of streams and of its index: where the tile's inputs fit the L1 beside the
    # weights that pass through it, and where they come from the L2.
    "tile": (1.2, 1.1),
    "tile_l2": (1.45, 1.5),
    # Of what such an FMA takes in a block, whose rows share the load of the streams.
    "tile_block": (0.5, 0.6),
    # A nonzero of CSR: scalar loads of its index, value and input. A row: its loop, and the sum of its accumulators.
    "csr": (1.0, 1.67),
    "csr_row": (2.0, 8.0),
    "csr_row_tile": (2.0, 4.4),
    # A nonzero of SELL-16: scalar loads and shuffles make a vector. A group: its loop, its sums to their rows.
    "sell16": (0.73, 0.8),
    "sell16_group": (30.0, 60.0),
    "sell16_group_tile": (15.0, 0.0),
    # A slot of perm8: a look-up and an FMA, four loads. A group: its loop, whose end is mispredicted.
    "perm8": (2.1, 2.1),
    "perm8_group": (20.0, 20.0),
    # A block: its column's index and broadcast, and the FMA of each vector of rows. A group of rows: its loop.
    "block": (0.9, 0.5),
    "block_fma": (0.6, 0.6),
    "block_group": (3.0, 12.0),
    # The FMA of a dense matrix, where it need not wait for memory; in a tile, register tiles share the loads. A vector of rows.
    "dense": (0.75, 0.6),
    "dense_tile": (0.6, 0.6),
    "dense_rows": (12.0, 12.0),
    # The FMA of a Kronecker product, whose loops are short; in a tile they are longer.
    "kronecker": (0.55, 1.0),
    "kronecker_tile": (0.6, 1.0),
    # To widen a vector of narrow values: a conversion that takes its operand from memory, beside which little else changes; a
    # scalar of CSR, which has to go through a vector register.
    "widen": (0.1, 0.1),
    "widen_dense_fp16": (0.0, 0.0),
    "widen_dense_bf16": (0.0, 0.0),
    "widen_dense_int8": (0.0, 0.0),
    "widen_one": (0.1, 0.1),
}

CORES = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-v1", "apple-m1")
# The same names as above.
_ARM: dict[str, tuple[float, ...]] = {
    "l2": (6.0, 8.0, 24.0, 24.0, 30.0, 40.0),
    "l3": (2.0, 3.0, 10.0, 10.0, 12.0, 20.0),  # none in the first two
    "memory": (1.6, 2.7, 5.0, 8.0, 9.0, 18.0),
    "share": (0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
    "share_again": (0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
    "tile": (8.8, 2.5, 1.3, 1.3, 0.85, 0.85),
    "tile_l2": (10.5, 3.5, 1.6, 1.6, 1.0, 1.0),
    "tile_block": (0.58, 0.46, 0.49, 0.49, 0.6, 0.6),
    # Of a tile of two and of four vectors of streams, times a tile of one: more FMAs then share a nonzero's loads.
    "csr_2": (1.7, 1.55, 1.3, 1.3, 1.15, 1.15),
    "csr_4": (3.2, 2.2, 2.0, 2.0, 1.75, 1.75),
    "sell16_2": (1.65, 1.55, 1.5, 1.5, 1.3, 1.3),
    "sell16_4": (2.9, 2.6, 2.6, 2.6, 2.3, 2.3),
    "block_2": (1.45, 1.85, 1.7, 1.7, 1.1, 1.1),
    "block_4": (2.4, 3.6, 3.3, 3.3, 2.1, 2.1),
    "dense_2": (1.15, 1.5, 1.1, 1.1, 1.0, 1.0),
    "dense_4": (1.55, 2.7, 2.05, 2.05, 1.1, 1.1),
    # Nonzeros of a row side by side: a load for the values of four, one for their indices, one each for z.
    "csr": (5.4, 2.04, 1.4, 1.4, 1.03, 1.03),
    "csr_row": (25.0, 15.0, 12.0, 12.0, 10.0, 10.0),
    "csr_row_tile": (20.0, 8.0, 5.0, 5.0, 4.0, 4.0),
    # The Neoverse V1's are by SVE's gather, of four lanes at a time; by single loads 0.6.
    "sell16": (4.3, 1.82, 1.1, 1.1, 0.34, 0.6),
    "sell16_group": (80.0, 40.0, 30.0, 30.0, 25.0, 25.0),
    "sell16_group_tile": (60.0, 25.0, 15.0, 15.0, 10.0, 10.0),
    "block": (5.0, 2.0, 1.0, 1.0, 0.7, 0.7),
    "block_fma": (3.0, 1.0, 0.5, 0.5, 0.35, 0.35),
    "block_group": (20.0, 10.0, 8.0, 8.0, 6.0, 6.0),
    "dense": (5.5, 1.14, 0.63, 0.63, 0.5, 0.5),
    "dense_tile": (5.5, 1.4, 1.0, 1.0, 1.0, 1.0),
    "dense_rows": (60.0, 20.0, 12.0, 12.0, 10.0, 10.0),
    "kronecker": (5.0, 1.2, 0.65, 0.65, 0.55, 0.55),
    "kronecker_tile": (4.0, 1.2, 0.8, 0.8, 0.6, 0.6),
    # Dot products (sparsity.dots), of the cores that have them. A register of weights of one stream, with its load; a weight times
    # a vector of a tile's streams, dense and in blocks; tiles of two and of four vectors, times that.
    "dense_bfdot": (0.0, 0.0, 0.0, 0.0, 0.36, 0.0),
    "dense_smmla": (0.0, 0.0, 0.0, 0.0, 0.36, 0.0),
    "dense_sdot": (0.0, 0.0, 0.53, 0.53, 0.36, 0.36),
    "dense_fmlal": (0.0, 0.0, 0.0, 0.0, 0.5, 0.5),
    "dense_fmla": (0.0, 0.0, 0.88, 0.88, 0.0, 0.0),
    "dense_tile_bfdot": (0.0, 0.0, 0.0, 0.0, 0.126, 0.0),
    "dense_tile_smmla": (0.0, 0.0, 0.0, 0.0, 0.063, 0.0),
    "dense_tile_sdot": (0.0, 0.0, 0.126, 0.126, 0.063, 0.063),
    "dense_tile_fmlal": (0.0, 0.0, 0.0, 0.0, 0.25, 0.25),
    "dense_tile_fmla": (0.0, 0.0, 0.65, 0.65, 0.0, 0.0),
    "dense_bfdot_2": (0.0, 0.0, 0.0, 0.0, 1.33, 0.0),
    "dense_bfdot_4": (0.0, 0.0, 0.0, 0.0, 2.5, 0.0),
    "dense_smmla_2": (0.0, 0.0, 0.0, 0.0, 1.33, 0.0),
    "dense_smmla_4": (0.0, 0.0, 0.0, 0.0, 2.26, 0.0),
    "dense_sdot_2": (0.0, 0.0, 2.0, 2.0, 2.0, 2.0),
    "dense_sdot_4": (0.0, 0.0, 4.0, 4.0, 4.0, 4.0),
    "dense_fmlal_2": (0.0, 0.0, 0.0, 0.0, 2.0, 2.0),
    "dense_fmlal_4": (0.0, 0.0, 0.0, 0.0, 4.0, 4.0),
    "dense_fmla_2": (0.0, 0.0, 1.1, 1.1, 0.0, 0.0),
    "dense_fmla_4": (0.0, 0.0, 2.26, 2.26, 0.0, 0.0),
    # Blocks side by side: their indices and inputs, and each register of their weights.
    "block_bfdot": (0.0, 0.0, 0.0, 0.0, 1.33, 0.0),
    "block_fmlal": (0.0, 0.0, 0.0, 0.0, 0.56, 0.56),
    "block_fmla": (0.0, 0.0, 1.27, 1.27, 0.0, 0.0),
    "block_fma_bfdot": (0.0, 0.0, 0.0, 0.0, 0.34, 0.0),
    "block_fma_fmlal": (0.0, 0.0, 0.0, 0.0, 0.45, 0.45),
    "block_fma_fmla": (0.0, 0.0, 0.8, 0.8, 0.0, 0.0),
    "block_tile_bfdot": (0.0, 0.0, 0.0, 0.0, 0.51, 0.0),
    "block_tile_fmlal": (0.0, 0.0, 0.0, 0.0, 0.25, 0.25),
    "block_tile_fmla": (0.0, 0.0, 0.65, 0.65, 0.0, 0.0),
    "block_bfdot_2": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "block_bfdot_4": (0.0, 0.0, 0.0, 0.0, 1.5, 0.0),
    "block_fmlal_2": (0.0, 0.0, 0.0, 0.0, 2.0, 2.0),
    "block_fmlal_4": (0.0, 0.0, 0.0, 0.0, 4.0, 4.0),
    "block_fmla_2": (0.0, 0.0, 1.1, 1.1, 0.0, 0.0),
    "block_fmla_4": (0.0, 0.0, 2.26, 2.26, 0.0, 0.0),
    # To round four inputs, once a product; of int8 the search for the largest comes on top.
    "round_bf16": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "round_fp16": (0.0, 0.0, 4.0, 4.0, 2.0, 2.0),
    "round_int8": (0.0, 0.0, 10.0, 10.0, 8.0, 8.0),
    "widen": (2.0, 1.0, 0.5, 0.5, 0.35, 0.35),
    # Of a dense matrix, which the A53 and the A72 are taken to wait for. `fcvtl` has one unit, for two cycles on the A76.
    "widen_dense_fp16": (0.0, 0.0, 1.37, 1.37, 0.5, 0.5),
    "widen_dense_bf16": (0.0, 0.0, 0.37, 0.37, 0.0, 0.0),
    "widen_dense_int8": (0.0, 0.0, 0.87, 0.87, 0.75, 0.75),
    "widen_one": (0.5, 0.25, 0.125, 0.125, 0.1, 0.1),
}
