# What differs from site to site: the one file to edit. Sourced by every job script.

# Modules that bring an MPI library (CUDA-aware where there is one) and Python, for example:
# module purge
# module load OpenMPI Python

# Environment that `pip install ".[test]"` was run in.
# source "$HOME/fedgan/.venv/bin/activate"

# How ranks are started. MPICH: --mpi=pmi2; Open MPI: --mpi=pmix; `srun --mpi=list` names what is there.
# Without the right one srun starts worlds of one rank each, and the program refuses.
LAUNCH="srun --mpi=pmi2 --kill-on-bad-exit=1"

# Account and partition go on sbatch's command line, or into SBATCH_ACCOUNT and SBATCH_PARTITION
# where sbatch is called: it reads them before this file is.
