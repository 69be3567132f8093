"""A model: loading it, its batches, loss, replies and memory, and sharing it.

Notebooks use loading.load_tokenizer, at and portable, and sharing.share.
"""
