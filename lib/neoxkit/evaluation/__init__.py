"""Compare base and tuned, and runs with each other, in numbers.

Notebooks use evaluate.load_side, examine, look, losses_by_step, save and ask; tasks.load_tasks;
compare_runs.load_runs and notes; rescoring.scores and facts.
"""
