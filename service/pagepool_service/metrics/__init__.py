"""Figures for Prometheus: kept by the processes of the service, put together and served by one more.

Nothing here is imported unless metrics are asked for.
"""
