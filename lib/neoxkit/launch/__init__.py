"""Starting a training: its command, checks and process.

Notebooks use process.start; command.complete, same_weights and shell_command.
"""
