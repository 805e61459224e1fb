"""A snapshotter for containerd: containers start on kernel mounts of a node, and nothing is unpacked.

`snapshotter` has the operations, `catalogue` what is written down, `claims` which layers are those of an image that can
be mounted, `imagemounts` the mounts, `filters` containerd's language of conditions, `serving` and `messages` its gRPC.
Only the last two need what the extra ``containerd`` installs.
"""
