#include "gateway/template/operators.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "gateway/template/context.h"
#include "gateway/template/python_text.h"

namespace ferry::jinja {
namespace {

constexpr int kMaxDepth = 200;

absl::Status Mismatch(std::string_view op, const Value& left, const Value& right) {
  return InvalidArgument("'%s' does not take %s and %s", op, left.TypeName(), right.TypeName());
}

absl::Status Overflow(std::string_view op) { return InvalidArgument("the result of '%s' does not fit into 64 bits", op); }

// Python rounds quotients down, and remainders have the divisor's sign.
int64_t FloorQuotient(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0); }
int64_t FloorRemainder(int64_t a, int64_t b) { return a % b + (a % b != 0 && (a % b < 0) != (b < 0) ? b : 0); }

absl::StatusOr<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return InvalidArgument("0 has no negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  if (base == 1 || base == 0 || base == -1) return Value(exponent == 0 ? 1 : exponent % 2 == 0 ? base * base : base);
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(result, base, &result)) return Overflow("**");
  }
  return Value(result);
}

absl::StatusOr<Value> IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+"   ? __builtin_add_overflow(a, b, &result)
      : op == "-" ? __builtin_sub_overflow(a, b, &result)
                  : op == "*" && __builtin_mul_overflow(a, b, &result)) {
    return Overflow(op);
  }
  if (op == "+" || op == "-" || op == "*") return Value(result);
  if (op == "**") return IntegerPower(a, b);
  if (b == 0) return InvalidArgument("division by zero");
  if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) return op == "%" ? absl::StatusOr<Value>(Value(int64_t{0})) : IntegerArithmetic("*", a, -1);
  return Value(op == "//" ? FloorQuotient(a, b) : FloorRemainder(a, b));
}

absl::StatusOr<Value> FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0) return InvalidArgument("division by zero");
  if (op == "/") return Value(a / b);
  if (op == "//") return Value(std::floor(a / b));
  const double remainder = std::fmod(a, b);
  return Value(remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder);
}

absl::StatusOr<Value> Repeat(Heap& heap, const Value& sequence, int64_t times) {
  const size_t size = sequence.IsString() ? sequence.string()->size() : sequence.list()->items.size();
  times = size == 0 ? 0 : std::max<int64_t>(times, 0);
  if (static_cast<uint64_t>(times) > heap.budget().limits().output_bytes / std::max<size_t>(size, 1)) {
    return ResourceExhausted("the template repeats a %s too often", sequence.TypeName());
  }
  RETURN_IF_ERROR(heap.budget().Step(times));
  if (sequence.IsString()) {
    MarkedString text;
    for (int64_t i = 0; i < times; ++i) text.Append(*sequence.string());
    return heap.String(std::move(text));
  }
  ASSIGN_OR_RETURN(const Value result, heap.NewList({}, sequence.list()->is_tuple));
  for (int64_t i = 0; i < times; ++i) {
    for (size_t k = 0; k < size; ++k) RETURN_IF_ERROR(heap.Append(result.list(), sequence.list()->items[k]));
  }
  return result;
}

absl::StatusOr<Value> Joined(Heap& heap, const Value& left, const Value& right) {
  if (left.IsString()) {
    RETURN_IF_ERROR(heap.budget().CheckString(left.string()->size() + right.string()->size()));
    MarkedString text = *left.string();
    text.Append(*right.string());
    return heap.String(std::move(text));
  }
  std::vector<Value> items = left.list()->items;
  items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
  return heap.NewList(std::move(items), left.list()->is_tuple);
}

// An index from the end, as Python has it, as one from the beginning.
int64_t FromBeginning(int64_t index, int64_t size) { return index < 0 ? index + size : index; }

