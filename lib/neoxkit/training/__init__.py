"""What each rank of a training does, in torch and DeepSpeed.

Notebooks use nothing of it: `launch` starts it in processes of its own.
"""
