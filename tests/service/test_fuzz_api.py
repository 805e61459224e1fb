"""The API's description is the truth: whatever is sent, the service answers as it says, never with a fault of its own.

Schemathesis makes requests out of the description, good and bad. The repository it talks about is filled first, so
that not every answer is 404.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
import schemathesis
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.pushes import push_blob, push_image
from tests.service.test_images_api import settled

if TYPE_CHECKING:
    from tests.support.server import Service

REPOSITORY = "fuzz/target"
_EXAMPLES = 7
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def there(service: Service) -> dict[str, str]:
    """Path parameters of what is there."""
    with httpx.Client(base_url=service.url) as http:
        push_image(http, REPOSITORY, "latest")
        blob = push_blob(http, REPOSITORY, b"some bytes")
        begun = http.post(f"/v2/{REPOSITORY}/blobs/uploads/")
        settled(http, f"/v1/{REPOSITORY}/images/latest")
        tree = http.get(f"/v1/{REPOSITORY}/images/latest/tree").json()["tree"]
        below = f"/v1/{REPOSITORY}/trees/{tree}"
        taken = http.post(f"{below}/lease", json={"holder": "fuzz", "ttl_s": 3600})
        learned = http.post(f"{below}/profile", json={"objects": [blake3(b"hello\n").hexdigest()]})
        assert (taken.status_code, learned.status_code) == (201, 200)
    session = begun.headers["location"].rpartition("/")[2]
    known = {"name": REPOSITORY, "reference": "latest", "digest": str(blob), "session": session, "tree": tree}
    return known | {"lease": taken.json()["id"]}


def test_every_answer_is_as_described(service: Service, there: dict[str, str]) -> None:
    """Statuses, headers and bodies are those of the description, whatever is sent; none is a fault of the service."""
    failures: list[str] = []
    count = 0
    schema = schemathesis.openapi.from_url(f"{service.url}/v1/openapi.json")
    with requests.Session() as session:
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            count += fuzz(result.ok(), there, session, failures)
    print(f"{count} requests")
    assert not failures, "\n\n".join(failures)
    assert not service.faults()


def fuzz(operation: Any, there: dict[str, str], session: requests.Session, failures: list[str]) -> int:
    """Send requests for one operation; returns how many."""
    count = 0
    known = {name: value for name, value in there.items() if f"{{{name}}}" in operation.path}

    @settings(max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=_cases(operation, known))
    def run(case: Any) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(checks=_CHECKS, session=session)

    try:
        run()
    except (Exception, ExceptionGroup) as error:  # noqa: BLE001  (whatever it is, the other operations are tried too)
        failures.append(f"{operation.method.upper()} {operation.path}: {error}")
    return count


def _cases(operation: Any, known: dict[str, str]) -> st.SearchStrategy[Any]:
    """Good requests, about anything and about what is there; and bad ones, where there is anything to get wrong."""
    kinds = [operation.as_strategy(GenerationMode.POSITIVE)]
    if known:
        kinds += [operation.as_strategy(GenerationMode.POSITIVE, path_parameters=known)]
    if operation.path_parameters or operation.query or operation.body:
        kinds += [operation.as_strategy(GenerationMode.NEGATIVE)]
    return st.one_of(kinds)
