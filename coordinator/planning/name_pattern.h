#pragma once

// A regular expression over the names of tensors. std::regex would do, but some patterns take it exponential time: `(.*)*x`.

#include <memory>
#include <string>

#include "common/status.h"

namespace ferry {

class NamePattern {
 public:
  // Perl's syntax. InvalidArgument: it is no regular expression.
  static absl::StatusOr<NamePattern> Create(const std::string& text);

  // Whether it matches anywhere in `name`. InvalidArgument: finding out takes more than a million steps.
  absl::StatusOr<bool> Finds(const std::string& name) const;

 private:
  struct FreeCode {
    void operator()(void* code) const;
  };
  explicit NamePattern(void* code) : code_(code) {}
  std::unique_ptr<void, FreeCode> code_;  // a pcre2_code
};

}  // namespace ferry
