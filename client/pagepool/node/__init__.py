"""The node: what keeps mounts, their pool and what is known of them, on one machine."""
