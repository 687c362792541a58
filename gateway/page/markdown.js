// Markdown to elements. The text is a model's, so it is untrusted: every word becomes a text node, links lead only to http,
// https and mailto, and pictures are links, for nothing is fetched because a model said so.

import { codeBlock } from "./code.js";
import { h } from "./dom.js";

const kMaxDepth = 8;  // of lists and quotes in each other
const kFence = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)/;
const kItem = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)(.*)/;
const kHeading = /^ {0,3}(#{1,6})\s(.*)$/;
const kRule = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const kDelimiterRow = /^ *\|?(?: *:?-+:? *\|)+ *:?-*:? *$/;

// The blocks of `text` as {source, build}: those whose source has not changed need not be built again.
export function blocksOf(text, depth = 0) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      ++at;
      continue;
    }
    const end = endOfBlock(lines, at);
    const part = lines.slice(at, end);
    blocks.push({ source: part.join("\n"), build: () => buildBlock(part, depth) });
    at = end;
  }
  return blocks;
}

function endOfBlock(lines, at) {
  const first = lines[at];
  const fence = kFence.exec(first);
  let end = at + 1;
  if (fence) {
    while (end < lines.length && !isClosing(lines[end], fence[1])) ++end;
    return Math.min(end + 1, lines.length);
  }
  if (kHeading.test(first) || kRule.test(first)) return end;
  if (kItem.test(first)) return endOfList(lines, at);
  if (first.trimStart().startsWith(">")) {
    while (end < lines.length && lines[end].trimStart().startsWith(">")) ++end;
    return end;
  }
  while (end < lines.length && lines[end].trim() !== "" && !beginsOther(lines[end])) ++end;
  return end;
}

const isClosing = (line, fence) => line.trim().length >= fence.length && line.trim() === fence[0].repeat(line.trim().length);
const beginsOther = (line) =>
  kFence.test(line) || kHeading.test(line) || kRule.test(line) || kItem.test(line) || line.trimStart().startsWith(">");

// A heading's text without the # behind it. (A pattern for this takes minutes for a line of thousands of spaces.)
function withoutClosing(text) {
  text = text.trim();
  let end = text.length;
  while (text[end - 1] === "#") --end;
  return text.slice(0, end).trimEnd();
}

const indentOf = (line) => line.length - line.trimStart().length;

// A list goes on over items of its kind, indented lines, and single empty lines between them.
function endOfList(lines, at) {
  const indent = kItem.exec(lines[at])[1].length;
  const ordered = /\d/.test(kItem.exec(lines[at])[2]);
  let end = at + 1;
  for (; end < lines.length; ++end) {
    const line = lines[end];
    if (line.trim() === "") {
      const next = lines[end + 1];
      if (next === undefined || !(indentOf(next) > indent || isItem(next, ordered))) break;
      continue;
    }
    const item = kItem.exec(line);
    if (item && item[1].length <= indent && /\d/.test(item[2]) !== ordered) break;
    if (kRule.test(line)) break;
    if (!item && indentOf(line) <= indent && (lines[end - 1].trim() === "" || beginsOther(line))) break;
  }
  return end;
}
function isItem(line, ordered) {
  const item = kItem.exec(line);
  return item !== null && /\d/.test(item[2]) === ordered;
}

function buildBlock(lines, depth) {
  const [first] = lines;
  const fence = kFence.exec(first);
  if (fence) {
    const closed = lines.length > 1 && isClosing(lines.at(-1), fence[1]);
    return codeBlock(lines.slice(1, closed ? -1 : undefined).join("\n"), fence[2]);
  }
  const heading = kHeading.exec(first);
  if (heading) return h(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inlineOf(withoutClosing(heading[2])));
  if (kRule.test(first)) return h("hr");
  if (depth < kMaxDepth && kItem.test(first)) return buildList(lines, depth);
  if (depth < kMaxDepth && first.trimStart().startsWith(">")) {
    return h("blockquote", {}, ...build(lines.map((line) => line.replace(/^ *> ?/, "")).join("\n"), depth + 1));
  }
  if (lines.length > 1 && first.includes("|") && kDelimiterRow.test(lines[1])) return buildTable(lines);
  return h("p", {}, ...inlineOf(lines.join("\n")));
}

const build = (text, depth) => blocksOf(text, depth).map((block) => block.build());

