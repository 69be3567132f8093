"""A model in hand: loaded, batched, its loss, its replies, what it costs, shared."""
