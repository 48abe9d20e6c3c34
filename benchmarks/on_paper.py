"""Calculates the bytes and the communication time of a round on many GPUs. Measures nothing.

    python benchmarks/on_paper.py [--gigabytes-per-second 25] [--microseconds 20]

Each GPU has one rank and one link. The vectors are [θ | φ] down and φ up, of the DCGAN for 64
pixels, in 4 or 2 bytes per number.

n  bytes of a vector
α  latency of a message, an assumption
β  seconds per byte of the link
γ  seconds per addition on one core. Measured: 2,765,568 float32 numbers in 0.45 ms, 16-bit numbers
   in 1.9 ms. A GPU is faster.

The costs of collectives are from Thakur, Rabenseifner and Gropp 2005 (Optimization of Collective
Communication Operations in MPICH), for long messages and a power of two of p ranks. Broadcast:
scatter and allgather, 2 log2(p) α + 2 (p - 1)/p n β. Reduction: reduce-scatter and gather, the
same plus (p - 1)/p n γ. 16-bit numbers are exchanged pairwise, and each rank adds up one slice:
(p - 1) α + (p - 1)/p n β + n γ. The server gathers the sums in 4 bytes per number:
log2(p) α + (p - 1)/p n β. Prints Markdown.
"""

from __future__ import annotations

import math

import common

ADD_FLOAT32, ADD_16_BIT = 0.45e-3 / common.PARAMETERS_D, 1.9e-3 / common.PARAMETERS_D
"""Seconds per number."""
GPUS = (8, 32, 128, 512, 2048, 4096)


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--gigabytes-per-second", type=float, default=25.0, help="bandwidth of a link"
    )
    parser.add_argument("--microseconds", type=float, default=20.0, help="latency of a message")
    args = parser.parse_args()
    alpha, beta = args.microseconds / 1e6, 1e-9 / args.gigabytes_per_second

    def collective(nbytes: int, ranks: int) -> float:
        return 2 * math.log2(ranks) * alpha + 2 * (ranks - 1) / ranks * nbytes * beta

    def pairwise_16_bit(numbers: int, ranks: int) -> float:
        messages = ranks - 1 + math.log2(ranks)
        nbytes = (ranks - 1) / ranks * (2 + 4) * numbers
        return messages * alpha + nbytes * beta + numbers * ADD_16_BIT

    print("| GPUs | GB down, up (sum) | ms down | ms up | 16 bits: ms down | ms up |")
    print("|---|---|---|---|---|---|")
    for ranks in GPUS:
        down, up = common.PARAMETERS_G + common.PARAMETERS_D, common.PARAMETERS_D
        seconds = [
            collective(4 * down, ranks),
            collective(4 * up, ranks) + (ranks - 1) / ranks * up * ADD_FLOAT32,
            collective(2 * down, ranks),
            pairwise_16_bit(up, ranks),
        ]
        gigabytes = ", ".join(f"{4 * numbers * ranks / 1e9:.2f}" for numbers in (down, up))
        print(f"| {ranks:,} | {gigabytes} | {' | '.join(f'{1e3 * one:.1f}' for one in seconds)} |")


if __name__ == "__main__":
    main()
