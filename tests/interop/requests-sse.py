"""PyPI requests-sse: an iterator of all events, whatever their name. It reconnects and resumes by
itself, after twice the reconnection time."""

import sys
from datetime import timedelta

from requests_sse import EventSource

# Three of the hub's keep-alives may be missing before the stream is taken for dead.
with EventSource(sys.argv[1], reconnection_time=timedelta(seconds=1), timeout=45) as source:
    while True:
        try:
            for event in source:
                if not event.type.startswith("tabcast:"):
                    print(event.last_event_id, event.data.replace("\n", "\\n"), flush=True)
        except UnicodeDecodeError:
            # The stream has ended within a character. Asked for the next event, it resumes as ever.
            pass
