"""A client of the Container Runtime Interface, runtime.v1: what the kubelet says to containerd, as far as we need.

The messages are made out of a table of fields, there is nothing to generate. The numbers are those of api.proto of
k8s.io/cri-api v0.26.0, which never change; a field that is not in the table is not sent, and is passed over in answers.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pagepool_service.bench.subjects import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RUNNING, EXITED = 1, 2
"""States of containers."""

_PACKAGE = "runtime.v1"
_TIMEOUT_S = 120.0
_NODE = 2  # a pod's network is the machine's

# By message, of each field its number, type and name. A type with a star is repeated; a map is of strings to strings.
_MESSAGES = {
    "AuthConfig": "1 string username, 2 string password",
    "Container": "1 string id, 2 string pod_sandbox_id, 6 int32 state",
    "ContainerConfig": "1 ContainerMetadata metadata, 2 ImageSpec image, 3 string* command, 4 string* args, "
    "6 KeyValue* envs, 7 Mount* mounts, 11 string log_path, 15 LinuxContainerConfig linux",
    "ContainerMetadata": "1 string name, 2 uint32 attempt",
    "ContainerStats": "4 FilesystemUsage writable_layer",
    "ContainerStatsRequest": "1 string container_id",
    "ContainerStatsResponse": "1 ContainerStats stats",
    "ContainerStatus": "1 string id, 3 int32 state, 7 int32 exit_code, 9 string image_ref, 10 string reason, "
    "11 string message",
    "ContainerStatusRequest": "1 string container_id, 2 bool verbose",
    "ContainerStatusResponse": "1 ContainerStatus status, 2 map info",
    "CreateContainerRequest": "1 string pod_sandbox_id, 2 ContainerConfig config, 3 PodSandboxConfig sandbox_config",
    "CreateContainerResponse": "1 string container_id",
    "ExecSyncRequest": "1 string container_id, 2 string* cmd, 3 int64 timeout",
    "ExecSyncResponse": "1 bytes stdout, 2 bytes stderr, 3 int32 exit_code",
    "FilesystemIdentifier": "1 string mountpoint",
    "FilesystemUsage": "1 int64 timestamp, 2 FilesystemIdentifier fs_id, 3 UInt64Value used_bytes, "
    "4 UInt64Value inodes_used",
    "Image": "1 string id, 2 string* repo_tags, 3 string* repo_digests, 4 uint64 size",
    "ImageFsInfoRequest": "",
    "ImageFsInfoResponse": "1 FilesystemUsage* image_filesystems",
    "ImageSpec": "1 string image, 2 map annotations",
    "KeyValue": "1 string key, 2 string value",
    "LinuxContainerConfig": "2 LinuxContainerSecurityContext security_context",
    "LinuxContainerSecurityContext": "3 NamespaceOption namespace_options, 7 bool readonly_rootfs",
    "LinuxPodSandboxConfig": "1 string cgroup_parent, 2 LinuxSandboxSecurityContext security_context",
    "LinuxSandboxSecurityContext": "1 NamespaceOption namespace_options",
    "ListContainersRequest": "",
    "ListContainersResponse": "1 Container* containers",
    "ListImagesRequest": "",
    "ListImagesResponse": "1 Image* images",
    "ListPodSandboxRequest": "",
    "ListPodSandboxResponse": "1 PodSandbox* items",
    "Mount": "1 string container_path, 2 string host_path, 3 bool readonly",
    "NamespaceOption": "1 int32 network, 2 int32 pid, 3 int32 ipc",
    "PodSandbox": "1 string id, 2 PodSandboxMetadata metadata, 3 int32 state",
    "PodSandboxConfig": "1 PodSandboxMetadata metadata, 3 string log_directory, 6 map labels, 7 map annotations, "
    "8 LinuxPodSandboxConfig linux",
    "PodSandboxMetadata": "1 string name, 2 string uid, 3 string namespace, 4 uint32 attempt",
    "PullImageRequest": "1 ImageSpec image, 2 AuthConfig auth, 3 PodSandboxConfig sandbox_config",
    "PullImageResponse": "1 string image_ref",
    "RemoveContainerRequest": "1 string container_id",
    "RemoveContainerResponse": "",
    "RemoveImageRequest": "1 ImageSpec image",
    "RemoveImageResponse": "",
    "RemovePodSandboxRequest": "1 string pod_sandbox_id",
    "RemovePodSandboxResponse": "",
    "RunPodSandboxRequest": "1 PodSandboxConfig config",
    "RunPodSandboxResponse": "1 string pod_sandbox_id",
    "StartContainerRequest": "1 string container_id",
    "StartContainerResponse": "",
    "StopContainerRequest": "1 string container_id, 2 int64 timeout",
    "StopContainerResponse": "",
    "StopPodSandboxRequest": "1 string pod_sandbox_id",
    "StopPodSandboxResponse": "",
    "UInt64Value": "1 uint64 value",
    "VersionRequest": "",
    "VersionResponse": "2 string runtime_name, 3 string runtime_version, 4 string runtime_api_version",
}

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "int32": _FIELD.TYPE_INT32,  # enumerations, too: they are the same on the wire
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for words in map(str.split, filter(None, fields.split(", "))):
            _add_field(message, *words)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


def _add_field(message: Any, number: str, kind: str, name: str) -> None:
    many = kind == "map" or kind.endswith("*")
    kind = kind.rstrip("*")
    added = message.field.add(name=name, number=int(number))
    added.label = _FIELD.LABEL_REPEATED if many else _FIELD.LABEL_OPTIONAL
    if kind in _TYPES:
        added.type = _TYPES[kind]
        return
    added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    if kind == "map":
        # Protobuf wants this very name: that of the field in capitals and without underscores, and Entry.
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "1", "string", "key")
        _add_field(entry, "2", "string", "value")
        added.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


_CLASSES = _classes()


class CriError(BenchError):
    """A call failed.

    Args:
        code: gRPC's name of the kind of error: ``NOT_FOUND``, for one.
        said: what the runtime said.
    """

    def __init__(self, code: str, said: str) -> None:
        super().__init__(f"{code}: {said}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that was begun: its ID, and what it was asked for with, which each of its containers is told again."""

    id: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command in a container printed, and its exit status."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass(slots=True)
