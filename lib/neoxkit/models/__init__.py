"""A model in hand: loaded, batched, its loss, its replies, what it costs, shared.

Notebooks use loading.load_tokenizer and portable, and sharing.share.
"""
