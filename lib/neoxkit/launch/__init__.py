"""Starting a training: its arguments, the checks before it, its process.

Notebooks use process.start; command.complete and deepspeed_command; trials.probe; lr_finder.find
and try_suggestion.
"""
