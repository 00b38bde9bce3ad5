"""What is learned: one idea, one file. An algorithm never sees ranks, files or optimizers.

May import ``train`` and everything below. Start at ``sft.py``, the shortest.
"""
