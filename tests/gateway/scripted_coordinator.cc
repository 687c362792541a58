// A coordinator for tests with other people's clients: it serves no model, and says what its prompt asks for.
//
//   scripted_coordinator PORT_FILE     ends when its standard input does
//
// Prompts are tokenised a byte a token, so a prompt that mentions "weather" and no tool's answer yet can be told from others.

#include <cstdio>
#include <fstream>
#include <iostream>

#include "tests/gateway/fake_coordinator.h"

namespace ferry {
namespace {

// A Qwen3-like template, shortened: what the parsers know a family by.
constexpr char kTemplate[] =
    "{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{ tool | tojson }}{%- endfor %}"
    "{{ '</tools> answer with <tool_call>\\n{\"name\": ..., \"arguments\": ...}\\n</tool_call><|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{ message.content }}{%- endif %}"
    "{%- if message.tool_calls %}{%- for call in message.tool_calls %}"
    "{{ '<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}{{ call.function.arguments | tojson }}{{ "
    "'}\\n</tool_call>' }}"
    "{%- endfor %}{%- endif %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}";

std::string TextOf(const v1::GenerateRequest& request) {
  std::string text = request.text();
  for (const uint32_t id : request.tokens().ids()) text.push_back(static_cast<char>(id));
  return text;
}

grpc::Status Speak(const v1::GenerateRequest& request, const std::function<bool(const v1::GenerateResponse&)>& write) {
  const std::string prompt = TextOf(request);
  // The clients' tests ask for these two constraints.
  const bool constrained = request.has_constraint();
  const bool must_call = request.constraint().ShortDebugString().find("<tool_call>") != std::string::npos;
  const bool calls = prompt.find("weather") != std::string::npos && prompt.find("<|im_start|>tool") == std::string::npos &&
                     prompt.find("get_weather") != std::string::npos;
  const bool goes_on = prompt.find("forever") != std::string::npos;
  const std::string answer =
      must_call     ? "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>"
      : constrained ? "{\"city\": \"Paris\", \"degrees\": 21}"
      : calls       ? "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>"
                    : "Hello there, friend.";
  uint32_t generated = 0;
  const uint32_t most = request.has_max_tokens() ? request.max_tokens() : 1000;
  v1::Finish::Reason reason = v1::Finish::STOP;
  for (size_t at = 0; goes_on || at < answer.size(); at += 4) {
    if (generated == most) {
      reason = v1::Finish::LENGTH;
      break;
    }
    ++generated;
    if (!write(FakeCoordinator::Saying(goes_on ? "more " : answer.substr(at, 4)))) return grpc::Status::CANCELLED;
    if (goes_on) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  v1::GenerateResponse last;
  last.mutable_finish()->set_reason(reason);
  last.mutable_finish()->set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
  last.mutable_finish()->set_generated_tokens(generated);
  write(last);
  return grpc::Status::OK;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: scripted_coordinator PORT_FILE\n");
    return 2;
  }
  ferry::FakeCoordinator coordinator;
  coordinator.SetScript(ferry::Speak);
  coordinator.SetModel("scripted", ferry::kTemplate);
  std::ofstream(std::string(argv[1])) << coordinator.address() << '\n';
  for (std::string line; std::getline(std::cin, line);) {
  }
  return 0;
}
