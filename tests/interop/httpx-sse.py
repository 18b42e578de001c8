"""PyPI httpx-sse: an iterator of the blocks of one response, also of those without data. Reconnecting
and resuming are left to its user, who is given `id` and `retry` for it."""

import sys
import time

import httpx
from httpx_sse import connect_sse

last_event_id = ""
reconnection_time = 1.0

# Three of the hub's keep-alives may be missing before the stream is taken for dead.
with httpx.Client(timeout=httpx.Timeout(10, read=45)) as client:
    while True:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            with connect_sse(client, "GET", sys.argv[1], headers=headers) as source:
                for sse in source.iter_sse():
                    if sse.id:
                        last_event_id = sse.id
                    if sse.retry is not None:
                        reconnection_time = sse.retry / 1000
                    if sse.data and not sse.event.startswith("tabcast:"):
                        print(sse.id, sse.data.replace("\n", "\\n"), flush=True)
        except httpx.TransportError:
            pass
        time.sleep(reconnection_time)
