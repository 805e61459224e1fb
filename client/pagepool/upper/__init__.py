"""Upper directories of the kernel's overlays over images: what is in them, and whether it may be there."""

from pagepool.upper.check import check_upper
from pagepool.upper.filesystem import UpperFileSystem
from pagepool.upper.make import make_upper
from pagepool.upper.scan import UpperNode, scan_upper

__all__ = ["make_upper", "check_upper", "scan_upper", "UpperNode", "UpperFileSystem"]
