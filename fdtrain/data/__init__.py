"""Images from shards, in an order that depends on the seed alone."""
