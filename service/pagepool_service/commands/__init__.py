"""Commands of `pagepool` that need the service's packages, found through the entry point group `pagepool.commands`."""