absl::StatusOr<Value> Element(Heap& heap, const Value& sequence, int64_t index) {
  if (sequence.list() != nullptr) {
    const std::vector<Value>& items = sequence.list()->items;
    index = FromBeginning(index, static_cast<int64_t>(items.size()));
    if (index < 0 || static_cast<size_t>(index) >= items.size()) return Value();
    return items[static_cast<size_t>(index)];
  }
  RETURN_IF_ERROR(heap.budget().StepBytes(sequence.string()->size()));
  const std::vector<size_t> offsets = CharacterOffsets(sequence.text());
  index = FromBeginning(index, static_cast<int64_t>(offsets.size()) - 1);
  if (index < 0 || static_cast<size_t>(index) + 1 >= offsets.size()) return Value();
  return heap.String(sequence.string()->Slice(offsets[static_cast<size_t>(index)], offsets[static_cast<size_t>(index) + 1]));
}

struct SliceRange {
  int64_t begin, step;
  size_t count;
};

// Python's slice.indices.
absl::StatusOr<SliceRange> ResolveSlice(const Value& begin, const Value& end, const Value& step, int64_t size) {
  for (const Value* bound : {&begin, &end, &step}) {
    if (!bound->IsNone() && !bound->IsInteger()) return InvalidArgument("a slice takes integers, not a %s", bound->TypeName());
  }
  const int64_t stride = step.IsNone() ? 1 : step.integer();
  if (stride == 0) return InvalidArgument("the step of a slice is 0");
  const int64_t lowest = stride > 0 ? 0 : -1, highest = stride > 0 ? size : size - 1;
  const auto bound = [&](const Value& value, int64_t otherwise) {
    return value.IsNone() ? otherwise : std::clamp(FromBeginning(value.integer(), size), lowest, highest);
  };
  const int64_t first = bound(begin, stride > 0 ? lowest : highest), last = bound(end, stride > 0 ? highest : lowest);
  const int64_t distance = stride > 0 ? last - first : first - last;
  if (distance <= 0) return SliceRange{first, stride, 0};
  // An unsigned stride, for there is no -INT64_MIN.
  const uint64_t pace = stride > 0 ? static_cast<uint64_t>(stride) : uint64_t{0} - static_cast<uint64_t>(stride);
  return SliceRange{first, stride, static_cast<size_t>((static_cast<uint64_t>(distance) - 1) / pace + 1)};
}

}  // namespace

absl::StatusOr<Value> Arithmetic(Heap& heap, std::string_view op, const Value& left, const Value& right) {
  if (left.IsInteger() && right.IsInteger()) return IntegerArithmetic(op, left.integer(), right.integer());
  if (left.IsNumber() && right.IsNumber()) return FloatArithmetic(op, left.number(), right.number());
  const auto is_sequence = [](const Value& value) { return value.IsString() || value.list() != nullptr; };
  if (op == "+" && is_sequence(left) && left.TypeName() == right.TypeName()) return Joined(heap, left, right);
  if (op == "*" && is_sequence(left) && right.IsInteger()) return Repeat(heap, left, right.integer());
  if (op == "*" && left.IsInteger() && is_sequence(right)) return Repeat(heap, right, left.integer());
  return Mismatch(op, left, right);
}

absl::StatusOr<Value> Negative(const Value& value) {
  if (value.IsInteger()) return IntegerArithmetic("-", 0, value.integer());
  if (value.IsNumber()) return Value(-value.number());
  return InvalidArgument("'-' does not take a %s", value.TypeName());
}

