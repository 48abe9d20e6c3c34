"""What a round would send, and how long that would take, on many GPUs: on paper.

    python benchmarks/on_paper.py [--gigabytes-per-second 25] [--microseconds 20]

One rank a GPU, one link a GPU. n: the 64-pixel DCGAN, [θ | φ] down and φ up, in 4 or 2 bytes. β:
the link's. γ: additions on one core as measured for results.md, 2,765,568 numbers in 0.45 ms, or
1.9 ms where they come in 16 bits; a GPU adds faster. α: a message's start, an assumption.

Costs of collectives are those of Thakur, Rabenseifner and Gropp 2005 (Optimization of Collective
Communication Operations in MPICH) for long messages and a power of two of ranks p: a broadcast is
a scatter and an allgather, 2 log2(p) α + 2 (p - 1)/p n β, and a reduction a reduce-scatter and a
gather, the same and (p - 1)/p n γ. Numbers of 16 bits are exchanged pairwise, so that each rank
adds up a slice, (p - 1) α + (p - 1)/p n β + n γ, and the sums, in 4 bytes, gathered at the server,
log2(p) α + (p - 1)/p n β. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math

THETA, PHI = 3_576_704, 2_765_568  # parameters of the 64-pixel pair
ADD, ADD_NARROW = 0.45e-3 / PHI, 1.9e-3 / PHI  # seconds a number
GPUS = (8, 32, 128, 512, 2048, 4096)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes-per-second", type=float, default=25.0, help="of a link")
    parser.add_argument("--microseconds", type=float, default=20.0, help="to start a message")
    args = parser.parse_args()
    alpha, beta = args.microseconds / 1e6, 1e-9 / args.gigabytes_per_second

    def tree(nbytes: int, ranks: int) -> float:
        return 2 * math.log2(ranks) * alpha + 2 * (ranks - 1) / ranks * nbytes * beta

    def slices(numbers: int, ranks: int) -> float:
        messages = ranks - 1 + math.log2(ranks)
        moved = (ranks - 1) / ranks * (2 + 4) * numbers
        return messages * alpha + moved * beta + numbers * ADD_NARROW

    print("| GPUs | GB down, up, of all | ms down | ms up | 16 bits: ms down | ms up |")
    print("|---|---|---|---|---|---|")
    for ranks in GPUS:
        down, up = THETA + PHI, PHI
        seconds = [
            tree(4 * down, ranks),
            tree(4 * up, ranks) + (ranks - 1) / ranks * up * ADD,
            tree(2 * down, ranks),
            slices(up, ranks),
        ]
        moved = ", ".join(f"{4 * numbers * ranks / 1e9:.2f}" for numbers in (down, up))
        print(f"| {ranks:,} | {moved} | {' | '.join(f'{1e3 * one:.1f}' for one in seconds)} |")


if __name__ == "__main__":
    main()
