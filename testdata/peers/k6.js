// The work of sim/load/roundtrip for k6: each user is a VU with a socket that
// stays open, and writes one message a second at times that are fixed
// beforehand, so that no user waits for the gateway or for another user. Every
// message is the same frame, and the gateway answers in order: the n-th answer
// is that to the n-th message, and nothing has to be decoded.
import { WebSocket } from "k6/websockets";
import { Trend, Counter } from "k6/metrics";
import exec from "k6/execution";

const users = Number(__ENV.USERS);
const rampMs = 1000 * Number(__ENV.RAMP_S);
const warmupMs = 1000 * Number(__ENV.WARMUP_S);
const steadyMs = 1000 * Number(__ENV.STEADY_S);
const frame = new Uint8Array(__ENV.FRAME.match(/../g).map((b) => parseInt(b, 16))).buffer;

const fromIntended = new Trend("from_intended", true); // in the steady phase
const fromSend = new Trend("from_send", true);
const whole = new Trend("whole_run", true); // from send, of all messages
const failed = new Counter("failed");

export const options = {
  scenarios: { users: { executor: "per-vu-iterations", vus: users, iterations: 1, maxDuration: "10m" } },
  systemTags: [],
  summaryTrendStats: __ENV.QUANTILES.split(","),
};

// setup runs when all VUs are there; their clock is this one.
export function setup() {
  return { start: Date.now() + 1000 };
}

export default function (data) {
  const place = (exec.vu.idInTest - 1) / users;
  setTimeout(() => connect(data, place), data.start + place * 0.875 * rampMs - Date.now());
}

function connect(data, place) {
  const ws = new WebSocket(__ENV.GATEWAY, null, { headers: { Authorization: `Bearer ${exec.vu.idInTest}` } });
  ws.binaryType = "arraybuffer";
  const steady = data.start + rampMs + warmupMs;
  const end = steady + steadyMs;
  const intended = [];
  const sent = [];
  let next = data.start + rampMs + place * 1000;
  let closed = false;

  function write() {
    if (closed) {
      return;
    }
    if (next >= end) {
      setTimeout(() => ws.close(), 3000);
      return;
    }
    intended.push(next);
    sent.push(Date.now());
    ws.send(frame);
    next += 1000;
    setTimeout(write, Math.max(0, next - Date.now()));
  }

  ws.onopen = () => setTimeout(write, Math.max(0, next - Date.now()));
  ws.onclose = () => {
    closed = true;
  };
  ws.onerror = () => failed.add(1);
  ws.onmessage = () => {
    const now = Date.now();
    const due = intended.shift();
    const wrote = sent.shift();
    whole.add(now - wrote);
    if (due >= steady && due < end) {
      fromIntended.add(now - due);
      fromSend.add(now - wrote);
    }
  };
}

export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data.metrics) };
}
