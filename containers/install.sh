#!/bin/sh
# Installs the project in /src into the image. Both recipes run it as root while they build.
#
# EXTRAS: extras of the package, such as [mpich,imagenet]. PIP_FLAGS: more flags of pip.
set -eu
python3 -m venv /opt/fedgan_mpi
# shellcheck disable=SC2086 # several flags
/opt/fedgan_mpi/bin/pip install --no-cache-dir ${PIP_FLAGS:-} "/src${EXTRAS:-}"
rm -rf /src
mkdir -p /opt/mpi # the host's MPI library is bound here
