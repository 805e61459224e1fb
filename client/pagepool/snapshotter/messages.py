"""The messages of containerd.services.snapshots.v1, made out of a table: there is nothing to generate.

Source: api/services/snapshots/v1/snapshots.proto and api/types/mount.proto of containerd, which keeps them as they are.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, field_mask_pb2, message_factory, timestamp_pb2

PACKAGE: Final = "containerd.services.snapshots.v1"
SERVICE: Final = f"{PACKAGE}.Snapshots"

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "string": _FIELD.TYPE_STRING,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
}
_WELL_KNOWN: Final = (timestamp_pb2, field_mask_pb2)
_TIME, _MASK = ".google.protobuf.Timestamp", ".google.protobuf.FieldMask"
_MOUNT: Final = "[.containerd.types.Mount]"
_LABELS: Final = "labels"  # a map of strings
_KEY: Final = {1: ("snapshotter", "string"), 2: ("key", "string")}

# By message: of each field, by its number, the name and the type; in brackets where it is repeated.
_TYPES_FILE: Final = {
    "Mount": {1: ("type", "string"), 2: ("source", "string"), 3: ("target", "string"), 4: ("options", "[string]")}
}
_SNAPSHOTS_FILE: Final = {
    "PrepareSnapshotRequest": {**_KEY, 3: ("parent", "string"), 4: ("labels", _LABELS)},
    "PrepareSnapshotResponse": {1: ("mounts", _MOUNT)},
    "ViewSnapshotRequest": {**_KEY, 3: ("parent", "string"), 4: ("labels", _LABELS)},
    "ViewSnapshotResponse": {1: ("mounts", _MOUNT)},
    "MountsRequest": _KEY,
    "MountsResponse": {1: ("mounts", _MOUNT)},
    "RemoveSnapshotRequest": _KEY,
    "CommitSnapshotRequest": {
        1: ("snapshotter", "string"),
        2: ("name", "string"),
        3: ("key", "string"),
        4: ("labels", _LABELS),
    },
    "StatSnapshotRequest": _KEY,
    "Info": {
        1: ("name", "string"),
        2: ("parent", "string"),
        3: ("kind", "int32"),  # an enumeration there, which is the same on the wire
        4: ("created_at", _TIME),
        5: ("updated_at", _TIME),
        6: ("labels", _LABELS),
    },
    "StatSnapshotResponse": {1: ("info", f".{PACKAGE}.Info")},
    "UpdateSnapshotRequest": {1: ("snapshotter", "string"), 2: ("info", f".{PACKAGE}.Info"), 3: ("update_mask", _MASK)},
    "UpdateSnapshotResponse": {1: ("info", f".{PACKAGE}.Info")},
    "ListSnapshotsRequest": {1: ("snapshotter", "string"), 2: ("filters", "[string]")},
    "ListSnapshotsResponse": {1: ("info", f"[.{PACKAGE}.Info]")},
    "UsageRequest": _KEY,
    "UsageResponse": {1: ("size", "int64"), 2: ("inodes", "int64")},
    "CleanupRequest": {1: ("snapshotter", "string")},
}


def _describe(name: str, package: str, messages: dict[str, dict[int, tuple[str, str]]], *needs: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=needs)
    for title, fields in messages.items():
        message = file.message_type.add(name=title)
        for number, (field, kind) in fields.items():
            repeated = kind.startswith("[") or kind == _LABELS
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if kind == _LABELS:
                entry = message.nested_type.add(name="LabelsEntry")
                entry.options.map_entry = True
                for part, name_of_part in enumerate(("key", "value"), 1):
                    entry.field.add(
                        name=name_of_part, number=part, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING
                    )
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{package}.{title}.LabelsEntry"
            elif (bare := kind.strip("[]")) in _TYPES:
                added.type = _TYPES[bare]
            else:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, bare
    return file


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()  # our own: another program's messages of these names are not in the way
    for module in _WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(_describe("containerd/types/mount.proto", "containerd.types", _TYPES_FILE))
    needs = ("containerd/types/mount.proto", *(module.DESCRIPTOR.name for module in _WELL_KNOWN))
    pool.Add(_describe("containerd/snapshots.proto", PACKAGE, _SNAPSHOTS_FILE, *needs))
    return {
        title: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{title}"))
        for title in _SNAPSHOTS_FILE
    }


MESSAGES: Final = _classes()
"""Classes of messages, by name."""
EMPTY: Final = empty_pb2.Empty
