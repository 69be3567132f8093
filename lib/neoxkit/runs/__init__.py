"""One folder per run: its files, events, lock, checkpoints and card, and checks for resuming.

Notebooks use resuming.replaced.
"""
