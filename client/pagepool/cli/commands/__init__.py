"""The commands of the client: one module each, with the attribute `command`."""
