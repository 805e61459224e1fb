"""The store: LMDB records of extents, frames, objects, layers, blobs, and the registry's catalogue."""
