"""The commands, and what the terminal shows.

Notebooks use none of it.
"""
