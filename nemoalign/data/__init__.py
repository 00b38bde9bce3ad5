"""From files of text to batches of token ids: tokenizers, JSONL rows, templates, order, collation.

Start with ``dataset``; it puts ``formats`` (what a row is), ``templates`` and ``chat`` (rows to ids
and loss masks) together. ``sampler`` says which rows a step takes, ``collate`` makes tensors of them.
May import ``archive``, ``config``, ``log`` and ``errors``; torch only in ``collate``, transformers
and sentencepiece only in the modules that ``tokenizer`` picks from.
"""
