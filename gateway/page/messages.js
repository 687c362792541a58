// Messages as elements.

import { copyButton } from "./code.js";
import { h } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// `resend(text)` replaces the message and what followed it.
export function userMessage(message, resend) {
  const body = h("div", { class: "text" }, message.content);
  const edit = h("button", { type: "button", class: "quiet" }, "Edit");
  const article = h("article", { class: "user" }, body, h("p", { class: "tools" }, edit, copyButton(() => message.content)));
  edit.addEventListener("click", () => {
    const field = h("textarea", { rows: Math.min(12, message.content.split("\n").length + 1), "aria-label": "Edit the message" });
    field.value = message.content;
    const back = () => form.replaceWith(article);
    const form = h("form", { class: "user edit" }, field,
      h("p", { class: "tools" }, h("button", { type: "button", class: "quiet", onclick: back }, "Cancel"),
        h("button", { type: "submit" }, "Send again")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim() !== "") resend(field.value);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    article.replaceWith(form);
    field.focus();
  });
  return article;
}

// An answer that may still grow: change the message, then call update.
export class Answer {
  constructor(message, { regenerate, grew }) {
    this.message = message;
    this.grew = grew;
    this.reasoning = h("div", { class: "text" });
    this.summary = h("summary", {}, "Reasoning");
    this.folded = h("details", { class: "reasoning", hidden: true }, this.summary, this.reasoning);
    this.content = h("div", { class: "text markdown" });
    this.meter = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Prompt read" });
    this.note = h("p", { class: "note", hidden: true });
    this.stats = h("span", { class: "stats" });
    this.buttons = h("span", { class: "buttons" }, copyButton(() => message.content),
      h("button", { type: "button", class: "quiet", onclick: regenerate }, "Regenerate"));
    this.element = h("article", { class: "assistant" }, this.meter, this.folded, this.content, this.note,
      h("p", { class: "tools" }, this.buttons, this.stats));
    this.draw(false);
  }

  // Draws before the next frame: tokens may come faster than frames.
  update(growing) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw(growing);
      this.grew();
    });
  }

  draw(growing) {
    const { message } = this;
    this.element.classList.toggle("growing", growing);
    this.buttons.hidden = growing;
    this.folded.hidden = !message.reasoning;
    this.summary.textContent = growing && !message.content ? "Reasoning…" : "Reasoning";
    if (message.reasoning) showMarkdown(this.reasoning, message.reasoning);
    showMarkdown(this.content, message.content);
    this.drawProgress(growing);
    const remark = message.error ?? message.note;
    this.note.hidden = !remark;
    this.note.textContent = remark ?? "";
    this.note.classList.toggle("error", Boolean(message.error));
    this.stats.textContent = describe(message);
    if (message.stats) this.stats.title = detail(message.stats);
  }

  drawProgress(growing) {
    const { progress, live } = this.message;
    this.meter.hidden = !growing || Boolean(live) || !progress;
    if (progress) this.meter.value = progress.processed / Math.max(1, progress.total);
  }
}

function describe({ live, progress, stats }) {
  if (stats?.tokens) return `${number.format(stats.perSecond)} tokens/s · ${whole.format(stats.tokens)} tokens`;
  if (live && live.seconds > 0.2) return `${number.format(live.tokens / live.seconds)} tokens/s`;
  if (progress && !live) return `reading the prompt: ${whole.format(progress.processed)} of ${whole.format(progress.total)} tokens`;
  return "";
}

function detail({ prompt, cached, promptPerSecond, seconds }) {
  const parts = [];
  if (prompt) parts.push(`${whole.format(prompt)} tokens of prompt${cached ? `, ${whole.format(cached)} of them kept from before` : ""}`);
  if (promptPerSecond) parts.push(`read at ${whole.format(promptPerSecond)} tokens/s`);
  parts.push(`${number.format(seconds)} s in all`);
  return parts.join(", ");
}
