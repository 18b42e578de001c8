// npm eventsource: a browser's EventSource, for Node. It reconnects and resumes by itself.
import { EventSource } from 'eventsource';

const source = new EventSource(process.argv[2]);
source.onmessage = ({ lastEventId, data }) => console.log(`${lastEventId} ${data.replaceAll('\n', '\\n')}`);
