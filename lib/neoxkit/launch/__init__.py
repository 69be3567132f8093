"""The owner of a training: what it is started with, what is refused, its process."""
