"""Private changes over an image, and what changed as a layer."""

from pagepool.overlay.diff import Change, ChangeKind, Touched, plan_diff
from pagepool.overlay.layertar import iter_layer

__all__ = ["Change", "ChangeKind", "Touched", "plan_diff", "iter_layer"]
