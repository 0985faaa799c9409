"""The network: shared encoder, pooling, heads."""
