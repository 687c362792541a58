// Code with a button that copies it, and its words coloured by kind. One small set of rules serves all languages: comments,
// strings, numbers, and words that many languages reserve.

import { h } from "./dom.js";

const kWords = new Set(
  ("abstract and as assert async await auto bool boolean break case catch char class const constexpr continue def default del do " +
   "double elif else enum except export extends extern false finally float fn for from func function global go if impl implements " +
   "import in include int interface is lambda let long loop match mod module mut namespace new nil None not null nullptr of or " +
   "package pass private protected pub public raise ref return select self short signed sizeof static struct super switch template " +
   "then this throw trait true True False try type typedef typename union unsigned use using var virtual void where while with yield")
    .split(" "));
const kHashComments = /^(py|python|sh|bash|zsh|shell|console|rb|ruby|yaml|yml|toml|r|perl|make|makefile|cmake|dockerfile|ini|conf)$/i;
const kDashComments = /^(sql|lua|hs|haskell|ada|elm)$/i;
const kMaxColoured = 50000;  // characters

function patternFor(language) {
  const line = kHashComments.test(language) ? "#[^\\n]*" : kDashComments.test(language) ? "--[^\\n]*" : "//[^\\n]*";
  return new RegExp(
    `(?<comment>${line}|/\\*[\\s\\S]*?(?:\\*/|$))` +
    "|(?<string>\"\"\"[\\s\\S]*?(?:\"\"\"|$)|\"(?:[^\"\\\\\\n]|\\\\.)*\"?|'(?:[^'\\\\\\n]|\\\\.)*'|`(?:[^`\\\\]|\\\\.)*`?)" +
    "|(?<number>\\b(?:0x[\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b)" +
    "|(?<word>[A-Za-z_][A-Za-z0-9_]*)", "g");
}

function coloured(text, language) {
  if (text.length > kMaxColoured || /^(text|txt|plain|markdown|md|)$/i.test(language)) return [text];
  const nodes = [];
  let plain = 0;
  for (const match of text.matchAll(patternFor(language))) {
    const { comment, string, number, word } = match.groups;
    const kind = comment ? "comment" : string ? "string" : number ? "number" : kWords.has(word) ? "word" : null;
    if (!kind) continue;
    if (match.index > plain) nodes.push(text.slice(plain, match.index));
    nodes.push(h("span", { class: `code-${kind}` }, match[0]));
    plain = match.index + match[0].length;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

export function copyButton(textOf, label = "Copy") {
  const button = h("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(textOf());  // browsers allow it on https and localhost alone
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

export function codeBlock(text, language) {
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, language || "text"), copyButton(() => text)),
    h("pre", { tabindex: "0" }, h("code", {}, ...coloured(text, language))));
}
