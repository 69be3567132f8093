"""Base beside tuned, and runs beside each other, in figures.

Notebooks use evaluate.load, examine, look, losses_by_step, save and ask; tasks.load_tasks;
compare_runs.load and notes; rescoring.scores and facts.
"""
