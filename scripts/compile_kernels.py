"""Compiles every launch of the operators at the sizes of published models, for GPUs that need not be there.

``python scripts/compile_kernels.py [PART OF A CASE'S NAME] [--target sm_90]`` prints what a thread of each kernel
needs, and fails where one spills registers to memory, asks for more shared memory than there is, or leaves to the
smaller matrix instructions what Hopper has larger ones for.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import warnings
from dataclasses import dataclass

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("Triton's interpreter compiles nothing: unset TRITON_INTERPRET.")

from kernel_cases import CASES
from kernel_launches import MACHINES, Compiled, Launch, compiled, recorded

MOST_BLOCKS = 65535
"""CUDA's limit for the second and the third dimension of a grid."""
LEAST_ROWS_OF_HOPPER = 64


@dataclass(frozen=True)
class Job:
    """A launch to compile for a target, and the first case that it was seen in."""

    target: str
    case: str
    launch: Launch


def jobs(targets: list[str], part: str) -> list[Job]:
    """Every launch of every case whose name has the part, each once."""
    found: dict[tuple[object, ...], Job] = {}
    for target in targets:
        for case, call in CASES.items():
            if part in case:
                with recorded(MACHINES[target]) as launches:
                    call()
                for launch in launches:
                    found.setdefault((target, *launch.key()), Job(target, case, launch))
    return list(found.values())


def complaints(job: Job, made: Compiled) -> list[str]:
    """What is wrong with the machine code of a launch."""
    found, machine, options = [], MACHINES[job.target], job.launch.options
    if made.spilled:
        found.append(f"{made.spilled} bytes spilled")
    if made.shared > machine.shared_memory:
        found.append(f"more than {machine.shared_memory} bytes of shared memory")
    if max(job.launch.grid[1:], default=1) > MOST_BLOCKS:
        found.append(f"a grid of {job.launch.grid}")
    if "enable_fp_fusion" not in options:
        found.append("enable_fp_fusion is not said, and its default will change")
    if job.target == "sm_90" and options.get("BLOCK_R", 0) >= LEAST_ROWS_OF_HOPPER and "mma.sync" in made.text:
        found.append("no wgmma")
    return found


def line(job: Job, made: Compiled | None, wrong: list[str]) -> str:
    """A line of the table."""
    used = "" if made is None else f"{made.registers:>9} {made.spilled:>7} {made.shared:>7}"
    return f"{job.target:7} {job.case:24} {job.launch.name:28} {used:25} {'; '.join(wrong)}".rstrip()


def examined(number: int) -> tuple[str, bool]:
    """The line of a job, and whether it is as it should be."""
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")  # which complaints() says in other words
    job = JOBS[number]
    try:
        made = compiled(job.launch, MACHINES[job.target])
    except Exception as error:  # whatever the compiler raises, the others are still to be seen
        return line(job, None, [f"{type(error).__name__}: {error}"]), False
    wrong = complaints(job, made)
    return line(job, made, wrong), not wrong


def main() -> int:
    """Compiles by two processes; 1 if anything is wrong."""
    print(f"{'target':7} {'case':24} {'kernel':28} registers spilled  shared")
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    bad = 0
    with pool:
        for text, good in pool.map(examined, range(len(JOBS))):
            print(text, flush=True)
            bad += not good
    print(f"{len(JOBS)} kernels compiled" + (f", {bad} of them wrong" if bad else ""))
    return int(bad > 0 or not JOBS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="part of the names of the cases")
    parser.add_argument("--target", action="append", choices=list(MACHINES), help="default: all")
    chosen = parser.parse_args()
    JOBS = jobs(chosen.target or list(MACHINES), chosen.part)
    sys.exit(main())
