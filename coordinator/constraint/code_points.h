#pragma once

// Sets of Unicode characters and how they are written in bytes.

#include <cstdint>
#include <vector>

#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

inline constexpr uint32_t kMaxCodePoint = 0x10FFFF;

struct CodePointRange {
  uint32_t first, last;  // inclusive
};

// Scalar values only: surrogates are dropped when the set is written in bytes.
class CodePointSet {
 public:
  CodePointSet() = default;
  CodePointSet(std::initializer_list<CodePointRange> ranges) : CodePointSet(std::vector<CodePointRange>(ranges)) {}
  explicit CodePointSet(std::vector<CodePointRange> ranges);  // in any order; they may overlap
  CodePointSet Complement() const;                            // within [0, kMaxCodePoint]
  CodePointSet Intersect(const CodePointSet& other) const;
  bool Contains(uint32_t code_point) const;
  const std::vector<CodePointRange>& ranges() const { return ranges_; }  // ascending, apart

 private:
  void Normalise();
  std::vector<CodePointRange> ranges_;
};

enum class TextForm {
  kPlain,       // as UTF-8
  kJsonString,  // as between the quotes of a JSON string: UTF-8, and the shortest escape where JSON demands one
};

// One character of the set, in bytes.
ExprId OneOf(Grammar* grammar, const CodePointSet& set, TextForm form);

}  // namespace ferry::constraint
