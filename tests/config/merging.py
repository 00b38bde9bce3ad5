"""One way to merge in tests: layers as keyword arguments, files written to a temporary folder."""

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run

CHECKPOINT = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "encoder_seq_length": 256,
    "position_embedding_type": "rope",
    "optim": {"lr": 9.0, "sched": {"min_lr": 8.0}},
    "global_batch_size": 7,
    "micro_batch_size": 7,
    "precision": 32,
    "hidden_dropout": 0.5,
    "tensor_model_parallel_size": 8,
    "tokenizer": {"library": "huggingface", "type": None, "model": "nemo:abc_tokenizer.json"},
    "data": {"train_ds": {"file_path": "old.jsonl", "prompt_template": "Q {q} A {a}"}},
    "something_unread": {"kept": [1, 2]},
}
CKPT = {"pretrained_checkpoint.restore_from_path": "m.nemo"}


def merge(tmp_path, files=(), *, checkpoint=None, flags=None, sets=(), environ=None):
    """Merge with ``files`` written as --config files; ``checkpoint`` is a model_config or None."""
    paths = []
    for number, text in enumerate(files):
        path = tmp_path / f"file{number}.yaml"
        path.write_text(text)
        paths.append(path)
    known = dict(flags or {})
    if checkpoint is not None:
        known = {**CKPT, **known}
    return merge_run(
        "sft",
        Said(flags=known, sets=sets, configs=paths, environ=environ or {}),
        None if checkpoint is None else lambda path: checkpoint,
    )
