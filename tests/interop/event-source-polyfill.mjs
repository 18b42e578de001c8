// npm event-source-polyfill: it reconnects and resumes by itself, with the last event's id in the query.
import polyfill from 'event-source-polyfill';

// It logs every error of the network, with the stack.
console.error = () => {};
const source = new polyfill.EventSourcePolyfill(process.argv[2]);
source.onmessage = ({ lastEventId, data }) => console.log(`${lastEventId} ${data.replaceAll('\n', '\\n')}`);
