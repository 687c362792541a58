#pragma once

// JSON schemas as grammars: every text of the grammar is JSON that the schema accepts. The reverse does not hold, as texts
// are written one way where JSON has many:
//   - properties come in the schema's order; without additionalProperties there are none but those that are declared (an
//     object without declared ones has any)
//   - a keyword for one type, without `type`, means that type (minLength: a string)
//   - white space and digits are bounded (json_terms.h); integers have no exponent, numbers none beside bounds
//   - oneOf is read as anyOf
//   - format is honoured, with fewer texts than its RFC has
// Known keywords: type, enum, const, anyOf, oneOf, allOf, $ref (within the schema, recursive or not), $defs, definitions,
// properties, required, additionalProperties, items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format,
// minimum, maximum, exclusiveMinimum, exclusiveMaximum, nullable; and those that only describe, which are ignored.

#include <string_view>

#include "common/status.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

inline constexpr size_t kMaxSchemaBytes = 512 * 1024;

// InvalidArgument, with the JSON pointer of the place: text that is not JSON, a keyword that is not known or of a wrong type,
// a combination that is not supported, a reference to nowhere, nesting deeper than 64, more than 20,000 subschemas after
// allOf is merged.
absl::StatusOr<Grammar> ParseJsonSchema(std::string_view text);

// Any JSON object.
Grammar JsonObjectGrammar();

}  // namespace ferry::constraint