function buildList(lines, depth) {
  const head = kItem.exec(lines[0]);
  const indent = head[1].length;
  const ordered = /\d/.test(head[2]);
  const items = [];
  let inside = 0;
  for (const line of lines) {
    const item = kItem.exec(line);
    if (item && item[1].length <= indent + 1) {
      inside = item[1].length + item[2].length + 1;
      items.push([item[3]]);
    } else {
      items.at(-1).push(line.slice(Math.min(indentOf(line), inside)));
    }
  }
  const loose = lines.some((line) => line.trim() === "");
  const list = h(ordered ? "ol" : "ul", ordered ? { start: parseInt(head[2], 10) } : {});
  for (const item of items) {
    const children = build(item.join("\n"), depth + 1);
    const tight = !loose && children[0]?.tagName === "P";
    list.append(h("li", {}, ...(tight ? [...children[0].childNodes, ...children.slice(1)] : children)));
  }
  return list;
}

function buildTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const alignments = cells(lines[1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left");
  const row = (line, tag) =>
    h("tr", {}, ...cells(line).map((cell, i) => h(tag, { class: `align-${alignments[i] ?? "left"}` }, ...inlineOf(cell))));
  return h("div", { class: "table" },
    h("table", {}, h("thead", {}, row(lines[0], "th")), h("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
}

// Spans within a block, in the order in which they are tried at a place of the text.
const kSpans = [
  { pattern: /\\([!-/:-@[-`{-~])/y, build: (match) => match[1] },
  { pattern: /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/y, build: (match) => h("code", {}, match[2].replace(/^ (.+) $/, "$1")) },
  { pattern: /!?\[((?:[^[\]\\]|\\.)*)\]\(\s{0,9}<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s{1,9}"[^"]*")?\s{0,9}\)/y, build: linkOf },
  { pattern: /<?(https?:\/\/[^\s<>"]*[^\s<>".,;:!?'*_~)\]])>?/y, build: (match) => anchor(match[1], [match[1]]) },
  { pattern: /\*\*(?=\S)((?:[^*\\]|\\.|\*(?!\*))*?\S)\*\*/y, build: (match, depth) => h("strong", {}, ...inlineOf(match[1], depth)) },
  { pattern: /(?<![\p{L}\p{N}])__(?=\S)((?:[^_\\]|\\.|_(?!_))*?\S)__(?![\p{L}\p{N}])/uy, build: (match, depth) => h("strong", {}, ...inlineOf(match[1], depth)) },
  { pattern: /\*(?=\S)((?:[^*\\]|\\.|\*\*[^*]*\*\*)*?\S)\*(?!\*)/y, build: (match, depth) => h("em", {}, ...inlineOf(match[1], depth)) },
  { pattern: /(?<![\p{L}\p{N}_])_(?=\S)((?:[^_\\]|\\.)*?\S)_(?![\p{L}\p{N}_])/uy, build: (match, depth) => h("em", {}, ...inlineOf(match[1], depth)) },
  { pattern: /~~(?=\S)([^~]*?\S)~~/y, build: (match, depth) => h("del", {}, ...inlineOf(match[1], depth)) },
  { pattern: /(?: {2,}|<br ?\/?>)\n?/y, build: (match) => (match[0].includes("\n") || match[0].startsWith("<") ? h("br") : match[0]) },
];
const kSpecial = /[\\`!\[<*_~h ]/g;
const kMaxSpanBytes = 20000;  // of a block that is searched for spans: the patterns take time that grows faster than the text

export function inlineOf(text, depth = 0) {
  if (depth > kMaxDepth || text.length > kMaxSpanBytes) return [text];
  const nodes = [];
  let plain = 0, at = 0;
  while (at < text.length) {
    kSpecial.lastIndex = at;
    const special = kSpecial.exec(text);
    if (!special) break;
    at = special.index;
    const found = spanAt(text, at);
    if (!found) {
      ++at;
      continue;
    }
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(found.span.build(found.match, depth + 1));
    at += found.match[0].length;
    plain = at;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

function spanAt(text, at) {
  for (const span of kSpans) {
    span.pattern.lastIndex = at;
    const match = span.pattern.exec(text);
    if (match) return { span, match };
  }
  return null;
}

function linkOf(match, depth) {
  const label = match[1] === "" ? [match[2]] : inlineOf(match[1], depth);
  return anchor(match[2], label) ?? match[0];
}

// null: the address is not one that a click may follow.
function anchor(address, label) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...label);
}

// Shows `text` in `element`, which showed an earlier state of it: blocks that are the same stay.
export function showMarkdown(element, text) {
  const blocks = blocksOf(text);
  const shown = element.shownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < shown.length && shown[same] === blocks[same].source) ++same;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const block of blocks.slice(same)) element.append(block.build());
  element.shownBlocks = blocks.map((block) => block.source);
}
