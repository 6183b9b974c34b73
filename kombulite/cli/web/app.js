"use strict";

const COLUMNS = ["queue", "ready", "unacked", "consumers", "change", "published", "delivered", "redelivered", "oldest", "memory"];
const UNITS = { change: "/s", published: "/s", delivered: "/s", redelivered: "/s", oldest: " s", memory: " B" };
const REFRESH = 2000; // milliseconds

const at = (id) => document.getElementById(id);
let sort = "ready", ascending = false, paused = false, last = null;
const tables = []; // of the brokers, in their order

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function shown(column, value) {
  if (value === null || value === undefined) return "–";
  if (column === "queue") return value;
  const digits = Number.isInteger(value) ? 0 : 1;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: 1 }) + (UNITS[column] || "");
}

function compare(a, b) {
  const [left, right] = [a[sort], b[sort]];
  if (left === null || right === null) return (left === null) - (right === null);
  const order = left < right ? -1 : left > right ? 1 : 0;
  return ascending ? order : -order;
}

function plot(canvas, values) {
  const [width, height] = [240, 48];
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  const most = Math.max(0, ...values.filter((value) => value !== null));
  const minutes = (last.times.at(-1) - last.times[0]) / 60;
  canvas.title = `at most ${shown("ready", most)} ready in ${minutes.toFixed(1)} minutes`;
  const top = Math.max(1, most);
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  pen.lineWidth = 2;
  pen.beginPath();
  let drawing = false;
  values.forEach((value, index) => {
    if (value === null) { drawing = false; return; }
    const x = values.length < 2 ? 0 : index / (values.length - 1) * width;
    const y = height - 3 - value / top * (height - 6);
    if (drawing) pen.lineTo(x, y); else pen.moveTo(x, y);
    drawing = true;
  });
  pen.stroke();
}

/** The table of a broker. It stays from one reading to the next, and so do the focus and how far it is scrolled. */
class BrokerTable {
  constructor(parent, number) {
    this.number = number;
    this.section = element("section", undefined, parent);
    this.heading = element("h2", "", this.section);
    this.error = element("p", "", this.section);
    this.error.className = "error";
    this.scroll = element("div", undefined, this.section);
    this.scroll.className = "scroll";
  }

  show(broker, wanted) {
    this.heading.textContent = broker.broker;
    this.error.textContent = broker.error;
    this.error.hidden = broker.error === null;
    this.scroll.hidden = broker.error !== null;
    if (broker.error !== null) return;
    const known = COLUMNS.filter((name) => name === "queue" || broker.queues.some((queue) => queue[name] !== null));
    if (known.join() !== this.columns?.join()) this.build(known);
    for (const [name, button] of this.buttons) {
      button.textContent = name + (name === sort ? (ascending ? " ▲" : " ▼") : "");
      button.parentElement.ariaSort = name === sort ? (ascending ? "ascending" : "descending") : null;
    }
    const queues = broker.queues.filter((each) => each.queue.toLowerCase().includes(wanted)).sort(compare);
    const names = new Set(queues.map((each) => each.queue));
    for (const [name, row] of this.rows) {
      if (!names.has(name)) { row.remove(); this.rows.delete(name); }
    }
    const focus = document.activeElement;
    queues.forEach((queue, index) => {
      const row = this.rows.get(queue.queue) ?? this.add(queue.queue);
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
      known.forEach((name, place) => { row.cells[place].textContent = shown(name, queue[name]); });
      plot(row.querySelector("canvas"), queue.history);
    });
    if (focus !== document.activeElement && focus.isConnected) focus.focus({ preventScroll: true }); // its row moved
  }

