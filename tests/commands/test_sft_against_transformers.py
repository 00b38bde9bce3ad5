"""Full fine-tuning gives the losses of a plain transformers + torch AdamW loop, step by step."""

import math

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, get_linear_schedule_with_warmup

from tests.commands import tiny

STEPS, ROWS_PER_STEP, LR = 10, 6, 2e-3


def _plain_loop(hf_directory, made: list[dict], *, chat: bool) -> list[float]:
    """Train with nothing but transformers and torch; return the loss of each step."""
    tokenizer = AutoTokenizer.from_pretrained(hf_directory)
    model = LlamaForCausalLM.from_pretrained(hf_directory, dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-8)
    losses = []
    for step in range(STEPS):
        batch = made[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]
        total, count = torch.zeros(()), 0
        for row in batch:
            prompt, answer = _encode(tokenizer, row, chat=chat)
            ids = torch.tensor([prompt + answer])
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(
                logits, ids[0, len(prompt) :], reduction="sum"
            )
            count += len(answer)
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # One warm-up step (a tenth of ten), then a cosine down to a tenth of the rate.
        progress = (step - 1) / (STEPS - 1)
        cosine = LR / 10 + (LR - LR / 10) / 2 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = LR / 2 if step == 0 else cosine
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _encode(tokenizer, row: dict, *, chat: bool) -> tuple[list[int], list[int]]:
    if not chat:
        answer = tokenizer.encode(" " + row["output"], add_special_tokens=False)
        return tokenizer.encode(row["input"], add_special_tokens=False), [*answer, 2]
    messages = tiny.as_messages(row)["messages"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.encode(whole, add_special_tokens=False)
    start = len(tokenizer.encode(prompt, add_special_tokens=False))
    end = len(ids) - ids[::-1].index(
        2
    )  # up to and with <|im_end|>; the newline is not the answer's
    return ids[:start], ids[start:end]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["train", "chat"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_losses_equal_a_plain_transformers_loop(data, tied, workshop, tmp_path) -> None:
    source = tiny.make_llama(tmp_path / "hf", tied=True) if tied else workshop / "hf"
    run = tmp_path / "run"
    tiny.quickly(
        "sft", "--ckpt", source, "--data", workshop / f"{data}.jsonl", "-o", run, "--no-shuffle",
        "--precision", "fp32", "--gbs", ROWS_PER_STEP, "--mbs", 2, "--lr", LR,
        "--max-steps", STEPS,
    )  # fmt: skip
    ours = [entry["loss"] for entry in tiny.read_metrics(run)]
    theirs = _plain_loop(source, tiny.rows(96, seed=1), chat=data == "chat")
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_the_trl_preset_trains_as_transformers_trainer_does(workshop, tmp_path) -> None:
    """AdamW without decay and a linear schedule of transformers, which is what TRL's defaults are."""
    run = tmp_path / "run"
    tiny.quickly(
        "sft", "--ckpt", workshop / "hf", "--data", workshop / "train.jsonl", "-o", run, "--preset",
        "trl", "--precision", "fp32", "--mbs", 4, "--lr", LR, "--max-steps", STEPS,
    )  # fmt: skip
    made, tokenizer = tiny.rows(96, seed=1), AutoTokenizer.from_pretrained(workshop / "hf")
    model = LlamaForCausalLM.from_pretrained(workshop / "hf", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)
    theirs = []
    for step in range(STEPS):
        rows = [_encode(tokenizer, row, chat=False) for row in made[step * 8 : step * 8 + 8]]
        count = sum(len(answer) for _, answer in rows)
        loss = torch.zeros(())
        for prompt, answer in rows:
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(
                logits, torch.tensor(answer), reduction="sum"
            )
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        theirs.append((loss / count).item())
    ours = [entry["loss"] for entry in tiny.read_metrics(run)]
    assert ours == pytest.approx(theirs, abs=1e-5)
