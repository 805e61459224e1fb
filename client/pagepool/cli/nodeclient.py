"""The node that commands speak to."""

from __future__ import annotations

import os

from pagepool.cli.state import current
from pagepool.errors import DeniedError
from pagepool.node.client import NodeClient
from pagepool.node.places import DEFAULT_RUN, DEFAULT_STATE, NodePlaces


def node_client() -> NodeClient:
    """The node that the options of the command that is running name."""
    found = current()
    return NodeClient(NodePlaces(found.node_state or DEFAULT_STATE, found.node_run or DEFAULT_RUN))


def may_ask(node: NodeClient) -> bool:
    """Whether this user can look into the node's directory: nobody but root can, as credentials are in it."""
    run = node.places.run
    return os.access(run, os.R_OK | os.X_OK) or not run.exists()


def asked_node() -> NodeClient:
    """The node, to ask it something.

    Raises:
        DeniedError: whether it runs or not, it is not for this user to know.
    """
    node = node_client()
    if not may_ask(node):
        raise DeniedError(f"the node in {node.places.run} is root's: only root can ask it")
    return node
