"""HTTP clients: any OCI registry, and pagepool's own service."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.transport.addresses import is_loopback
    from pagepool.transport.credentials import Credentials
    from pagepool.transport.http import Session
    from pagepool.transport.images import RegistrySink, RegistrySource
    from pagepool.transport.leases import Lease, LeaseClient
    from pagepool.transport.profiles import ListedProfile, Profile, ProfileClient
    from pagepool.transport.registry import Pulled, RegistryClient
    from pagepool.transport.retry import RetryPolicy
    from pagepool.transport.service import FileEntry, ImageState, LayerState, ServiceClient
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "addresses": "is_loopback",
            "credentials": "Credentials",
            "http": "Session",
            "images": "RegistrySink RegistrySource",
            "leases": "Lease LeaseClient",
            "profiles": "ListedProfile Profile ProfileClient",
            "registry": "Pulled RegistryClient",
            "retry": "RetryPolicy",
            "service": "FileEntry ImageState LayerState ServiceClient",
        },
    )

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