class Cri:
    """Calls of a runtime. Every one blocks until it is done, and raises CriError if it fails.

    Args:
        channel: to the runtime.
        log_directory: for what pods print.
        cgroup_parent: of pods' control groups.
    """

    channel: Any
    log_directory: Path
    cgroup_parent: str

    def version(self) -> str:
        """The runtime's name and version."""
        answer = self._runtime("Version")
        return f"{answer.runtime_name} {answer.runtime_version}"

    def is_ready(self) -> bool:
        """Whether it takes calls: it listens before it can do anything."""
        try:
            self.version()
        except CriError:
            return False
        return True

    def pull(self, image: str, login: tuple[str, str] | None = None) -> str:
        """Pull an image, with a user's name and password if there are any. Returns the ID of the image."""
        auth = {} if login is None else {"auth": {"username": login[0], "password": login[1]}}
        return str(self._images("PullImage", image={"image": image}, **auth).image_ref)

    def images(self) -> dict[str, Any]:
        """Images that are there, by ID: ``repo_tags``, ``repo_digests``, ``size`` in bytes."""
        return {one.id: one for one in self._images("ListImages").images}

    def remove_image(self, image: str) -> None:
        """Remove an image by name or ID, with all of its names. None is no error."""
        self._images("RemoveImage", image={"image": image})

    def image_usage(self) -> tuple[str, int, int]:
        """What images and containers take: the directory, bytes and inodes. The runtime counts now and then."""
        (found,) = self._images("ImageFsInfo").image_filesystems
        return found.fs_id.mountpoint, found.used_bytes.value, found.inodes_used.value

    def run_pod(self, name: str) -> Pod:
        """Begin a pod with the network of the machine; the image of its sandbox is pulled if it is not there."""
        config = {
            "metadata": {"name": name, "uid": str(uuid.uuid4()), "namespace": "default"},
            "log_directory": str(self.log_directory / name),
            "linux": {
                "cgroup_parent": self.cgroup_parent,
                "security_context": {"namespace_options": {"network": _NODE}},
            },
        }
        return Pod(str(self._runtime("RunPodSandbox", config=config).pod_sandbox_id), config)

    def pods(self) -> list[str]:
        """The IDs of all pods, stopped ones too."""
        return [one.id for one in self._runtime("ListPodSandbox").items]

    def stop_pod(self, pod: Pod) -> None:
        """Stop a pod with its containers. Stopped already is no error."""
        self._runtime("StopPodSandbox", pod_sandbox_id=pod.id)

    def remove_pod(self, pod: Pod) -> None:
        """Stop and remove a pod with its containers. None is no error."""
        self._runtime("RemovePodSandbox", pod_sandbox_id=pod.id)

    def create(self, pod: Pod, image: str, *command: str, readonly: bool = False, name: str = "") -> str:
        """Make a container of an image that was pulled. Returns its ID.

        Args:
            pod: where.
            image: by name or ID.
            command: what to run, in the place of what the image says.
            readonly: whether its root file system is.
            name: unique in the pod; made up without it.
        """
        name = name or f"c{uuid.uuid4().hex[:8]}"
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "log_path": f"{name}.log",
            "linux": {
                "security_context": {"namespace_options": {"network": _NODE}, "readonly_rootfs": readonly},
            },
        }
        answer = self._runtime("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(answer.container_id)

    def start(self, container: str) -> None:
        """Start a container that was made."""
        self._runtime("StartContainer", container_id=container)

    def run(self, pod: Pod, image: str, *command: str) -> str:
        """Make and start a container, as `create` does. Returns its ID."""
        container = self.create(pod, image, *command)
        self.start(container)
        return container

    def exec(self, container: str, *command: str, timeout_s: int = 60) -> Output:
        """Run a command in a container that is running, to its end."""
        answer = self._runtime("ExecSync", container_id=container, cmd=command, timeout=timeout_s)
        return Output(answer.stdout, answer.stderr, answer.exit_code)

    def status(self, container: str) -> Any:
        """A container's ``state``, ``exit_code``, ``reason``, ``message`` and ``image_ref``."""
        return self._runtime("ContainerStatus", container_id=container).status

    def usage(self, container: str) -> tuple[int, int]:
        """What a container has written: bytes and inodes. The runtime counts now and then."""
        written = self._runtime("ContainerStats", container_id=container).stats.writable_layer
        return written.used_bytes.value, written.inodes_used.value

    def containers(self) -> list[str]:
        """The IDs of all containers, stopped ones too."""
        return [one.id for one in self._runtime("ListContainers").containers]

    def stop(self, container: str, timeout_s: int = 0) -> None:
        """Ask a container to end, and kill it after that time, in seconds. Stopped already is no error."""
        self._runtime("StopContainer", container_id=container, timeout=timeout_s)

    def remove(self, container: str) -> None:
        """Stop and remove a container. None is no error."""
        self._runtime("RemoveContainer", container_id=container)

    def _runtime(self, method: str, **fields: Any) -> Any:
        return self._call("RuntimeService", method, fields)

    def _images(self, method: str, **fields: Any) -> Any:
        return self._call("ImageService", method, fields)

    def _call(self, service: str, method: str, fields: Mapping[str, Any]) -> Any:
        request, answer = _CLASSES[f"{method}Request"], _CLASSES[f"{method}Response"]
        call = self.channel.unary_unary(
            f"/{_PACKAGE}.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return call(request(**fields), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CriError(error.code().name, error.details() or "") from None


@contextmanager
def connected(socket: Path, log_directory: Path, cgroup_parent: str) -> Iterator[Cri]:
    """A client of the runtime that listens there, for the length of a block."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        yield Cri(channel, log_directory, cgroup_parent)
