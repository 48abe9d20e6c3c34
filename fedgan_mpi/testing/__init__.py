"""Tools for tests and benchmarks: whole MPI jobs, run directories, kills and damaged files.

Needs no test framework. The package itself never imports these modules.
"""
