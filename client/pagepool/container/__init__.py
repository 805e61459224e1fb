"""Runs containers on a root that somebody has mounted or unpacked: by runc, or by namespaces of our own."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.container.ended import list_ended, remove_ended
    from pagepool.container.executing import ExecOptions, exec_in_container
    from pagepool.container.finding import ContainerUnknownError, find_containers, list_all
    from pagepool.container.options import Container, OptionInvalidError, RunOptions, Volume
    from pagepool.container.plan import Facts, plan_runtime
    from pagepool.container.records import DEFAULT_DIRECTORY, ENDED_DIRECTORY, Record, list_containers
    from pagepool.container.run import cleanup_stale, run_container
    from pagepool.container.stopping import stop_containers
    from pagepool.container.users import UserInvalidError
    from pagepool.container.waiting import Waiting, wait_for_end
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "ended": "list_ended remove_ended",
            "executing": "ExecOptions exec_in_container",
            "finding": "ContainerUnknownError find_containers list_all",
            "options": "Container OptionInvalidError RunOptions Volume",
            "plan": "Facts plan_runtime",
            "records": "DEFAULT_DIRECTORY ENDED_DIRECTORY Record list_containers",
            "run": "cleanup_stale run_container",
            "stopping": "stop_containers",
            "users": "UserInvalidError",
            "waiting": "Waiting wait_for_end",
        },
    )

__all__ = [
    "Container",
    "RunOptions",
    "Volume",
    "Facts",
    "plan_runtime",
    "run_container",
    "exec_in_container",
    "ExecOptions",
    "cleanup_stale",
    "Record",
    "list_containers",
    "list_all",
    "list_ended",
    "remove_ended",
    "wait_for_end",
    "Waiting",
    "DEFAULT_DIRECTORY",
    "ENDED_DIRECTORY",
    "find_containers",
    "stop_containers",
    "ContainerUnknownError",
    "OptionInvalidError",
    "UserInvalidError",
]