absl::StatusOr<bool> Equal(const Value& left, const Value& right, Budget* budget, int depth) {
  if (depth > kMaxDepth) return InvalidArgument("values that are compared lie more than %d levels within one another", kMaxDepth);
  RETURN_IF_ERROR(budget->Step());
  if (left.IsNumber() && right.IsNumber()) {
    return left.IsInteger() && right.IsInteger() ? left.integer() == right.integer() : left.number() == right.number();
  }
  if (left.TypeName() != right.TypeName()) return false;
  if (left.IsUndefined() || left.IsNone()) return true;
  if (left.IsString()) return left.text() == right.text();
  if (left.list() != nullptr) {
    const std::vector<Value>&a = left.list()->items, &b = right.list()->items;
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      ASSIGN_OR_RETURN(const bool equal, Equal(a[i], b[i], budget, depth + 1));
      if (!equal) return false;
    }
    return true;
  }
  if (left.dict() == nullptr || left.dict()->is_namespace()) {
    return left.dict() != nullptr && left.dict() == right.dict();
  }
  if (left.dict()->entries().size() != right.dict()->entries().size()) return false;
  for (const Dict::Entry& entry : left.dict()->entries()) {
    const Value* other = right.dict()->Find(entry.key);
    if (other == nullptr) return false;
    ASSIGN_OR_RETURN(const bool equal, Equal(entry.value, *other, budget, depth + 1));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<int> Order(const Value& left, const Value& right, Budget* budget, int depth) {
  RETURN_IF_ERROR(budget->Step());
  if (left.IsInteger() && right.IsInteger()) return left.integer() < right.integer() ? -1 : left.integer() > right.integer();
  if (left.IsNumber() && right.IsNumber()) return left.number() < right.number() ? -1 : left.number() > right.number();
  if (left.IsString() && right.IsString()) return left.text().compare(right.text());  // as code points are ordered
  if (left.list() != nullptr && left.TypeName() == right.TypeName() && depth < kMaxDepth) {
    const std::vector<Value>&a = left.list()->items, &b = right.list()->items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      ASSIGN_OR_RETURN(const bool equal, Equal(a[i], b[i], budget, depth + 1));
      if (!equal) return Order(a[i], b[i], budget, depth + 1);
    }
    return a.size() < b.size() ? -1 : a.size() > b.size();
  }
  return InvalidArgument("%s and %s have no order", left.TypeName(), right.TypeName());
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget) {
  if (container.IsUndefined()) return false;
  if (container.IsString()) {
    if (!item.IsString()) return InvalidArgument("'in' looks for a str in a str, not for a %s", item.TypeName());
    RETURN_IF_ERROR(budget->StepBytes(container.string()->size()));
    return FindText(container.text(), item.text()) != std::string_view::npos;
  }
  if (container.dict() != nullptr && !container.dict()->is_namespace()) return container.dict()->Find(item) != nullptr;
  if (container.list() == nullptr) return InvalidArgument("'in' does not look into a %s", container.TypeName());
  for (const Value& element : container.list()->items) {
    ASSIGN_OR_RETURN(const bool equal, Equal(element, item, budget));
    if (equal) return true;
  }
  return false;
}

absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value) {
  std::vector<Value> items;
  if (value.IsUndefined()) return items;
  if (value.list() != nullptr) {
    RETURN_IF_ERROR(heap.budget().Step(static_cast<int64_t>(value.list()->items.size() / 4)));
    return value.list()->items;
  }
  if (value.dict() != nullptr && !value.dict()->is_namespace()) {
    for (const Dict::Entry& entry : value.dict()->entries()) items.push_back(entry.key);
    return items;
  }
  if (!value.IsString()) return InvalidArgument("a %s cannot be iterated over", value.TypeName());
  const std::vector<size_t> offsets = CharacterOffsets(value.text());
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    ASSIGN_OR_RETURN(Value character, heap.String(value.string()->Slice(offsets[i], offsets[i + 1])));
    items.push_back(std::move(character));
    RETURN_IF_ERROR(heap.budget().Step());
  }
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value) {
  if (value.IsUndefined()) return 0;
  if (value.IsString()) return static_cast<int64_t>(CountCharacters(value.text()));
  if (value.list() != nullptr) return static_cast<int64_t>(value.list()->items.size());
  if (value.dict() != nullptr && !value.dict()->is_namespace()) return static_cast<int64_t>(value.dict()->entries().size());
  return InvalidArgument("a %s has no length", value.TypeName());
}

