// What the engine does, drawn anew from each answer of /engine: numbers on top, then the ways of the experts: the host's memory,
// a link and a worker on each row.

import { h } from "./dom.js";
import { curve } from "./curve.js";
import { heatMap, runningRequests } from "./activity_view.js";

const kUnits = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < kUnits.length - 1) value /= 1000, ++unit;
  return `${value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${kUnits[unit]}`;
}
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}
const tokens = (rate) => (rate >= 100 || rate === 0 ? count.format(rate) : rate.toFixed(1));

function age(seconds) {
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

export function drawRoom(element, engine, rates) {
  const { scrollTop } = element;
  element.replaceChildren(
    tiles(engine, rates),
    engine.activity ? h("section", { class: "panel" }, h("h2", {}, "Requests"), runningRequests(engine.activity)) : "",
    h("section", { class: "panel" }, h("h2", {}, "Layers"), layers(engine)),
    h("section", { class: "panel" }, h("h2", {}, "Where experts are computed"), legend(), machine(engine, rates)),
    engine.activity
      ? h("section", { class: "panel" }, h("h2", {}, "Experts that were not in slots, since the start"), heatMap(engine.activity)) : "",
    footer(engine));
  element.scrollTop = scrollTop;
}

function tile(name, value, unit, ...below) {
  return h("div", { class: "tile" }, h("span", { class: "tile-name" }, name),
    h("span", { class: "tile-value" }, value, unit ? h("small", {}, ` ${unit}`) : null), ...below);
}

function tiles(engine, rates) {
  const used = engine.kv.blocks - engine.kv.free;
  const hits = rates.hitRate();
  const state = engine.state === "loading" && engine.load_progress > 0 ? `loading, ${percent(engine.load_progress)}` : engine.state;
  return h("section", { class: "tiles", "aria-label": "Now" },
    tile("State", state, "", h("span", { class: "tile-note" }, engine.state_reason || `up ${age(engine.uptime_seconds)}`)),
    tile("Decoding", tokens(rates.tokens("generated_total")), "tokens/s", curve(rates.history, "generated", "decode")),
    tile("Reading prompts", tokens(rates.tokens("prompt_total")), "tokens/s", curve(rates.history, "prompt", "prefill")),
    tile("Requests", `${engine.requests.running}`, `of ${engine.requests.places}`,
      h("span", { class: "tile-note" }, `${engine.requests.queued} waiting`)),
    tile("KV cache", percent(engine.kv.blocks ? used / engine.kv.blocks : 0), "",
      gauge(engine.kv.blocks ? used / engine.kv.blocks : 0, "kv", `${used} of ${engine.kv.blocks} blocks are in use`)),
    tile("Found in slots", hits === null ? "–" : percent(hits), hits === null ? "" : "of experts", curve(rates.history, "hits", "hits", 1)));
}

function gauge(share, kind, label) {
  const bar = h("span", { class: `fill ${kind}` });
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return h("span", { class: "gauge", role: "img", "aria-label": label, title: label }, bar);
}

// One cell a layer, coloured by its worker.
function layers(engine) {
  const cells = [];
  for (let layer = 0; layer < engine.model.layers; ++layer) {
    const worker = engine.workers.findIndex((each) => layer >= each.first_layer && layer < each.end_layer);
    const label = worker < 0 ? `layer ${layer} is nobody's yet` : `layer ${layer}: worker ${engine.workers[worker].id}`;
    cells.push(h("span", { class: `layer worker-${worker < 0 ? "none" : worker % 8}`, title: label }));
  }
  const keys = engine.workers.map((worker, i) =>
    h("li", {}, h("span", { class: `layer worker-${i % 8}` }),
      `worker ${worker.id}: layers ${worker.first_layer} to ${worker.end_layer - 1}`));
  return h("div", {}, h("div", { class: "layers", role: "img", "aria-label": `${engine.model.layers} layers` }, ...cells),
    h("ul", { class: "layer-keys" }, ...keys));
}

const kPlaces = [["resident", "in the worker's slots"], ["shipped", "copied over the link"], ["on_host", "by the host"]];

function legend() {
  return h("ul", { class: "legend" }, ...kPlaces.map(([kind, name]) => h("li", {}, h("span", { class: `key ${kind}` }), name)));
}

function machine(engine, rates) {
  const counted = engine.workers.map((_, i) => rates.worker(i));
  return h("div", { class: "machine" }, hostBox(engine, rates, counted),
    h("div", { class: "ways" }, ...engine.workers.map((worker, i) => way(engine, worker, counted[i], rates.seconds, i))));
}

function hostBox({ host, engine }, rates, counted) {
  const read = rates.seconds > 0 ? counted.reduce((sum, worker) => sum + worker.host_bytes_read, 0) / rates.seconds : 0;
  return h("div", { class: "box host" }, h("h3", {}, "Host"),
    figure("experts in memory", bytes(host.arena_bytes) + (host.huge_pages ? ", huge pages" : "")),
    rateGauge("reads experts", read, host.expert_read_rate || host.read_rate, "on_host"),
    figure("kernels", engine || "–"),
    figure("process", bytes(host.resident_bytes)));
}

function figure(name, value) {
  return h("p", { class: "figure" }, h("span", {}, name), h("span", {}, value));
}

function rateGauge(name, rate, limit, kind) {
  const share = limit > 0 ? rate / limit : 0;
  const text = limit > 0 ? `${bytes(rate)}/s of ${bytes(limit)}/s` : `${bytes(rate)}/s`;
  return h("div", { class: "rate" }, figure(name, text),
    limit > 0 ? gauge(share, kind, `${percent(share)} of the measured rate`) : null);
}

// A link and the worker at its end.
function way(engine, worker, counted, seconds, index) {
  const perSecond = (value) => (seconds > 0 ? value / seconds : 0);
  const linkRate = worker.link_rate_together || worker.link_rate;
  const linkNow = perSecond(counted.bytes_shipped);
  const busy = Math.min(1, perSecond(counted.copy_busy_seconds));
  const link = h("div", { class: `link ${linkNow > 0 ? "moving" : ""}` },
    linkRate > 0 || worker.slots > 0
      ? [rateGauge("link", linkNow, linkRate, "shipped"), figure("copying", percent(busy))]
      : figure("link", "none: no slots"));
  const ready = worker.state === "ready";
  return h("div", { class: "way" }, link,
    h("div", { class: `box worker edge-${index % 8}` },
      h("h3", {}, `Worker ${worker.id}`, h("small", { class: ready ? "" : "bad" }, ready ? ` ${worker.device}` : ` ${worker.state}`)),
      places(counted, worker.experts),
      memory(worker),
      worker.slots > 0 && worker.slot_read_rate > 0
        ? rateGauge("reads slots, about", perSecond(counted.resident) * engine.model.expert_bytes, worker.slot_read_rate, "resident")
        : null,
      figure("waited for copies / host", `${percent(share(counted.copy_wait_seconds, counted.compute_seconds))} / ` +
        percent(share(counted.host_wait_seconds, counted.compute_seconds)))));
}

const share = (part, total) => (total > 0 ? Math.min(1, part / total) : 0);

// Experts of the last seconds by place; while nothing runs, those since the start.
function places(recent, sinceStart) {
  const idle = recent.activated === 0;
  const counted = idle ? sinceStart : recent;
  const bar = h("span", { class: "gauge stacked" });
  const words = [];
  for (const [kind, name] of kPlaces) {
    const part = share(counted[kind], counted.activated);
    const piece = h("span", { class: `fill ${kind}` });
    piece.style.width = `${100 * part}%`;
    bar.append(piece);
    words.push(`${percent(part)} ${name}`);
  }
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", words.join(", "));
  bar.title = words.join(", ");
  const found = share(counted.resident, counted.activated);
  return h("div", { class: "rate" },
    figure(idle ? "experts since the start" : "experts now", counted.activated > 0 ? `${percent(found)} found in slots` : "none yet"), bar);
}

function memory(worker) {
  const parts = [["dense", "dense weights", worker.dense_bytes], ["kv", "KV cache", worker.kv_bytes],
    ["resident", `${count.format(worker.slots)} expert slots`, worker.slots * worker.slot_bytes]];
  const total = parts.reduce((sum, part) => sum + part[2], 0);
  const bar = h("span", { class: "gauge stacked", role: "img" });
  for (const [kind, , size] of parts) {
    const piece = h("span", { class: `fill ${kind}` });
    piece.style.width = `${100 * share(size, total)}%`;
    bar.append(piece);
  }
  const words = parts.map(([, name, size]) => `${name} ${bytes(size)}`).join(", ");
  bar.setAttribute("aria-label", words);
  bar.title = words;
  return h("div", { class: "rate" }, figure("memory", words), bar);
}

function footer({ model, version, load_seconds: load, tokens: totals }) {
  return h("p", { class: "room-note" },
    `${model.name}: ${model.layers} layers, ${model.experts} experts of which ${model.experts_per_token} are used by a token, ` +
    `${bytes(model.all_expert_bytes)} of experts, context ${count.format(model.context)}. ` +
    `Ferry ${version} loaded it in ${load.toFixed(1)} s and has read ${count.format(totals.prompt_total)} and written ` +
    `${count.format(totals.generated_total)} tokens.`);
}
