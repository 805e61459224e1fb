"""Measuring the service on real images, beside Debian's docker-registry. Nothing of the service imports this."""
