"""Every form a checkpoint is written in, streaming, verified, whole or not at all: a file a form."""
