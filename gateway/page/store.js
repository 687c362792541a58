// Conversations and settings in this browser. A conversation is an entry of its own, so that two tabs do not overwrite each
// other's.

const kPrefix = "ferry.conversation.";
const kSettings = "ferry.settings";

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;  // no storage, or an entry that is not ours
  }
}

// False: the browser keeps nothing more.
function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const isText = (value) => typeof value === "string";
const isMessage = (message) => (message?.role === "user" || message?.role === "assistant") && isText(message.content);
const isConversation = (value) =>
  isText(value?.id) && isText(value.title) && Array.isArray(value.messages) && value.messages.every(isMessage);

// Newest first.
export function loadConversations() {
  let names = [];
  try {
    names = Object.keys(localStorage).filter((name) => name.startsWith(kPrefix));
  } catch {
    // storage is switched off: conversations live as long as the page
  }
  return names.map(read).filter(isConversation).sort((a, b) => b.updated - a.updated);
}

export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), title: "", updated: Date.now(), messages: [] };
}

export function saveConversation(conversation) {
  conversation.updated = Date.now();
  return write(kPrefix + conversation.id, conversation);
}

export function deleteConversation(conversation) {
  try {
    localStorage.removeItem(kPrefix + conversation.id);
  } catch {
    // nothing was kept
  }
}

export const loadSettings = () => read(kSettings) ?? {};
export const saveSettings = (settings) => write(kSettings, settings);
