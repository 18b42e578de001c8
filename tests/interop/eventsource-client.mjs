// npm eventsource-client: an async iterator of all events, whatever their name. It reconnects and
// resumes by itself.
import { createEventSource } from 'eventsource-client';

for await (const { id, event, data } of createEventSource(process.argv[2])) {
  if (!event?.startsWith('tabcast:')) console.log(`${id} ${data.replaceAll('\n', '\\n')}`);
}
