"""Traces for OpenTelemetry, where somebody asks for them. Nothing here is loaded otherwise, but `notes`.

| module | what it owns |
|---|---|
| `exporting` | a process's tracer, and how spans leave it; the only one that imports OpenTelemetry |
| `notes` | which trace pushed a blob, for the process that reads it later |
"""
