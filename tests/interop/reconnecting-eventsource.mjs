// npm reconnecting-eventsource: it makes a new EventSource where one gives up, with the last event's id in
// the query. Here each EventSource gives up at its first error.
import { EventSource } from 'eventsource';
import ReconnectingEventSource from 'reconnecting-eventsource';

class GivesUp extends EventSource {
  set onerror(listener) {
    super.onerror = (event) => {
      this.close();
      listener(event);
    };
  }
}

const options = { eventSourceClass: GivesUp, max_retry_time: 500 };
const source = new ReconnectingEventSource(process.argv[2], options);
// It remembers the ids of those events that it has a listener for. Events without an id, as some keep-alives
// are, have an empty one in npm eventsource: a listener for them would have it forget.
source.addEventListener('tabcast:open', () => {});
source.addEventListener('message', ({ lastEventId, data }) =>
  console.log(`${lastEventId} ${data.replaceAll('\n', '\\n')}`));
