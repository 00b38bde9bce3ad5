"""Tensor algebra and the words to describe a model family: pure numpy, no I/O, no process groups.

Start with ``ops`` (fusing and splitting), ``splits`` (how tensor parallelism cuts), ``tensors`` (which
tensors a GPT has, their shapes and cuts), ``names`` (spellings on disk) and ``rules`` (families).
May import ``archive`` (dtype names only), ``config``, ``log`` and ``errors``.
"""
