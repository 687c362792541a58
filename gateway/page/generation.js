// One answer of the model as a stream of parts, from conversations or, where the model has no chat template, from text alone.

import { getJson, streamJson } from "./api.js";
import { samplingFields, systemPrompt } from "./settings.js";

// A model without a template seldom ends by itself.
const kContinuationTokens = 200;

let canChat = null;

// {name, canChat} of the model that is served.
export async function loadModel() {
  const [models, props] = await Promise.all([getJson("v1/models"), getJson("props")]);
  canChat = props.can_chat;
  return { name: models.data[0].id, canChat };
}

// Text that goes on where the conversation ended: what was written and what the model added, in their order.
function continuationOf(messages) {
  let text = "";
  for (const { content } of messages) {
    const joins = text === "" || /\s$/.test(text) || /^[\s.,;:!?)]/.test(content);
    text += (joins ? "" : " ") + content;
  }
  return text;
}

// Without answers that came to nothing (refused, or stopped before the first word) and the questions before them.
const answered = (messages) =>
  messages.filter(({ content }, i) => {
    const next = messages[i + 1];
    return content !== "" && !(next?.role === "assistant" && next.content === "");
  });

function chatBody(messages) {
  const system = systemPrompt();
  const history = answered(messages).map(({ role, content }) => ({ role, content }));
  return { messages: system ? [{ role: "system", content: system }, ...history] : history };
}

// Yields {content}, {reasoning}, {progress: {processed, total}} and at the end {finish, usage, timings}.
export async function* generate(messages, signal) {
  if (canChat === null) await loadModel();
  const common = { stream: true, stream_options: { include_usage: true }, return_progress: true, ...samplingFields() };
  const [path, body] = canChat
    ? ["v1/chat/completions", chatBody(messages)]
    : ["v1/completions", { prompt: systemPrompt() + continuationOf(answered(messages)), max_tokens: kContinuationTokens }];
  const end = {};
  for await (const chunk of streamJson(path, { ...body, ...common }, signal)) {
    if (chunk.usage) end.usage = chunk.usage;
    if (chunk.timings) end.timings = chunk.timings;
    if (chunk.prompt_progress) yield { progress: chunk.prompt_progress };
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    if (choice.finish_reason) end.finish = choice.finish_reason;
    if (choice.delta?.reasoning_content) yield { reasoning: choice.delta.reasoning_content };
    const content = choice.text ?? choice.delta?.content;
    if (content) yield { content };
  }
  yield end;
}
