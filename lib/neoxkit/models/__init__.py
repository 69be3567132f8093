"""A model: loading it, its batches, loss, replies and memory, and sharing it.

Notebooks use loading.load_tokenizer, model_names.at and portable.
"""
