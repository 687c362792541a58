// A small curve of a number over the last seconds.

const kWidth = 120, kHeight = 28;
const kSvg = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const element = document.createElementNS(kSvg, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// `history`: [{now, [name]: number or null}], oldest first. `top`: the value at the upper edge; without it, the largest.
export function curve(history, name, kind, top) {
  const element = svg("svg", { class: `curve ${kind}`, viewBox: `0 0 ${kWidth} ${kHeight}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const points = history.filter((point) => point[name] !== null);
  if (points.length < 2) return element;
  const highest = top ?? Math.max(1e-9, ...points.map((point) => point[name]));
  const begin = history[0].now, span = Math.max(1, history.at(-1).now - begin);
  const at = points.map((point) =>
    `${(kWidth * (point.now - begin) / span).toFixed(1)},${(kHeight - 1 - (kHeight - 2) * point[name] / highest).toFixed(1)}`);
  const first = at[0].split(",")[0], last = at.at(-1).split(",")[0];
  element.append(svg("path", { class: "area", d: `M${first},${kHeight}L${at.join("L")}L${last},${kHeight}Z` }),
    svg("path", { class: "line", d: `M${at.join("L")}`, "vector-effect": "non-scaling-stroke" }));
  return element;
}
