"""The owner of a training: what it is started with, what is refused, its process.

Notebooks use process.start; command.complete and deepspeed_command; trials.probe; lr_finder.find
and try_suggestion.
"""
