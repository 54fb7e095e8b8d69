"""Score checkpoints: zero-shot classification, retrieval, linear probe. Works with any open_clip checkpoint."""
