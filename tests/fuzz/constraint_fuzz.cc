// Schemas, regular expressions and GBNF as an attacker would write them.
//
// Byte 0 chooses the front end. What it takes and the compiler takes must answer a walk through its masks: a token that a mask
// allows is accepted, and a mask without tokens means that the text may end.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "coordinator/constraint/constraint.h"
#include "coordinator/constraint/matcher.h"
#include "tests/coordinator/constraint/constraint_testing.h"

namespace ferry::constraint {
namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

void Fuzz(ConstraintKind kind, std::string_view text) {
  static const SmallVocabulary vocabulary;
  ConstraintCompiler compiler(&vocabulary);
  const auto grammar = compiler.Compile({.kind = kind, .text = std::string(text), .choices = {std::string(text)}});
  if (!grammar.ok()) {
    Require(!grammar.status().message().empty());
    return;
  }
  Matcher matcher(*grammar);
  for (size_t step = 0; step < 24; ++step) {
    const absl::StatusOr<const TokenMask*> mask = matcher.Mask();
    if (!mask.ok()) return;  // too ambiguous
    const int32_t count = (*mask)->Count();
    Require(count > 0 || matcher.CanEnd());
    if (count == 0) return;
    int32_t skip = text.empty() ? 0 : static_cast<uint8_t>(text[step % text.size()]) % count;
    int32_t id = 0;
    while (!(*mask)->Allows(id) || skip-- > 0) ++id;
    Require(matcher.Accept(id).ok());
  }
}

}  // namespace
}  // namespace ferry::constraint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using ferry::constraint::ConstraintKind;
  if (size == 0 || size > 4096) return 0;
  constexpr ConstraintKind kKinds[] = {ConstraintKind::kJsonSchema, ConstraintKind::kRegex, ConstraintKind::kGbnf,
                                       ConstraintKind::kChoice};
  ferry::constraint::Fuzz(kKinds[bytes[0] % 4], {reinterpret_cast<const char*>(bytes) + 1, size - 1});
  return 0;
}
