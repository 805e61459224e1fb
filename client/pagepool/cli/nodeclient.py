"""The node that commands speak to."""

from __future__ import annotations

from pagepool.cli.state import current
from pagepool.node.client import NodeClient
from pagepool.node.places import DEFAULT_RUN, DEFAULT_STATE, NodePlaces


def node_client() -> NodeClient:
    """The node that the options of the command that is running name."""
    found = current()
    return NodeClient(NodePlaces(found.node_state or DEFAULT_STATE, found.node_run or DEFAULT_RUN))
