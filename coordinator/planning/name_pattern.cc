#define PCRE2_CODE_UNIT_WIDTH 8
#include "coordinator/planning/name_pattern.h"

#include <pcre2.h>

#include "coordinator/text/pcre2_message.h"

namespace ferry {
namespace {

constexpr uint32_t kMostSteps = 1'000'000, kMostKibibytes = 20'000;

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

void NamePattern::FreeCode::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }

absl::StatusOr<NamePattern> NamePattern::Create(const std::string& text) {
  int error = 0;
  size_t at = 0;
  pcre2_code* const code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_NEVER_UTF, &error, &at, nullptr);
  if (code == nullptr) return InvalidArgument("not a regular expression: %s, at character %d", Pcre2Message(error), at);
  return NamePattern(code);
}

absl::StatusOr<bool> NamePattern::Finds(const std::string& name) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatch> context(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), kMostSteps);
  pcre2_set_heap_limit(context.get(), kMostKibibytes);
  const int result = pcre2_match(static_cast<const pcre2_code*>(code_.get()), reinterpret_cast<PCRE2_SPTR>(name.data()),
                                 name.size(), 0, 0, match.get(), context.get());
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result >= 0) return true;
  return InvalidArgument("the regular expression takes too long for the name %s: %s", name, Pcre2Message(result));
}

}  // namespace ferry
