// Two usual clients of Node.js on connections that they keep: http with an agent,
// and fetch. Prints how many requests were answered and how many failed, by client,
// when its input ends.
const http = require('node:http');

const address = process.argv[2];
let stopped = false;
process.stdin.on('end', () => { stopped = true; }).resume();

const counts = {};
const pause = () => new Promise((done) => setTimeout(done, 2));

const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const get = () => new Promise((done, failed) => {
  http.get({ agent, ...addressOf(address) }, (res) => res.resume().on('end', done).on('error', failed)).on('error', failed);
});
function addressOf(text) {
  const at = text.lastIndexOf(':');
  return { host: text.slice(0, at), port: text.slice(at + 1) };
}

async function ask(name, request) {
  const count = counts[name];
  while (!stopped) {
    try {
      await request();
      count.answered++;
    } catch (err) {
      count.failed++;
      count.error ??= String(err.cause ?? err);
    }
    await pause();
  }
}

const clients = { 'http.Agent': get, fetch: async () => (await fetch(`http://${address}/`)).text() };
const running = [];
for (const [name, request] of Object.entries(clients)) {
  counts[name] = { answered: 0, failed: 0 };
  for (let i = 0; i < 4; i++) running.push(ask(name, request));
}
Promise.all(running).then(() => { console.log(JSON.stringify(counts)); process.exit(0); });
