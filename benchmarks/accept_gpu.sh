#!/usr/bin/env bash
# Accepts a machine with one GPU, in at most eight minutes: tests, jobs and speeds with their limits.
#
#   [OUT=DIR] [MPICH=DIR] [OPENMPI=DIR] benchmarks/accept_gpu.sh
#
# OUT: new directory of the logs and results. MPICH: its prefix; without, the mpirun beside python.
# OPENMPI: prefix of a CUDA-aware Open MPI; without, the steps that need one are skipped.
#
# Each step prints PASS, FAIL or SKIP, its number and the limit. The last line is JSON. Exit status:
# 1 if a step failed. Several ranks on one GPU cannot test NVLink, GPUDirect RDMA, several nodes, UCX
# or binding by cgroups.
set -uo pipefail
OUT="${OUT:-accept_gpu}"
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) && cd "$(dirname "$0")/.." || exit 1
export OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
results="$OUT/results.tsv"
: >"$results"
helper=(python benchmarks/accept_gpu.py)
LAST_START=420 END=470 # seconds; no step begins after the first, and none ends after the second

gpus=$("${helper[@]}" count) || exit 1

step() { # number seconds name: run a step of accept_gpu.py, which writes its verdict to a file
    local number="$1" seconds="$2" name="$3" log="$OUT/$1-$3.log" start=$SECONDS status verdict left
    verdict="$OUT/verdict"
    rm -f "$verdict"
    left=$((END - SECONDS))
    if [ "$gpus" = 0 ]; then
        printf 'SKIP\tthis machine has no GPU\t' >"$verdict"
    elif [ "$SECONDS" -gt "$LAST_START" ]; then
        printf 'SKIP\tnot begun after %s s\t' "$LAST_START" >"$verdict"
    else
        timeout -k 5 "$((seconds < left ? seconds : left))" "${helper[@]}" "$name" >"$log" 2>&1
        status=$?
        if [ "$status" = 124 ] || [ "$status" = 137 ]; then
            printf 'FAIL\ttimed out\t%s s' "$seconds" >"$verdict"
        elif [ ! -s "$verdict" ]; then
            printf 'FAIL\texit status %s, see %s\t' "$status" "$log" >"$verdict"
        fi
    fi
    printf '%s\t%s\t%s\t%s\n' "$number" "$name" "$((SECONDS - start))" "$(cat "$verdict")" \
        >>"$results"
    awk -F '\t' '{printf "%-4s %2s %-10s %s", $1, n, name, $2; if ($3) printf " (limit: %s)", $3
        print ""}' n="$number" name="$name" "$verdict"
}

# In this order, what others build on comes first. Steps that may spoil the GPU's state come late.
step 0 10 machine
step 1 60 tests
step 3 60 mpich
step 4 60 openmpi
step 5 15 no-cuda
step 6 30 resume
step 7 30 cpu
step 2 15 fallback
step 9 45 steps
step 10 60 rounds
step 12 25 routes
step 8 40 64-pixels
step 11 30 mps
step 13 10 memory
rm -f "$OUT/verdict"
exec "${helper[@]}" table
