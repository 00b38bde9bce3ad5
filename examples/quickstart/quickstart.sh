#!/usr/bin/env bash
# A real model's whole road on this machine: Hugging Face -> .nemo -> LoRA fine-tuning -> Hugging Face -> an answer.
# Run it with `make quickstart`. Downloads and the model are kept in .cache/nemoalign (or $NEMOALIGN_CACHE); what the
# run makes goes to .cache/quickstart and is made anew every time. Fails unless the held-out loss falls enough.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=examples/quickstart
cache=${NEMOALIGN_CACHE:-.cache/nemoalign}
out=.cache/quickstart

. $here/show.sh

need_nemoalign "make quickstart"
rm -rf "$out"
mkdir -p "$out"

run python $here/fetch.py --cache "$cache"
SECONDS=0

run nemoalign convert "$cache/SmolLM2-135M-Instruct" -o $out/smollm2.nemo
run nemoalign inspect $out/smollm2.nemo
run nemoalign sft --ckpt $out/smollm2.nemo --data "$cache/train.jsonl" --val "$cache/val.jsonl" -o $out/run \
    --lora 16 --lora-targets all --precision bf16 --devices 1 \
    --lr 1e-3 --schedule constant --gbs 8 --mbs 2 --max-steps 28
run nemoalign export $out/run/megatron_gpt_sft.nemo --merge -o $out/smollm2-tuned
run python $here/ask.py $out/smollm2-tuned 'What is the capital of France?'
run python $here/held_out.py $out/run/metrics.jsonl "$cache/train.jsonl" "$cache/val.jsonl"

printf '\nDone in %d min %02d s without the downloads. The tuned model is in %s.\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) $out/smollm2-tuned
