"""The ways in which a client of a load test reads and writes images: one interface, `Access`, in four modes."""

from pagepool.load.access.interface import MODES, Access, Opened, Writable
from pagepool.load.access.opening import open_access

__all__ = ["MODES", "Access", "Opened", "Writable", "open_access"]
