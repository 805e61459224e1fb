"""``pagepool demo``: a whole round through a real service, on files of this machine."""
