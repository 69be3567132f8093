"""One folder a run: its files, events, lock, checkpoints and card, and whether it may go on."""
