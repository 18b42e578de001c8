// npm @microsoft/fetch-event-source: a callback for all blocks, also for those without data. It
// reconnects and resumes after an error, and after a clean end if `onclose` throws.
import { fetchEventSource } from '@microsoft/fetch-event-source';

// It is for browsers. This is all it asks of one.
globalThis.window = globalThis;
globalThis.document = new EventTarget();

let lastEventId;
fetchEventSource(process.argv[2], {
  onmessage({ id, event, data }) {
    if (id) lastEventId = id;
    if (data && !event.startsWith('tabcast:')) console.log(`${id} ${data.replaceAll('\n', '\\n')}`);
  },
  onclose() {
    throw new Error('the stream has ended');
  },
  // It takes an id when it has read that line, and would resume behind an event of which it has no
  // more than that. So it is given the id of the last whole one.
  fetch: (url, options) =>
    fetch(url, {
      ...options,
      headers: { ...options.headers, ...(lastEventId && { 'last-event-id': lastEventId }) },
    }),
});
