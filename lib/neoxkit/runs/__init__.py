"""One folder a run: its files, events, lock, checkpoints and card, and whether it may be resumed.

Notebooks use folder.finished_facts, card.rows and resuming.replaced.
"""
