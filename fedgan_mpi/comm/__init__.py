"""Communication between ranks: verbs, transports, GPU staging and compression."""

from fedgan_mpi.comm import before_mpi as before_mpi
