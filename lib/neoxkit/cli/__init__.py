"""The commands, and what the terminal shows.

Notebooks use nothing of it.
"""
