"""Check, time and compare the GPU's kernels on this machine's card, within ten minutes.

python -m benchmarks.gpu                        everything
python -m benchmarks.gpu --quick                GPT-2 124M alone, about three minutes
python -m benchmarks.gpu --only checks          one part: checks, kernels, peers, steps, losses, generation
python -m benchmarks.gpu --json gpu.json        the measurements in a file, too
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # python benchmarks/gpu
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu import card, plan, report, sections, targets
from llmpy.bench.machine import version_of
from llmpy.errors import UserError
from llmpy.kernels import gpu_requirements
from llmpy.utils.atomic_files import write_text_atomic


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="GPT-2 124M alone, about three minutes")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(plan.SECTIONS)}")
    parser.add_argument("--gemm", choices=["cublas", "triton", "auto"], default="cublas", help="of the training steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    only = args.only.split(",") if args.only else list(plan.SECTIONS)
    if unknown := sorted(set(only) - set(plan.SECTIONS)):
        raise UserError(f"--only {','.join(unknown)}: there is no such part: use {', '.join(plan.SECTIONS)}")
    if gpu_requirements.is_interpreted() or (lacks := gpu_requirements.missing()) is not None:
        what = "TRITON_INTERPRET=1 is set" if gpu_requirements.is_interpreted() else f"{lacks.name} is missing"
        raise UserError(f"needs an NVIDIA GPU; llmpy doctor says what is missing ({what})")
    torch = version_of("torch") is not None
    if not torch:
        print("PyTorch is not installed: nothing is compared with it", file=sys.stderr)
    todo = sections.Sections(plan.QUICK if args.quick else plan.FULL, only, args.gemm, torch)
    todo.result["card"] = card.describe()
    result = todo.run(lambda name: getattr(report, name)(todo.result))
    result["targets"] = targets.verdicts(result)
    report.targets(result["targets"], result["stopped"])
    if args.json:
        write_text_atomic(args.json, json.dumps({"benchmark": "gpu", **result}, indent=1) + "\n")
    return 0 if all(check["passed"] for check in result.get("checks", [])) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"benchmarks.gpu: error: {error}")
