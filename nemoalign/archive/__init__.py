"""Bytes on disk, lazily: tar archives, torch files, distributed checkpoints and safetensors.

Everything read here may be hostile. Opening reads headers and indexes only; tensors are mapped when
they are asked for, and the mapping goes with the array.
"""
