"""The work of each rank of a training, in torch and DeepSpeed.

Notebooks import nothing from here: `launch` starts it in processes of its own.
"""
