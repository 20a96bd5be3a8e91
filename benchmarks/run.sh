#!/usr/bin/env bash
# All figures of the README and docs/LOG.md, as JSON files in the folder given (default: runs/benchmarks). Let nothing else run meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-runs/benchmarks}
python=${PYTHON:-python3}
mkdir -p "$out"

bench() {
    local name=$1
    shift
    printf '\n== %s: llmpy bench %s\n' "$name" "$*"
    "$python" -m llmpy bench "$@" --against torch --json >"$out/$name.json"
    "$python" - "$out/$name.json" <<'PYTHON'
import json, sys
from llmpy.bench import report
report.show(json.load(open(sys.argv[1])))
PYTHON
}

bench train-64 train --model d12 -b 4 -t 64 --peer-mode all --rounds 9 --profile
bench train-1024 train --model d12 -b 4 -t 1024 --peer-mode all --rounds 3
bench train-1024-recompute-2 train --model d12 -b 4 -t 1024 -r 2 --rounds 3
bench train-64-bf16 train --model d12 -b 4 -t 64 --precision bf16 --peer-mode all --rounds 9 --profile
bench train-1024-bf16 train --model d12 -b 4 -t 1024 --precision bf16 --peer-mode all --rounds 3 --profile
bench matmul matmul
bench matmul-bf16 matmul --precision bf16
bench attention attention
bench attention-bf16 attention --precision bf16
bench train-llama-15M-bf16 train --model llama:15M -b 8 -t 256 --precision bf16
bench prompt-llama-110M-bf16 decode --model llama:110M --prompt 512 --precision bf16
