"""The image's health check: asks whatever the container runs, and ends with 1 and one line if that is not well.

A service is asked for /readyz, the coordinator of a load test whether it waits for clients, a node whether it answers;
a command that is none of these is as well as its process. Only what Python brings is needed. What the container runs is
read off its first process.
"""

import os
import re
import ssl
import subprocess
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path


def option(words, name, variable, default=""):
    """The value of an option of the service: of its command line, else of the environment."""
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return os.environ.get(variable) or default


def check_service(words):
    """None if the service is ready, else why not."""
    return ask(words, option(words, "--listen", "PAGEPOOL_LISTEN", "127.0.0.1:5000"), "/readyz")


def ask(words, address, path):
    """None if the answer is 200, else what it is."""
    host, _, port = address.rpartition(":")
    host = re.sub(r"^(0\.0\.0\.0|\[::\]|)$", "127.0.0.1", host).strip("[]")
    if words and option(words, "--tls-certificate", "PAGEPOOL_TLS_CERTIFICATE"):
        # Asked is whether it answers, from inside of its own container: whose name is on the certificate is for others.
        connection = HTTPSConnection(host, int(port), timeout=4, context=ssl._create_unverified_context())
    else:
        connection = HTTPConnection(host, int(port), timeout=4)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return None if answer.status == 200 else f"{address}: {answer.status} {answer.read(2000)!r}"
    except (OSError, HTTPException) as error:
        return f"{address}: {error}"
    finally:
        connection.close()


def check_node(words):
    """None if the node answers, else why not."""
    places = {name: option(words, name, "") for name in ("--node-run", "--node-state")}
    where = [word for place in places.items() if place[1] for word in place]
    done = subprocess.run(["pagepool", "node", "status", *where], capture_output=True, text=True, timeout=4)
    return None if done.returncode == 0 else done.stderr.strip()


def main():
    """What the container runs, and how it is."""
    words = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    words = words[1 + next((place for place, word in enumerate(words) if Path(word).name == "pagepool"), -1) :]
    trouble = None
    if words[:1] == ["serve"]:
        trouble = check_service(words)
    elif words[:1] == ["load"] and (listen := option(words, "--listen", "")):
        trouble = ask([], listen, "/v1/state")
    elif words[:2] == ["node", "start"]:
        trouble = check_node(words)
    if trouble:
        sys.exit(trouble)


if __name__ == "__main__":
    main()
