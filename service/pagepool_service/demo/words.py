"""What the demo tells a newcomer: before, after, and what to try next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pagepool.cli.output import human_size
from pagepool.samples import Made
from pagepool_service.demo.reading import Reading
from pagepool_service.demo.report import Report


def opening(given: int) -> str:
    """What is going to happen."""
    if given:
        images = "1 image" if given == 1 else f"{given} images"
        return f"Taking {images} through a real registry and back.\n"
    return "Taking two images of this machine's own files through a real registry and back.\n"


def explanation(report: Report, made: tuple[Made, Made] | None) -> str:
    """What the figures mean."""
    parts = []
    if made:
        parts.append(_two_versions(report, made))
    elif len(report.images) > 1:
        parts.append(_several(report))
    if opaque := report.stored.get("opaque", 0):
        copies = human_size(opaque)
        whole, here = human_size(report.total.pushed_bytes), human_size(report.total.stored_bytes)
        parts.append(
            "A compressed layer is handed back bit for bit, so the store keeps it beside its files:\n"
            f"the {copies} of exact copies above, counted in STORED. A registry of whole blobs would\n"
            f"take {whole} for what takes {here} here. Layers that docker, podman, buildah or skopeo\n"
            "compressed can be made again instead: `pagepool serve --rebuild-compressed`. A plain layer has\n"
            "no copy: it is rebuilt from its recipe at each pull."
        )
    if report.reading:
        parts.append(_reading(report.reading))
    parts.append(f"All of it took {report.seconds:.1f} s, on {human_size(report.total.logical_bytes)} of plain layers.")
    return "\n" + "\n\n".join(parts)


def _two_versions(report: Report, made: tuple[Made, Made]) -> str:
    first, second = report.images
    share = _percent(second.unique_bytes - second.new_bytes, second.unique_bytes)
    same, new = human_size(report.same_blob_bytes), human_size(second.new_bytes)
    return (
        f"{second.name} is {first.name} as a later release would be: {made[1].changed} of its {made[1].files} files\n"
        f"changed, and two of its three layers were packed anew. Only one layer, {same}, is the same blob in\n"
        f"both: that is what a store of whole blobs can share. Here {share} of the file content was there already;\n"
        f"{second.name} brought {new} of new content."
    )


def _reading(found: Reading) -> str:
    logical, unique = human_size(found.logical_bytes), human_size(found.unique_bytes)
    many = "the image" if found.images == 1 else f"{found.images} images"
    return (
        f"Read by the library, the {found.files} files of {many} are {logical}, and {unique} in the pool that all\n"
        f"programs map: each content is in memory once. An overlay with one changed block takes "
        f"{human_size(found.overlay_bytes)};\npushed, it is {found.committed}.\n\n{_mounted(found)}"
    )


def _mounted(found: Reading) -> str:
    if found.kernel is None:
        how = "It was mounted by FUSE, too, and listed." if found.mounted else f"Not mounted: {found.not_mounted}"
        return f"{how}\nNot mounted by the kernel: {found.not_kernel}"
    shown, size = found.kernel, human_size(found.kernel.bytes)
    ran = f"\n{shown.program} ran from it: {shown.said[:60]}." if shown.program else ""
    return (
        f"Mounted by the kernel ({shown.backend}), in {1000 * shown.mount_s:.0f} ms. All {shown.files} files,\n"
        f"{size}, were read there as any program reads them, and have their digests.{ran}"
    )


def _several(report: Report) -> str:
    logical = sum(row.unique_bytes for row in report.images)
    return (
        f"Each on its own, the images hold {human_size(logical)} of distinct file content; together they hold "
        f"{human_size(report.total.unique_bytes)}.\n"
        f"{human_size(report.same_blob_bytes)} of layers, as pushed, are the same blob in more than one of them."
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "all"


def next_steps(kept: Path | None) -> str:
    """Commands to try."""
    data = f"{kept / 'store'}" if kept else "./pagepool-data"
    us = _program()
    lines = ["", "To go on with a service of your own:", "", f"  {us} serve --data {data}", ""]
    if kept:
        lines += [
            "and in another terminal, with what the demo has put into it:",
            "",
            f"  {us} images",
            f"  {us} ls -l demo/app:2:/usr/bin",
            f"  {us} stats",
            "  skopeo inspect --tls-verify=false docker://127.0.0.1:5000/demo/app:2",
        ]
        return "\n".join(lines)
    lines += [
        "and in another terminal, with whichever client you have (an image debian:12 is assumed):",
        "",
        "  docker tag debian:12 127.0.0.1:5000/debian:12 && docker push 127.0.0.1:5000/debian:12",
        "  podman push --tls-verify=false debian:12 127.0.0.1:5000/debian:12",
        "  skopeo copy --dest-tls-verify=false docker://debian:12 docker://127.0.0.1:5000/debian:12",
        f"  {us} ls -l debian:12:/etc",
        "  mkdir mnt",
        f"  {us} mount debian:12 ./mnt --upper ./work",
        f"  {us} stats",
    ]
    return "\n".join(lines)


def _program() -> str:
    """What to type for pagepool: its path, where it is in a virtual environment that was not entered (README)."""
    typed = sys.argv[0]
    return typed if typed.endswith("/pagepool") and shutil.which("pagepool") is None else "pagepool"
