// Runs in every page of a tab before all other scripts: it writes down each message that the client delivers,
// and answers each `ping` that is for this tab with a `pong`. The tab's number is `window.number`. It is
// asked over a BroadcastChannel: to ask it by a script, a browser would have to bring the tab to the front,
// where the client checks its stream.
if (location.protocol === 'http:') {
  const record = { since: null, delivered: [], asked: 0, acknowledged: [], refused: [] };
  let hub, newest = 0, slowest = {};

  const send = (n) => {
    record.asked += 1;
    hub.emit('pong', { n, from: number, at: Date.now() })
      .then((id) => record.acknowledged.push([n, id]), (error) => record.refused.push(String(error)));
  };

  import(`${location.origin}/tabcast.js`).then(({ connect }) => {
    hub = connect();
    hub.onAny((event, data, message) => {
      const { n, to, from = null, at } = data;
      const delay = Date.now() - at;
      record.delivered.push([message.id, event, n, from, delay]);
      slowest[from ?? 'curl'] = Math.max(slowest[from ?? 'curl'] ?? 0, delay);
      if (event !== 'ping') return;
      newest = n;
      if (to === number) send(n);
    });
    let looked = false;
    const look = async () => {
      if (looked || !hub.connected) return;
      looked = true;
      // The tab is to get every message after this one.
      const { messages } = await (await fetch('/messages?last=1')).json();
      record.since = messages[0]?.id ?? '';
    };
    hub.on('tabcast:state', look);
    look();
  });

  const wire = new BroadcastChannel('record');
  wire.onmessage = ({ data: question }) => {
    if (question.id === undefined) return;
    question.send.forEach(send);
    const settled = record.acknowledged.length + record.refused.length === record.asked;
    const ended = record.delivered.at(-1)?.[1] === 'end';
    const status = { state: hub?.state ?? '', connected: record.since !== null, newest, settled, ended };
    const whole = question.whole ? record : null;
    wire.postMessage({ question: question.id, number, status, slowest, record: whole });
    if (question.forget) slowest = {};
  };
}
