"""NVIDIA NeMo checkpoints through their whole life: convert, reshard, inspect, align, export."""

__version__ = "0.1.0"
