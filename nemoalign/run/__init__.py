"""The composition root: from one merged configuration to one training run on this rank. Start at ``train.py``.

``prepare`` is everything that is known before a process group exists, ``assemble`` builds model, learner,
feeds and loop, ``train`` is the road from start to archive.
"""
