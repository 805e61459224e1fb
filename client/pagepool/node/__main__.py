"""The processes of a node."""

import sys

from pagepool.node.start import main

sys.exit(main(sys.argv[1:]))