absl::StatusOr<Value> Subscript(Heap& heap, const Value& container, const Value& key) {
  if (container.IsUndefined()) return InvalidArgument("an undefined value has no elements");
  if (container.dict() != nullptr && !container.dict()->is_namespace()) {
    if (const Value* found = container.dict()->Find(key)) return *found;
  }
  if ((container.list() != nullptr || container.IsString()) && key.IsInteger()) return Element(heap, container, key.integer());
  if (key.IsString()) return Attribute(heap, container, key.text());
  return Value();
}

absl::StatusOr<Value> Attribute(Heap& heap, const Value& object, std::string_view name) {
  if (object.IsUndefined()) return InvalidArgument("an undefined value has no attribute '%s'", name);
  if (object.Is<const Loop*>()) return object.As<const Loop*>()->Attribute(name);
  if (HasMethod(object, name)) {
    return heap.NewCallable({.kind = Callable::Kind::kMethod, .name = std::string(name), .self = object});
  }
  if (object.dict() == nullptr) return Value();
  const Value* found = object.dict()->Find(name);
  return found == nullptr ? Value() : *found;
}

absl::StatusOr<Value> Slice(Heap& heap, const Value& container, const Value& begin, const Value& end, const Value& step) {
  if (container.list() != nullptr) {
    const std::vector<Value>& items = container.list()->items;
    ASSIGN_OR_RETURN(const SliceRange range, ResolveSlice(begin, end, step, static_cast<int64_t>(items.size())));
    std::vector<Value> chosen;
    for (size_t i = 0; i < range.count; ++i) {
      chosen.push_back(items[static_cast<size_t>(range.begin + static_cast<int64_t>(i) * range.step)]);
    }
    return heap.NewList(std::move(chosen), container.list()->is_tuple);
  }
  if (!container.IsString()) return InvalidArgument("a %s cannot be sliced", container.TypeName());
  RETURN_IF_ERROR(heap.budget().StepBytes(container.string()->size()));
  const std::vector<size_t> offsets = CharacterOffsets(container.text());
  ASSIGN_OR_RETURN(const SliceRange range, ResolveSlice(begin, end, step, static_cast<int64_t>(offsets.size()) - 1));
  if (range.step == 1) {
    const auto first = static_cast<size_t>(range.begin);
    return heap.String(range.count == 0 ? MarkedString()
                                        : container.string()->Slice(offsets[first], offsets[first + range.count]));
  }
  RETURN_IF_ERROR(heap.budget().Step(static_cast<int64_t>(range.count)));
  MarkedString text;
  for (size_t i = 0; i < range.count; ++i) {
    const auto at = static_cast<size_t>(range.begin + static_cast<int64_t>(i) * range.step);
    text.AppendSlice(*container.string(), offsets[at], offsets[at + 1]);
  }
  return heap.String(std::move(text));
}

absl::StatusOr<Value> AttributePath(Heap& heap, Value value, const Value& path) {
  if (path.IsInteger()) return Subscript(heap, value, path);
  if (!path.IsString()) return InvalidArgument("an attribute is named by a str or an int, not by a %s", path.TypeName());
  std::string_view rest = path.text();
  while (true) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view part = rest.substr(0, dot);
    int64_t index;
    if (absl::SimpleAtoi(absl::string_view(part.data(), part.size()), &index)) {
      ASSIGN_OR_RETURN(value, Subscript(heap, value, Value(index)));
    } else {
      // As Jinja's own filters look up, elements come first here.
      const Value* found = value.dict() != nullptr ? value.dict()->Find(part) : nullptr;
      if (found != nullptr) {
        value = Value(*found);
      } else {
        ASSIGN_OR_RETURN(value, Attribute(heap, value, part));
      }
    }
    if (dot == rest.size()) return value;
    rest.remove_prefix(dot + 1);
  }
}

}  // namespace ferry::jinja
