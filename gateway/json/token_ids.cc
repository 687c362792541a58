#include "gateway/json/token_ids.h"

namespace ferry {

absl::StatusOr<std::vector<uint32_t>> TokenIdsOf(const Json& value, const std::string& field) {
  if (!value.is_array()) return FieldError(field, field + " is " + DescribeType(value) + ", want an array of token ids");
  std::vector<uint32_t> ids;
  ids.reserve(value.size());
  for (const Json& entry : value) {
    if (!entry.is_number_integer() || entry < 0 || entry > UINT32_MAX) {
      return FieldError(field, absl::StrFormat("%s[%d] is not a token id", field, ids.size()));
    }
    ids.push_back(entry.get<uint32_t>());
  }
  return ids;
}

}  // namespace ferry
