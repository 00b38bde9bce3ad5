"""What a model answers to prompts while it learns, and what these answers are worth.

May import ``train`` and everything below. Rows of a rollout are the same on every rank and stay on the CPU.
"""
