// The dialog of sampling fields, system prompt and key.

import { apiKey, setApiKey } from "./api.js";
import { byId } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

const kNumbers = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];
const kTexts = ["system", "reasoning_effort"];

let settings = loadSettings();
export const systemPrompt = () => settings.system ?? "";

// What a request says; a field that is not set keeps the server's default.
export function samplingFields() {
  const fields = {};
  for (const name of [...kNumbers, "reasoning_effort"]) {
    if (settings[name] !== undefined && settings[name] !== "") fields[name] = settings[name];
  }
  return fields;
}

function fill() {
  for (const name of [...kNumbers, ...kTexts]) byId(name).value = settings[name] ?? "";
  byId("key").value = apiKey();
}

function readFields() {
  settings = {};
  for (const name of kNumbers) {
    const input = byId(name);
    if (input.value !== "" && input.validity.valid) settings[name] = input.valueAsNumber;
  }
  for (const name of kTexts) if (byId(name).value) settings[name] = byId(name).value;
  saveSettings(settings);
}

export function openSettings(focus) {
  fill();
  byId("settings").showModal();
  if (focus) byId(focus).focus();
}

// `onKey` is called when the key has changed.
export function startSettings(onKey) {
  byId("open-settings").addEventListener("click", () => openSettings());
  byId("settings").addEventListener("close", () => {
    readFields();
    const key = byId("key").value.trim();
    if (key === apiKey()) return;
    setApiKey(key);
    onKey();
  });
  byId("reset-settings").addEventListener("click", () => {
    settings = {};
    saveSettings(settings);
    fill();
  });
}
