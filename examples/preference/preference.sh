#!/usr/bin/env bash
# A real model learns from real preferences: DPO from pairs, KTO from labelled answers, both with LoRA and held-out rows.
# Run it with `make preference`. Downloads and the model are kept in .cache/nemoalign (or $NEMOALIGN_CACHE); what the
# runs make goes to .cache/preference and is made anew every time. Fails unless what is held out got better.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${NEMOALIGN_CACHE:-.cache/nemoalign}
out=.cache/preference
. examples/quickstart/show.sh

need_nemoalign "make preference"
rm -rf "$out"
mkdir -p "$out"

run python examples/quickstart/fetch.py --cache "$cache" --preferences
SECONDS=0

shared="--lora 16 --lora-targets all --precision fp32 --devices 1 --seq-len 512 --schedule constant --beta 0.1 --ref-cache"
run nemoalign convert "$cache/SmolLM2-135M-Instruct" -o $out/smollm2.nemo
run nemoalign dpo --ckpt $out/smollm2.nemo --data "$cache/pairs-train.jsonl" --val "$cache/pairs-val.jsonl" \
    -o $out/dpo $shared --lr 3e-4 --gbs 8 --mbs 2 --epochs 3 --max-steps 8 --val-every 4
run nemoalign kto --ckpt $out/smollm2.nemo --data "$cache/feedback-train.jsonl" --val "$cache/feedback-val.jsonl" \
    -o $out/kto $shared --lr 3e-4 --gbs 16 --mbs 4 --epochs 3 --max-steps 8 --val-every 4
run python examples/preference/held_out.py $out/dpo/metrics.jsonl
run python examples/preference/held_out.py $out/kto/metrics.jsonl

printf '\nDone in %d min %02d s without the downloads. Curves and answers: %s and %s\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) $out/dpo/report.html $out/kto/report.html
