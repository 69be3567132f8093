"""Compare base and tuned, and runs with each other, in numbers.

Notebooks use evaluate.prepare; compare_runs.choose and notes; rescoring.scores.
"""
