"""HTTP clients: any OCI registry, and pagepool's own service."""

from pagepool.transport.auth import Credentials
from pagepool.transport.http import Session, is_loopback
from pagepool.transport.images import RegistrySink, RegistrySource
from pagepool.transport.leases import Lease, LeaseClient
from pagepool.transport.profiles import ListedProfile, Profile, ProfileClient
from pagepool.transport.registry import Pulled, RegistryClient
from pagepool.transport.retry import RetryPolicy
from pagepool.transport.service import FileEntry, ImageState, LayerState, ServiceClient

__all__ = [
    "Session",
    "Credentials",
    "RetryPolicy",
    "RegistryClient",
    "Pulled",
    "RegistrySource",
    "RegistrySink",
    "ServiceClient",
    "ImageState",
    "LayerState",
    "FileEntry",
    "LeaseClient",
    "Lease",
    "ProfileClient",
    "Profile",
    "ListedProfile",
    "is_loopback",
]
