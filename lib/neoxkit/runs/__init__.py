"""One folder per run: its files, events, lock, checkpoints and card, and checks for resuming.

Notebooks use folder.finished_facts, card.rows and resuming.replaced.
"""
