"""Conversation files become a tokenized dataset."""
