// Templates as an attacker would write them into a model file: each is refused, or renders within its limits.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "gateway/template/template.h"

namespace ferry::jinja {
namespace {

const nlohmann::ordered_json& Variables() {
  static const auto& variables = *new nlohmann::ordered_json(nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "h\u00e9 <|end|> \ud83d\ude00\n"},
                 {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, null, true]}}}]}],
    "tools": [{"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}}}],
    "s": "a,b,,c", "n": 7, "f": 1.5, "l": [3, 1, 2], "d": {"k": "v", "1": [{}]}})"));
  return variables;
}

void Fuzz(std::string_view source) {
  const auto parsed = Template::Parse(source);
  if (!parsed.ok()) return;
  const Limits limits = {.output_bytes = 1 << 20, .memory_bytes = 16 << 20, .steps = 100'000, .time = absl::Seconds(5)};
  const auto pieces = (*parsed)->Render({.from_user = Variables()}, absl::UnixEpoch(), limits);
  if (!pieces.ok()) return;
  size_t bytes = 0;
  for (size_t i = 0; i < pieces->size(); ++i) {
    bytes += (*pieces)[i].text.size();
    if ((*pieces)[i].text.empty() || (i > 0 && (*pieces)[i].from_user == (*pieces)[i - 1].from_user)) std::abort();
  }
  if (bytes > limits.output_bytes) std::abort();
}

}  // namespace
}  // namespace ferry::jinja

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  ferry::jinja::Fuzz(std::string_view(reinterpret_cast<const char*>(bytes), size));
  return 0;
}
