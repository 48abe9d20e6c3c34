# Settings of your site. Every job script sources this file; it is the only one to edit.

# Modules with Python and an MPI library (CUDA-aware on GPU nodes), for example:
# module purge
# module load OpenMPI Python

# Environment with fedgan_mpi installed.
# source "$HOME/fedgan/.venv/bin/activate"

# Command that starts the ranks. Use --mpi=pmi2 for MPICH and --mpi=pmix for Open MPI;
# `srun --mpi=list` shows what SLURM supports. With the wrong type, srun starts separate one-rank
# jobs, which the program refuses.
LAUNCH="srun --mpi=pmi2 --kill-on-bad-exit=1"

# Pass account and partition on sbatch's command line, or set SBATCH_ACCOUNT and SBATCH_PARTITION
# before you call sbatch, because sbatch reads them before it runs this file.
