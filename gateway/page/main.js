// Ferry's page: two views, and what both need.

import { showMenu, startChat, startNew, stopCurrent } from "./chat.js";
import { byId } from "./dom.js";
import { startEngineRoom, stopEngineRoom } from "./engine.js";
import { loadModel } from "./generation.js";
import { openSettings, startSettings } from "./settings.js";

const kLookAgain = 5000;  // milliseconds

function showView() {
  const engine = location.hash === "#engine";
  byId("chat-view").hidden = engine;
  byId("engine-view").hidden = !engine;
  document.body.classList.toggle("in-engine", engine);
  for (const [tab, selected] of [["tab-chat", !engine], ["tab-engine", engine]]) {
    if (selected) byId(tab).setAttribute("aria-current", "page");
    else byId(tab).removeAttribute("aria-current");
  }
  if (engine) startEngineRoom(byId("engine-view"));
  else stopEngineRoom();
}

function showState(state, text) {
  byId("state").className = `state ${state}`;
  byId("state").textContent = text;
}

// Asks until the server answers with its model.
let looking = 0;
async function lookForModel() {
  clearTimeout(looking);
  try {
    const model = await loadModel();
    byId("model").textContent = model.name;
    byId("composer-text").placeholder = model.canChat ? "Write a message" : "Begin a text: this model goes on with it";
    showState("ready", "ready");
  } catch (error) {
    if (error.status === 401) {
      showState("failed", "needs a key");
      return;
    }
    showState("waiting", error.status === 503 ? "loading" : "no answer");
    looking = setTimeout(lookForModel, kLookAgain);
  }
}

function onKey(event) {
  const control = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && !byId("settings").open) {
    showMenu(false);
    stopCurrent();
  } else if (control && event.key === ",") {
    event.preventDefault();
    openSettings();
  } else if (control && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    location.hash = "#chat";
    startNew();
  } else if (event.key === "/" && document.activeElement === document.body && location.hash !== "#engine") {
    event.preventDefault();
    byId("composer-text").focus();
  }
}

startSettings(lookForModel);
startChat();
window.addEventListener("hashchange", showView);
window.addEventListener("keydown", onKey);
showView();
lookForModel();
