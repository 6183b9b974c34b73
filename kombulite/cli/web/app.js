"use strict";

const COLUMNS = ["queue", "ready", "unacked", "consumers", "change", "published", "delivered", "redelivered", "oldest", "memory"];
const UNITS = { change: "/s", published: "/s", delivered: "/s", redelivered: "/s", oldest: " s", memory: " B" };
const REFRESH = 2000; // milliseconds

const at = (id) => document.getElementById(id);
let sort = "ready", ascending = false, paused = false, last = null;

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
  const top = Math.max(1, ...values.filter((value) => value !== null));
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

function draw() {
  const main = at("brokers");
  const wanted = at("filter").value.toLowerCase();
  main.replaceChildren();
  last.brokers.forEach((broker, number) => {
    element("h2", broker.broker, main);
    if (broker.error !== null) { element("p", broker.error, main).className = "error"; return; }
    const scroll = element("div", undefined, main);
    scroll.className = "scroll";
    const table = element("table", undefined, scroll);
    const head = element("tr", undefined, element("thead", undefined, table));
    const known = COLUMNS.filter((name) => name === "queue" || broker.queues.some((queue) => queue[name] !== null));
    for (const name of known) {
      const cell = element("th", undefined, head);
      if (name === sort) cell.ariaSort = ascending ? "ascending" : "descending";
      const button = element("button", name + (name === sort ? (ascending ? " ▲" : " ▼") : ""), cell);
      button.type = "button";
      button.addEventListener("click", () => {
        [ascending, sort] = [name === sort ? !ascending : name === "queue", name];
        draw();
      });
    }
    element("th", "history", head);
    if (last.may_change) element("th", "", head);
    const body = element("tbody", undefined, table);
    for (const queue of broker.queues.filter((each) => each.queue.toLowerCase().includes(wanted)).sort(compare)) {
      const row = element("tr", undefined, body);
      for (const name of known) element("td", shown(name, queue[name]), row);
      plot(element("canvas", undefined, element("td", undefined, row)), queue.history);
      if (last.may_change) {
        const cell = element("td", undefined, row);
        for (const [label, act] of [["messages", tail], ["move", move], ["purge", purge]]) {
          const button = element("button", label, cell);
          button.type = "button";
          button.addEventListener("click", () => act(number, queue.queue));
        }
      }
    }
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

async function change(what, body) {
  try {
    at("state").textContent = JSON.stringify(await post(what, body));
  } catch (error) {
    at("state").textContent = error.message;
  }
}

async function purge(broker, queue) {
  if (await ask(`Remove all messages that wait in ${queue}?`, queue, false)) change("purge", { broker, queue, confirm: queue });
}

async function move(broker, queue) {
  if (await ask(`Move all messages that wait in ${queue} to another queue?`, queue, true)) {
    change("move", { broker, queue, confirm: queue, target: at("target").value });
  }
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
  event.target.textContent = paused ? "Go on" : "Pause";
});
refresh();
