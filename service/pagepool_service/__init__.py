"""pagepool's service: the registry, its store, and the maintenance of it."""
