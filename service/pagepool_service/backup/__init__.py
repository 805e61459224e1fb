"""Backups of a store: taken while it is written to, incremental, restored and checked."""
