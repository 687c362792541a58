// Calls of this server. Paths are relative, so the page also works behind a proxy that adds a prefix.

const kKeyName = "ferry.key";

export function apiKey() {
  return sessionStorage.getItem(kKeyName) ?? "";
}
export function setApiKey(key) {
  if (key) sessionStorage.setItem(kKeyName, key);
  else sessionStorage.removeItem(kKeyName);
}

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function errorOf(response) {
  let message = response.statusText || `status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not JSON: a proxy's answer
  }
  return new ApiError(response.status, message, Number(response.headers.get("retry-after")) || undefined);
}

// The response, once its status says that it is an answer; ApiError otherwise.
async function call(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server cannot be reached");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

export async function getJson(path, signal) {
  return (await call(path, { signal })).json();
}

// The JSON of each event of a stream, until "[DONE]". An event with an error throws it.
export async function* streamJson(path, body, signal) {
  const response = await call(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "the connection ended before the answer did");
    unread += value;
    const lines = unread.split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length).trimEnd();
      if (data === "[DONE]") return;
      const json = JSON.parse(data);
      if (json.error) throw new ApiError(json.error.code ?? 500, json.error.message);
      yield json;
    }
  }
}
