// The conversations of this browser: shown, gone on with, edited, stopped.

import { byId, announce, h } from "./dom.js";
import { generate } from "./generation.js";
import { Answer, userMessage } from "./messages.js";
import { openSettings } from "./settings.js";
import { deleteConversation, loadConversations, newConversation, saveConversation } from "./store.js";

const kTitleLength = 60;
const kNearEnd = 80;  // pixels: who reads further up is left there

let conversations = loadConversations();
let current = conversations[0] ?? newConversation();
const running = new Map();  // conversation id -> AbortController

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > kTitleLength ? `${line.slice(0, kTitleLength)}…` : line;
}

function keep(conversation) {
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  if (!saveConversation(conversation)) announce("The browser's storage is full: this conversation is lost when the page closes.");
}

// --- the list ---

function showList() {
  byId("conversations").replaceChildren(...conversations.map((conversation) => {
    const busy = running.has(conversation.id);
    const title = conversation.title || "New conversation";
    const remove = h("button", { class: "icon remove", "aria-label": `Delete ${title}`, title: "Delete" }, "✕");
    remove.addEventListener("click", () => {
      if (remove.dataset.sure) return drop(conversation);
      remove.dataset.sure = "yes";
      remove.textContent = "Delete?";
    });
    remove.addEventListener("blur", () => {
      delete remove.dataset.sure;
      remove.textContent = "✕";
    });
    return h("li", { class: conversation === current ? "current" : "" },
      h("button", { class: "open", "aria-current": conversation === current ? "true" : null, onclick: () => open(conversation) },
        (busy ? "● " : "") + title),
      remove);
  }));
}

function drop(conversation) {
  running.get(conversation.id)?.abort();
  deleteConversation(conversation);
  conversations = conversations.filter((other) => other !== conversation);
  if (conversation === current) current = conversations[0] ?? newConversation();
  show();
}

export function showMenu(opened) {
  document.body.classList.toggle("menu-open", opened);
  byId("menu").setAttribute("aria-expanded", String(opened));
}

function open(conversation) {
  current = conversation;
  showMenu(false);
  show();
  byId("composer-text").focus();
}

// --- the messages ---

const scroll = byId("scroll");
let follows = true;
scroll.addEventListener("scroll", () => {
  follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < kNearEnd;
});
function followEnd() {
  if (follows) scroll.scrollTop = scroll.scrollHeight;
}

function show() {
  showList();
  const parts = current.messages.map((message, index) =>
    message.role === "user"
      ? userMessage(message, (text) => resend(current, index, text))
      : answerOf(current, message, index).element);
  if (parts.length === 0) parts.push(welcome());
  byId("messages").replaceChildren(...parts);
  showBusy();
  follows = true;
  followEnd();
}

function welcome() {
  return h("div", { class: "welcome" }, h("h1", {}, "What shall we talk about?"),
    h("p", {}, "Conversations stay in this browser. Nothing but your messages leaves it, and they go to this server alone."));
}

function answerOf(conversation, message, index) {
  return new Answer(message, { regenerate: () => answer(conversation, index), grew: followEnd });
}

function showBusy() {
  const busy = running.has(current.id);
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("messages").classList.toggle("busy", busy);
}

// --- asking ---

function resend(conversation, index, text) {
  conversation.messages.length = index;
  ask(conversation, text);
}

function ask(conversation, text) {
  if (conversation.messages.length === 0) conversation.title = titleOf(text);
  conversation.messages.push({ role: "user", content: text });
  answer(conversation, conversation.messages.length);
}

// Asks for the answer at `index`; what stood there and behind it goes.
async function answer(conversation, index) {
  if (running.has(conversation.id)) return;
  conversation.messages.length = index;
  const history = conversation.messages.slice();
  const message = { role: "assistant", content: "", reasoning: "" };
  conversation.messages.push(message);
  keep(conversation);
  const abort = new AbortController();
  running.set(conversation.id, abort);
  if (conversation === current) show();
  let view = viewOf(conversation, message, index);
  const began = performance.now();
  let first = 0, parts = 0;
  try {
    for await (const part of generate(history, abort.signal)) {
      if (part.content || part.reasoning) {
        first ||= performance.now();
        ++parts;
        message.content += part.content ?? "";
        message.reasoning += part.reasoning ?? "";
        message.live = { tokens: parts, seconds: (performance.now() - first) / 1000 };
      } else if (part.progress) {
        message.progress = part.progress;
      } else {
        message.stats = statsOf(part, (performance.now() - began) / 1000);
        if (part.finish === "length") message.note = "The limit of tokens ended this answer.";
        if (part.finish === "tool_calls") message.note = "The model called a tool; this page offers none.";
      }
      if (!view.element.isConnected) view = viewOf(conversation, message, index);
      view.update(true);
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "Stopped.";
    else message.error = error.message + (error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "");
    if (error.status === 401) openSettings("key");
  } finally {
    running.delete(conversation.id);
    delete message.live;
    delete message.progress;
    if (conversations.includes(conversation)) keep(conversation);
    if (conversation === current) show();
    else showList();
  }
}

// The element of a message that grows; not shown while another conversation is.
function viewOf(conversation, message, index) {
  const view = answerOf(conversation, message, index);
  if (conversation === current) byId("messages").lastElementChild?.replaceWith(view.element);
  view.update(true);
  return view;
}

function statsOf({ usage, timings }, seconds) {
  const tokens = usage?.completion_tokens ?? timings?.predicted_n;
  return {
    tokens,
    perSecond: timings?.predicted_per_second ?? tokens / seconds,
    prompt: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
    promptPerSecond: timings?.prompt_per_second,
    seconds,
  };
}

// --- the composer ---

const text = byId("composer-text");
function fit() {
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight, window.innerHeight * 0.4)}px`;
}

function submit() {
  if (text.value.trim() === "" || running.has(current.id)) return;
  const message = text.value;
  text.value = "";
  fit();
  ask(current, message);
}

export function stopCurrent() {
  running.get(current.id)?.abort();
}
export function startNew() {
  open(current.messages.length === 0 ? current : newConversation());
}

export function startChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  text.addEventListener("input", fit);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("stop").addEventListener("click", stopCurrent);
  byId("new-chat").addEventListener("click", startNew);
  byId("menu").addEventListener("click", () => showMenu(!document.body.classList.contains("menu-open")));
  byId("chat-view").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) showMenu(false);  // beside the menu; style.css lets nothing else be clicked there
  });
  // Another tab has changed a conversation.
  window.addEventListener("storage", () => {
    if (running.size > 0) return;
    conversations = loadConversations();
    current = conversations.find((other) => other.id === current.id) ?? current;
    show();
  });
  show();
}
