// What runs now, request by request, and how often each expert was not found in a slot.

import { h } from "./dom.js";

const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function runningRequests({ requests, more_requests: more }) {
  if (requests.length === 0) return h("p", { class: "room-note" }, "Nothing runs.");
  return h("div", { class: "running" }, ...requests.map(request),
    more > 0 ? h("p", { class: "room-note" }, `and ${count.format(more)} more`) : null);
}

// The prompt's part that was cached, the part that was computed, and how many tokens were written.
function request({ id, key, prompt, cached, computed, generated, seconds }) {
  const words = prompt === 0 ? "waits to be tokenized"
    : computed < prompt ? `${count.format(computed)} of ${count.format(prompt)} tokens of the prompt`
    : `${count.format(generated)} tokens written behind ${count.format(prompt)}`;
  const bar = h("span", { class: "gauge stacked", role: "progressbar", "aria-label": "prompt", "aria-valuemin": 0,
    "aria-valuemax": prompt, "aria-valuenow": computed, title: `${count.format(cached)} tokens were cached` });
  for (const [kind, tokens] of [["resident", cached], ["kv", computed - cached]]) {
    const piece = h("span", { class: `fill ${kind}` });
    piece.style.width = `${prompt > 0 ? (100 * Math.max(0, tokens)) / prompt : 0}%`;
    bar.append(piece);
  }
  return h("div", { class: "request" },
    h("p", { class: "figure" }, h("span", {}, (id || "no id") + (key && key !== "-" ? ` of ${key}` : "")),
      h("span", {}, `${words}, ${seconds.toFixed(1)} s`)), bar);
}

// One row a layer, one cell an expert, the hotter the more often it was missed.
export function heatMap({ misses, most_misses: most }) {
  const experts = misses.length > 0 ? misses[0].heat.length / 2 : 0;
  if (most === 0 || experts === 0) return h("p", { class: "room-note" }, "Every expert was found in a slot so far.");
  const label = `${misses.length} layers from top to bottom, ${experts} experts from left to right; the hottest was missed ` +
    `${count.format(most)} times`;
  const canvas = h("canvas", { class: "heat", width: experts, height: misses.length, role: "img", "aria-label": label, title: label });
  const pixels = new ImageData(experts, misses.length);
  misses.forEach(({ heat }, row) => {
    for (let expert = 0; expert < experts; ++expert) {
      pixels.data.set(colour(parseInt(heat.slice(2 * expert, 2 * expert + 2), 16) / 255), 4 * (row * experts + expert));
    }
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return h("div", {}, canvas, h("p", { class: "room-note" }, label + "."));
}

// From nothing through red to yellow: legible on light and dark ground, and brighter where it is hotter for those who see no red.
function colour(share) {
  return [Math.round(150 + 105 * share), Math.round(30 + 190 * share * share), Math.round(60 * (1 - share)), Math.round(255 * Math.min(1, 0.06 + 1.2 * share))];
}