  build(columns) {
    this.columns = columns;
    this.rows = new Map();
    this.scroll.replaceChildren();
    const table = element("table", undefined, this.scroll);
    const head = element("tr", undefined, element("thead", undefined, table));
    this.buttons = columns.map((name) => {
      const button = element("button", name, element("th", undefined, head));
      button.type = "button";
      button.addEventListener("click", () => {
        [ascending, sort] = [name === sort ? !ascending : name === "queue", name];
        draw();
      });
      return [name, button];
    });
    element("th", "history", head).className = "history";
    if (last.may_change) element("th", "", head);
    this.body = element("tbody", undefined, table);
  }

  add(queue) {
    const row = element("tr", undefined, this.body);
    for (const _ of this.columns) element("td", "", row);
    element("canvas", undefined, element("td", undefined, row)).role = "img";
    if (last.may_change) {
      const cell = element("td", undefined, row);
      for (const [label, act] of [["messages", tail], ["move", move], ["purge", purge]]) {
        const button = element("button", label, cell);
        button.type = "button";
        button.addEventListener("click", () => act(this.number, queue));
      }
    }
    this.rows.set(queue, row);
    return row;
  }
}

function draw() {
  const wanted = at("filter").value.toLowerCase();
  last.brokers.forEach((broker, number) => {
    tables[number] ??= new BrokerTable(at("brokers"), number);
    tables[number].show(broker, wanted);
  });
}

async function post(what, body) {
  const answer = await fetch("api/" + what, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function tail(broker, queue) {
  const dialog = at("messages");
  const list = dialog.querySelector("ol");
  dialog.querySelector("h2").textContent = queue;
  list.replaceChildren();
  try {
    for (const message of (await post("tail", { broker, queue })).messages) {
      element("pre", JSON.stringify(message, null, 2), element("li", undefined, list));
    }
    if (!list.children.length) element("p", "No messages wait.", list);
  } catch (error) {
    element("p", error.message, list).className = "error";
  }
  dialog.showModal();
  dialog.scrollTop = 0; // the button that gets the focus is below the messages
}

function ask(question, queue, wantsTarget) {
  const dialog = at("confirm");
  at("question").textContent = question;
  at("target-label").hidden = !wantsTarget;
  at("name").value = at("target").value = "";
  const check = () => { at("go").disabled = at("name").value !== queue || (wantsTarget && !at("target").value); };
  at("name").oninput = at("target").oninput = check;
  check();
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((done) => { dialog.onclose = () => done(dialog.returnValue === "go"); });
}

async function change(doing, done, what, body) {
  const outcome = at("outcome");
  outcome.className = "";
  outcome.textContent = doing;
  try {
    outcome.textContent = done(await post(what, body));
  } catch (error) {
    outcome.className = "error";
    outcome.textContent = `${doing} failed: ${error.message}`;
  }
}

async function purge(broker, queue) {
  if (!await ask(`Remove all messages that wait in ${queue}?`, queue, false)) return;
  const done = ({ purged }) => `${shown("ready", purged)} removed from ${queue}`;
  change(`Purging ${queue}`, done, "purge", { broker, queue, confirm: queue });
}

async function move(broker, queue) {
  if (!await ask(`Move all messages that wait in ${queue} to another queue?`, queue, true)) return;
  const target = at("target").value;
  const done = ({ moved }) => `${shown("ready", moved)} moved from ${queue} to ${target}`;
  change(`Moving ${queue} to ${target}`, done, "move", { broker, queue, confirm: queue, target });
}

async function refresh() {
  if (!paused) {
    try {
      const answer = await fetch("api/queues");
      if (!answer.ok) throw new Error(await answer.text());
      last = await answer.json();
      if (last.times.length) at("state").textContent = "read " + new Date(last.times.at(-1) * 1000).toLocaleTimeString();
      draw();
    } catch (error) {
      at("state").textContent = error.message;
    }
  }
  setTimeout(refresh, REFRESH);
}

at("filter").addEventListener("input", () => last && draw());
at("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.ariaPressed = paused;
  event.target.textContent = paused ? "Resume" : "Pause";
});
refresh();
