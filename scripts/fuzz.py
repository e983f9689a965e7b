"""Hostile input: spoil files in many ways, and see that every command ends with a clear line and nothing half-written.

    scripts/fuzz.py --cases 2000 --seed 0
    scripts/fuzz.py --cases 0 --runs 120

The same seed gives the same cases. Most run in this process, whose memory is limited; one in a hundred runs in a
process of its own, where llama.cpp is reached or the program is killed. `--runs` adds whole runs on a tiny model: of
twelve ten are killed at a random moment, one runs out of disk, and one meets a second run in its directory; the same
command must then give the same bytes as a run that nothing disturbed. Prints `N passed, N failed`; exit code 1 if any
failed. Ctrl-C ends it with the figures so far.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

MEMORY = 6 << 30  # bytes of address space


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case (or with --cases 0 this whole run) alone")
    arguments = parser.parse_args()
    from fuzzing.harness import CaseFailed

    passed: Counter[str] = Counter()
    failed, interrupted = 0, False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # one kind of case gives up its rights
        try:
            for case in _all(arguments, folder):
                try:
                    passed[case().split(":")[0]] += 1
                except CaseFailed as error:
                    failed += 1
                    print(error, flush=True)
        except KeyboardInterrupt:
            print("interrupted: the figures are those of the cases until here")
            interrupted = True
    print(", ".join(f"{name} {count}" for name, count in sorted(passed.items())))
    print(f"{sum(passed.values())} passed, {failed} failed")
    return 130 if interrupted else 1 if failed else 0


def _all(arguments: argparse.Namespace, folder: Path) -> Iterator[Callable[[], str]]:
    """Whole runs first: they are forks of this process, which has then computed nothing yet."""
    from fuzzing.harness import one
    from fuzzing.material import make
    from fuzzing.whole_runs import one_run, prepare

    def wanted(count: int) -> range:
        return range(count) if arguments.only is None else range(arguments.only, arguments.only + 1)

    if arguments.runs:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        (folder / "whole").mkdir()
        reference = prepare(folder / "whole")
        for index in wanted(arguments.runs):
            yield lambda: one_run(reference, index, arguments.seed, folder)  # noqa: B023
    if arguments.cases:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        (folder / "material").mkdir()
        material = make(folder / "material")
        for index in wanted(arguments.cases):
            yield lambda: one(material, index, arguments.seed, folder)  # noqa: B023


if __name__ == "__main__":
    sys.exit(main())
