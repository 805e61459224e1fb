"""Images in files: OCI layouts, OCI archives, docker archives; and copying between them and registries."""

from pagepool.layout.copy import Plan, Watcher, plan_copy, run_copy
from pagepool.layout.formats import (
    FORMATS,
    Format,
    Location,
    choose_format,
    open_sink,
    open_source,
    parse_location,
)
from pagepool.layout.interface import ImageSink, ImageSource, Progress

__all__ = [
    "ImageSource",
    "ImageSink",
    "Progress",
    "open_source",
    "open_sink",
    "Location",
    "parse_location",
    "choose_format",
    "Format",
    "FORMATS",
    "Plan",
    "plan_copy",
    "run_copy",
    "Watcher",
]
