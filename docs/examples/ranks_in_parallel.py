"""Reads the ranks of a run in parallel, with any concurrent.futures executor: one task per rank, and only the result travels.

    python docs/examples/ranks_in_parallel.py TRACES                                    # a process per CPU
    python docs/examples/ranks_in_parallel.py TRACES --executor dask [--address HOST:PORT]
    mpirun -n 9 python -m mpi4py.futures docs/examples/ranks_in_parallel.py TRACES --executor mpi

Every worker must see the same files under the same path; it needs perfscope and NumPy, no GPU.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from perfscope.trace.analysis import analyze_files


@contextmanager
def executor(kind: str, address: str = ""):
    """The executor of this kind. `address`: of a Dask scheduler; "" starts a cluster on this machine."""
    if kind == "dask":
        from dask.distributed import Client  # pip install distributed

        with Client(address) if address else Client(processes=True) as client:
            yield client.get_executor()
    elif kind == "mpi":
        from mpi4py.futures import MPIPoolExecutor  # pip install mpi4py

        with MPIPoolExecutor() as pool:
            yield pool
    else:
        with {"processes": ProcessPoolExecutor, "threads": ThreadPoolExecutor}[kind]() as pool:
            yield pool


def main() -> None:
    """Prints each rank's steps and how long it waited for the others."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("traces", help="a directory or tar of ranks")
    p.add_argument("--executor", default="processes", choices=["processes", "threads", "dask", "mpi"])
    p.add_argument("--address", default="")
    given = p.parse_args()
    with executor(given.executor, given.address) as pool:
        analysis = analyze_files(given.traces, executor=pool)
    for share in analysis.together.ranks:
        print(f"rank {share.rank}: steps {share.step_ns / 1e6:.3f} ms, waited {share.wait_ns / 1e6:.3f} ms")
    print(f"straggler: {analysis.together.straggler}")


if __name__ == "__main__":  # processes that are spawned import this file
    main()
