"""Every form a checkpoint may have on disk, opened as one mapping of named tensors: a file a form."""
