"""Datasets of Parquet shards: listing, checking, ordering, reading and measuring them."""
