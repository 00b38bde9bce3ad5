#!/usr/bin/env bash
# A real model learns from rewards for its own answers: GRPO with LoRA on capitals, judged by a Python function.
# Run it with `make ppo`. The model is kept in .cache/nemoalign (or $NEMOALIGN_CACHE); what the run makes goes to
# .cache/ppo and is made anew every time. Fails unless answers about countries that were never asked got better.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${NEMOALIGN_CACHE:-.cache/nemoalign}
out=.cache/ppo
. examples/quickstart/show.sh

need_nemoalign "make ppo"
rm -rf "$out"
mkdir -p "$out"

run python examples/quickstart/fetch.py --cache "$cache"
SECONDS=0

run python examples/ppo/capitals.py $out
run nemoalign convert "$cache/SmolLM2-135M-Instruct" -o $out/smollm2.nemo
run nemoalign ppo --ckpt $out/smollm2.nemo --reward examples/ppo/capitals.py:right --data $out/capitals-train.jsonl \
    --val $out/capitals-val.jsonl -o $out/run --advantage grpo --group 8 --rollouts 64 --gbs 32 --mbs 8 --seq-len 128 \
    --max-new-tokens 24 --unfinished learn --kl 0 --lora 16 --lora-targets all --precision fp32 --devices 1 --lr 2e-4 \
    --warmup 0 --epochs 100 --max-steps 6 --val-every 3
run python examples/ppo/learned.py $out/run/metrics.jsonl

printf '\nDone in %d min %02d s without the downloads. Curves and sampled answers: %s\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) $out/run/report.html
