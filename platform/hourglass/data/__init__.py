"""Shards: listing, verifying, planning, reading and measuring them."""
