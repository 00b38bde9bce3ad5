"""What a run is: typed settings, where each value came from, and the rules between them.

Start at ``schema.py``. Imports only ``log`` and ``errors``; ``merge.py`` alone imports omegaconf.
"""
