"""The node: what mounts images by the kernel on this machine, and fetches what containers open."""
