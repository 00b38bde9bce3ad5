#!/usr/bin/env bash
# All benchmarks of a machine without a GPU. TRL goes into an environment of its own, .cache/bench/venv.
# Usage: bench.sh [PYTHON]   (or: make bench)
set -euo pipefail
cd "$(dirname "$0")/.."

peer=.cache/bench/venv
if [ ! -x $peer/bin/trl ]; then
    "${1:-python3}" -m venv $peer
    $peer/bin/python -m pip install --quiet -c constraints.txt torch
    $peer/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/requirements.txt
fi

python examples/quickstart/fetch.py --preferences
python benchmarks/sft_speed.py --name lora_fp32 --lora 16 --precision fp32
python benchmarks/sft_speed.py --name full_fp32 --lora 0 --precision fp32
packed="--packing 512 --lora 16 --mbs 2 --peer-mbs 4 --no-val"
python benchmarks/sft_speed.py --name packed_fp32 --precision fp32 $packed --rounds 2
# TRL's bf16 runs at about 4 tokens/s on a CPU without bf16 products: few steps of four rows.
python benchmarks/sft_speed.py --name packed_bf16 --precision bf16 $packed --rounds 1 --steps 2 --gbs 4
for kind in dpo kto; do
    python benchmarks/preference_speed.py $kind --name ${kind}_fp32 --rounds 2
done
python benchmarks/preference_speed.py dpo --name dpo_bf16 --precision bf16 --rounds 1 --steps 2 --gbs 2
python benchmarks/preference_speed.py kto --name kto_bf16 --precision bf16 --rounds 1 --steps 2 --gbs 4
python benchmarks/generation_speed.py
for kind in grpo rloo; do
    python benchmarks/ppo_speed.py $kind --name ${kind}_fp32 --rounds 2
done
python benchmarks/io_speed.py --name smollm2 --model "${NEMOALIGN_CACHE:-$PWD/.cache/nemoalign}/SmolLM2-135M-Instruct" --tp 3
python benchmarks/io_speed.py --name 4gb --gigabytes 4
python benchmarks/big_archive.py --gigabytes 20
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    python benchmarks/gpu_sft.py
fi
