"""How learning proceeds, whatever is learned.

``loop.py`` keeps the books (steps, consumed samples, validation, saving), ``learner.py`` knows
forward, backward and the optimizer, ``algorithm.py`` is what an algorithm must provide. May import
``model``, ``data``, ``checkpoint`` and everything below. Start at ``loop.py``.
"""
