"""A telemetry ingest in Python, which counts devices.

`GET /ingest?device=<number>[&device=…][&fleet=<name>]` counts the devices, in all or by their
fleet, and returns the outcome of each.

This component knows only an interface of Verve; the component that counts is composed with it.
"""

import json
import sys
from urllib.parse import parse_qs, urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import blocking_counter
from wit_world.imports.verve_unique_types import (
    Error_InvalidName,
    Error_InvalidVariable,
    Error_TooManyCounters,
    Error_Unavailable,
    Error_WindowLimit,
)
from wit_world.imports.wasi_http_types import Fields, OutgoingBody, OutgoingResponse, ResponseOutparam

# The maximum number of bytes in one write to a stream.
MOST = 4096


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request, response_out):
        query = parse_qs(urlsplit(request.path_with_query()).query)
        devices = [number(device) for device in query.get("device", [])]
        if not devices or None in devices:
            respond(response_out, 400, {"error": "expected ?device=<number>"})
            return
        try:
            counter = blocking_counter.open(query["fleet"][0]) if "fleet" in query else blocking_counter
        except Err as error:
            status, body = refused(error.value)
            respond(response_out, status, {"error": body})
            return
        status, body = 200, []
        for result in counter.add_many(devices):
            if isinstance(result, Ok):
                body.append(result.value.name.lower())
            else:
                status, _ = refused(result.value)
                body.append("failed")
        respond(response_out, status, body)


def number(text):
    """Return a 64-bit number, or None."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -(2**63) <= value < 2**63 else None


def refused(error):
    """Return the status and the line for a client whose id is not counted.

    Problems that the operator must solve go to the log instead.
    """
    match error:
        case Error_InvalidName(line):
            return 400, line
        case Error_Unavailable():
            return 503, "later, please"
        case Error_WindowLimit() | Error_TooManyCounters():
            print(f"not counted: {type(error).__name__}", file=sys.stderr)
            return 503, "later, please"
        case Error_InvalidVariable(line):
            print(line, file=sys.stderr)
            return 500, "failed"


def respond(response_out, status, value):
    response = OutgoingResponse(Fields.from_list([("content-type", b"application/json")]))
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    text = json.dumps(value).encode()
    with body.write() as stream:
        for at in range(0, len(text), MOST):
            stream.blocking_write_and_flush(text[at : at + MOST])
    OutgoingBody.finish(body, None)
