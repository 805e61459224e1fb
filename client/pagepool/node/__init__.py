"""The node side of kernel mounts: what owns the pool, answers misses, and outlives the death of its processes."""
