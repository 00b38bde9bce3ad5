"""Moving weights: recognise a source, read it as one mapping of named global tensors, write it elsewhere.

Start with ``open`` (``open_source``), then ``convert``, ``export`` and ``inspect``. Nothing here imports
torch or megatron-core, and nothing builds a model. May import ``families``, ``weights``, ``archive``,
``config``, ``log`` and ``errors``.
"""
