"""Hostile input: spoil files in many ways, and see that every command ends with a clear line and nothing half-written.

    scripts/fuzz.py --cases 2000 --seed 0

The same seed gives the same cases. Most run in this process, whose memory is limited; one in a hundred runs in a
process of its own, where llama.cpp is reached or the program is killed. Prints `N passed, N failed`; exit code 1 if
any failed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

MEMORY = 6 << 30  # bytes of address space


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case alone")
    arguments = parser.parse_args()
    from fuzzing.harness import CaseFailed, one
    from fuzzing.material import make

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    passed: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "material").mkdir()
        material = make(folder / "material")
        for index in range(arguments.cases) if arguments.only is None else (arguments.only,):
            try:
                described = one(material, index, arguments.seed, folder)
                passed[described.split(":")[0]] += 1
            except CaseFailed as error:
                failed += 1
                print(error, flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(passed.items())))
    print(f"{sum(passed.values())} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
