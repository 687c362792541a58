// Elements without HTML text: whatever a model writes becomes a text node.

// h("a", {href: "x", class: "y", onclick: f}, child, "text"): children may be arrays; null and undefined are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function announce(text) {
  byId("hint").textContent = text;
}
