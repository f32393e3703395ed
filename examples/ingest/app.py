"""A telemetry ingest in Python: `GET /ingest?device=<number>[&device=…][&fleet=<name>]` counts devices, in all or by their fleet, and answers
what became of each.

It knows nothing of Verve but an interface: the component that counts is composed with this one.
"""

import json
from urllib.parse import parse_qs, urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import blocking_counter
from wit_world.imports.wasi_http_types import Fields, OutgoingBody, OutgoingResponse, ResponseOutparam

# What a stream takes at once.
MOST = 4096


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request, response_out):
        query = parse_qs(urlsplit(request.path_with_query()).query)
        try:
            devices = [int(device) for device in query["device"]]
        except (KeyError, ValueError):
            respond(response_out, 400, {"error": "expected ?device=<number>"})
            return
        try:
            counter = blocking_counter.open(query["fleet"][0]) if "fleet" in query else blocking_counter
        except Err as error:
            respond(response_out, 400, {"error": error.value.value})
            return
        counted = counter.add_many(devices)
        failed = any(not isinstance(result, Ok) for result in counted)
        told = [result.value.name.lower() if isinstance(result, Ok) else "failed" for result in counted]
        respond(response_out, 503 if failed else 200, told)


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
