"""Repair of a store: what can be made again is, what cannot is moved away and named."""
