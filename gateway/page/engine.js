// The engine room: asks /engine once a second while it is looked at, and shows what changed since.

import { getJson } from "./api.js";
import { h } from "./dom.js";
import { drawRoom } from "./engine_view.js";
import { Rates } from "./rates.js";

const kEvery = 1000;  // milliseconds

let timer = 0;
let rates = new Rates();
let asking = null;

export function startEngineRoom(element) {
  if (asking) return;
  asking = new AbortController();
  rates = new Rates();
  element.replaceChildren(h("p", { class: "room-note" }, "Asking the engine…"));
  look(element, asking.signal);
}

export function stopEngineRoom() {
  asking?.abort();
  asking = null;
  clearTimeout(timer);
}

async function look(element, signal) {
  try {
    if (!document.hidden) {
      const engine = await getJson("engine", signal);
      rates.add(engine, performance.now() / 1000);
      drawRoom(element, engine, rates);
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    element.replaceChildren(h("p", { class: "room-note" }, explain(error)));
  }
  if (!signal.aborted) timer = setTimeout(() => look(element, signal), kEvery);
}

function explain({ status, message }) {
  if (status === 401) return "The engine room wants an API key: open the settings.";
  if (status === 403) return "The engine room wants a key of the role admin.";
  return `The engine does not answer: ${message}`;
}
