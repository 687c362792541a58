// Outputs as a model may write them at its worst: every parser takes them, in tokens of any size, and its events are in
// order. Byte 0 chooses the parser; a byte from 0xF8 on is one of harmony's tokens.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/utf8.h"
#include "gateway/harmony/harmony_parser.h"
#include "gateway/parsers/json_calls.h"
#include "gateway/parsers/keyed_calls.h"
#include "gateway/parsers/section_calls.h"

namespace ferry {
namespace {

class NoTokens final : public SpecialTokens {
 public:
  std::optional<int32_t> Find(std::string_view) const override { return std::nullopt; }
};

constexpr int kFirstHarmonyByte = 0xF8;
constexpr HarmonyTokens kHarmony = {1, 2, 3, 4, 5, 6, 7};

std::unique_ptr<ToolCallSyntax> NewSyntax(int which) {
  switch (which) {
    case 0:
      return std::make_unique<NoToolCalls>();
    case 1:
      return std::make_unique<JsonCalls>();
    case 2:
      return std::make_unique<KeyedCalls>(QwenXmlTags(), Json::array());
    case 3:
      return std::make_unique<KeyedCalls>(GlmTags(), Json::array());
    case 4:
      return std::make_unique<SectionCalls>(DeepSeekTags());
    default:
      return std::make_unique<SectionCalls>(KimiTags());
  }
}

std::unique_ptr<OutputParser> NewParser(uint8_t choice) {
  constexpr int kParsers = 7;
  if (choice % kParsers == kParsers - 1) return std::make_unique<HarmonyParser>(kHarmony, std::set<std::string>{"add"});
  const TextParserOptions options = {.has_reasoning = (choice & 0x80) != 0, .starts_in_reasoning = (choice & 0x40) != 0};
  return std::make_unique<TextParser>(options, NewSyntax(choice % kParsers), NoTokens());
}

// A call ends before the next event of another kind, calls are counted, texts are whole and not empty.
class Order {
 public:
  void Check(const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) {
      const bool in_call = event.kind == OutputEvent::Kind::kToolCallArguments || event.kind == OutputEvent::Kind::kToolCallEnd;
      Require(in_call == open_);
      const bool has_text = event.kind != OutputEvent::Kind::kToolCallStart && event.kind != OutputEvent::Kind::kToolCallEnd;
      Require(has_text != event.text.empty() && IsValidUtf8(event.text));
      if (event.kind == OutputEvent::Kind::kToolCallStart) open_ = true;
      if (open_) Require(event.tool_call == calls_);
      if (event.kind == OutputEvent::Kind::kToolCallEnd) open_ = false, ++calls_;
    }
  }
  void CheckEnd() const { Require(!open_); }

 private:
  static void Require(bool holds) {
    if (!holds) std::abort();
  }
  bool open_ = false;
  int calls_ = 0;
};

void Fuzz(uint8_t choice, size_t token_bytes, std::string_view output) {
  const std::unique_ptr<OutputParser> parser = NewParser(choice);
  Order order;
  while (!output.empty()) {
    const auto first = static_cast<uint8_t>(output[0]);
    const bool special = first >= kFirstHarmonyByte;
    size_t size = 1;
    while (!special && size < token_bytes && size < output.size() && static_cast<uint8_t>(output[size]) < kFirstHarmonyByte)
      ++size;
    const OutputToken token = special ? OutputToken{first - kFirstHarmonyByte, ""} : OutputToken{100, output.substr(0, size)};
    order.Check(parser->Feed({&token, 1}));
    output.remove_prefix(size);
  }
  order.Check(parser->Finish());
  order.CheckEnd();
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  ferry::Fuzz(bytes[0], bytes[1] % 32 + 1u, std::string_view(reinterpret_cast<const char*>(bytes) + 2, size - 2));
  return 0;
}
