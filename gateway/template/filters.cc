// The filters of chat templates.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "gateway/template/context.h"
#include "gateway/template/known_names.h"
#include "gateway/template/operators.h"
#include "gateway/template/python_text.h"
#include "gateway/template/string_methods.h"

namespace ferry::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Filter = Result (*)(Context&, const Value&, Arguments&);

absl::StatusOr<MarkedString> TextOf(Context& context, const Value& value) { return ToText(value, &context.budget()); }

// --- JSON

Result ToJsonFilter(Context& context, const Value& value, Arguments& arguments) {
  JsonFormat format;
  ASSIGN_OR_RETURN(format.ensure_ascii, arguments.GetBool(0, "ensure_ascii", false));
  if (const Value* indent = arguments.Get(1, "indent"); indent != nullptr && !indent->IsNone()) {
    if (indent->IsInteger()) {
      if (indent->integer() > 32) return InvalidArgument("an indent of %d, at most 32 is allowed", indent->integer());
      format.indent = std::string(static_cast<size_t>(std::max<int64_t>(indent->integer(), 0)), ' ');
    } else if (indent->IsString() && indent->text().size() <= 32) {
      format.indent = std::string(indent->text());
    } else {
      return InvalidArgument("the argument 'indent' is an int or a short str");
    }
    format.item_separator = ",";
  }
  if (const Value* separators = arguments.Get(2, "separators"); separators != nullptr && !separators->IsNone()) {
    const List* list = separators->list();
    if (list == nullptr || list->items.size() != 2 || !list->items[0].IsString() || !list->items[1].IsString()) {
      return InvalidArgument("the argument 'separators' is a tuple of two strings");
    }
    format.item_separator = std::string(list->items[0].text());
    format.key_separator = std::string(list->items[1].text());
  }
  ASSIGN_OR_RETURN(format.sort_keys, arguments.GetBool(3, "sort_keys", false));
  ASSIGN_OR_RETURN(MarkedString text, ToJson(value, format, &context.budget()));
  return context.heap.String(std::move(text));
}

// If a user wrote any part of the text, the whole value counts as the user's.
Result FromJsonFilter(Context& context, const Value& value, Arguments&) {
  if (!value.IsString()) return InvalidArgument("a str is wanted, not a %s", value.TypeName());
  RETURN_IF_ERROR(context.budget().Step(static_cast<int64_t>(value.text().size() / 16)));
  const auto json = nlohmann::ordered_json::parse(value.text(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("the text is not JSON");
  return context.heap.FromJson(json, value.string()->AnyFromUser());
}

// --- texts

template <MarkedString (*change)(const MarkedString&)>
Result ChangeFilter(Context& context, const Value& value, Arguments&) {
  ASSIGN_OR_RETURN(const MarkedString text, TextOf(context, value));
  RETURN_IF_ERROR(context.budget().StepBytes(text.size() * 16));
  return context.heap.String(change(text));
}

Result StringFilter(Context& context, const Value& value, Arguments&) {
  if (value.IsString()) return value;
  ASSIGN_OR_RETURN(MarkedString text, TextOf(context, value));
  return context.heap.String(std::move(text));
}

Result TrimFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString text, TextOf(context, value));
  ASSIGN_OR_RETURN(const MarkedString* characters, arguments.GetString(0, "chars"));
  return context.heap.String(Strip(text, characters, Side::kBoth));
}

Result ReplaceFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString text, TextOf(context, value));
  ASSIGN_OR_RETURN(const MarkedString* from, arguments.GetString(0, "old"));
  ASSIGN_OR_RETURN(const MarkedString* to, arguments.GetString(1, "new"));
  if (from == nullptr || to == nullptr) return InvalidArgument("the old and the new text are wanted");
  const Value* count = arguments.Get(2, "count");
  if (count != nullptr && !count->IsNone() && !count->IsInteger()) return InvalidArgument("the argument 'count' is an int");
  const int64_t most = count == nullptr || count->IsNone() ? -1 : count->integer();
  ASSIGN_OR_RETURN(MarkedString replaced, Replace(text, *from, *to, most, &context.budget()));
  return context.heap.String(std::move(replaced));
}

Result IndentFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString text, TextOf(context, value));
  const Value* width = arguments.Get(0, "width");
  ASSIGN_OR_RETURN(const bool first, arguments.GetBool(1, "first", false));
  ASSIGN_OR_RETURN(const bool blank, arguments.GetBool(2, "blank", false));
  MarkedString indention("    ");
  if (width != nullptr && width->IsString()) {
    indention = *width->string();
  } else if (width != nullptr) {
    if (!width->IsInteger() || width->integer() > 256) return InvalidArgument("the argument 'width' is an int up to 256");
    indention = MarkedString(std::string(static_cast<size_t>(std::max<int64_t>(width->integer(), 0)), ' '));
  }
  MarkedString result;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.text().find('\n', begin), text.size());
    RETURN_IF_ERROR(context.budget().Step());
    RETURN_IF_ERROR(context.budget().CheckString(result.size() + indention.size()));
    if (begin == 0 ? first : blank || end > begin) result.Append(indention);
    result.AppendSlice(text, begin, std::min(end + 1, text.size()));
    begin = end + 1;
  }
  return context.heap.String(std::move(result));
}

Result JoinFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(context.heap, value));
  const Value* separator = arguments.Get(0, "d");
  if (const Value* attribute = arguments.Get(1, "attribute"); attribute != nullptr && !attribute->IsNone()) {
    for (Value& item : items) {
      ASSIGN_OR_RETURN(item, AttributePath(context.heap, item, *attribute));
    }
  }
  ASSIGN_OR_RETURN(const MarkedString between, TextOf(context, separator == nullptr ? Value() : *separator));
  ASSIGN_OR_RETURN(MarkedString text, Join(items, between, &context.budget()));
  return context.heap.String(std::move(text));
}

// --- numbers

Result IntFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const int64_t otherwise, arguments.GetInteger(0, "default", 0));
  constexpr double kLimit = 9.2e18;
  if (value.IsInteger()) return Value(value.integer());
  double number = 0;
  if (value.IsString()) {
    const MarkedString text = Strip(*value.string(), nullptr, Side::kBoth);
    RETURN_IF_ERROR(context.budget().StepBytes(text.size()));
    int64_t integer;
    const absl::string_view digits(text.text().data(), text.size());
    if (absl::SimpleAtoi(digits, &integer)) return Value(integer);
    if (!absl::SimpleAtod(digits, &number)) return Value(otherwise);
  } else if (value.IsNumber()) {
    number = value.number();
  } else {
    return Value(otherwise);
  }
  return Value(std::abs(number) < kLimit ? static_cast<int64_t>(number) : otherwise);
}

Result FloatFilter(Context&, const Value& value, Arguments& arguments) {
  const Value* given = arguments.Get(0, "default");
  const Value otherwise = given == nullptr ? Value(0.0) : *given;
  if (value.IsNumber()) return Value(value.number());
  if (!value.IsString()) return otherwise;
  const MarkedString text = Strip(*value.string(), nullptr, Side::kBoth);
  double number;
  return absl::SimpleAtod(absl::string_view(text.text().data(), text.size()), &number) ? Value(number) : otherwise;
}

Result AbsFilter(Context&, const Value& value, Arguments&) {
  if (!value.IsNumber()) return InvalidArgument("a number is wanted, not a %s", value.TypeName());
  if (value.IsInteger() && value.integer() >= 0) return Value(value.integer());
  return value.IsInteger() ? Negative(value) : Result(Value(std::abs(value.number())));
}

Result RoundFilter(Context&, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const int64_t precision, arguments.GetInteger(0, "precision", 0));
  ASSIGN_OR_RETURN(const MarkedString* method, arguments.GetString(1, "method"));
  if (!value.IsNumber() || precision < 0 || precision > 15)
    return InvalidArgument("a number and a precision from 0 to 15 are wanted");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const std::string_view how = method == nullptr ? "common" : method->text();
  if (how == "ceil") return Value(std::ceil(value.number() * scale) / scale);
  if (how == "floor") return Value(std::floor(value.number() * scale) / scale);
  if (how != "common") return InvalidArgument("the method is common, ceil or floor, not '%s'", how);
  // Python rounds the decimal digits of the number itself, half to even, as printf does.
  return Value(std::strtod(absl::StrFormat("%.*f", static_cast<int>(precision), value.number()).c_str(), nullptr));
}

Result SumFilter(Context& context, const Value& value, Arguments& arguments) {
  const Value *attribute = arguments.Get(0, "attribute"), *start = arguments.Get(1, "start");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context.heap, value));
  Value sum = start == nullptr ? Value(int64_t{0}) : *start;
  for (Value item : items) {
    if (attribute != nullptr && !attribute->IsNone()) {
      ASSIGN_OR_RETURN(item, AttributePath(context.heap, item, *attribute));
    }
    ASSIGN_OR_RETURN(sum, Arithmetic(context.heap, "+", sum, item));
  }
  return sum;
}

// --- lists and dicts

Result LengthFilter(Context&, const Value& value, Arguments&) {
  ASSIGN_OR_RETURN(const int64_t length, Length(value));
  return Value(length);
}

Result ListFilter(Context& context, const Value& value, Arguments&) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(context.heap, value));
  return context.heap.NewList(std::move(items));
}

template <bool last>
Result EndFilter(Context& context, const Value& value, Arguments&) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context.heap, value));
  return items.empty() ? Value() : last ? items.back() : items.front();
}

Result ReverseFilter(Context& context, const Value& value, Arguments&) {
  const Value step(int64_t{-1});
  if (value.IsString()) return Slice(context.heap, value, None(), None(), step);
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(context.heap, value));
  std::reverse(items.begin(), items.end());
  return context.heap.NewList(std::move(items));
}

Result ItemsFilter(Context& context, const Value& value, Arguments&) {
  if (value.IsUndefined()) return context.heap.NewList({});
  if (value.dict() == nullptr) return InvalidArgument("a dict is wanted, not a %s", value.TypeName());
  Arguments none;
  return CallMethod(context, value, "items", none);
}

Result DefaultFilter(Context& context, const Value& value, Arguments& arguments) {
  const Value* otherwise = arguments.Get(0, "default_value");
  ASSIGN_OR_RETURN(const bool boolean, arguments.GetBool(1, "boolean", false));
  if (!value.IsUndefined() && (!boolean || value.Truth())) return value;
  return otherwise == nullptr ? context.heap.String("") : Result(*otherwise);
}

Result SafeFilter(Context&, const Value& value, Arguments&) { return value; }

// A value to order or compare others by: the attribute, in lower case where it is a str and case does not matter.
absl::StatusOr<std::vector<std::pair<Value, Value>>> WithKeys(Context& context, const Value& value, const Value* attribute,
                                                              bool case_sensitive) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context.heap, value));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    Value key = item;
    if (attribute != nullptr && !attribute->IsNone()) {
      ASSIGN_OR_RETURN(key, AttributePath(context.heap, item, *attribute));
    }
    if (key.IsString() && !case_sensitive) {
      ASSIGN_OR_RETURN(key, context.heap.String(Lower(*key.string())));
    }
    keyed.emplace_back(std::move(key), item);
  }
  return keyed;
}

// Stable. The first error of a comparison ends it: from there on all are equal.
absl::Status SortByKeys(Context& context, bool reverse, std::vector<std::pair<Value, Value>>* keyed) {
  absl::Status status;
  std::stable_sort(keyed->begin(), keyed->end(), [&](const auto& a, const auto& b) {
    if (!status.ok()) return false;
    const absl::StatusOr<int> order = Order(a.first, b.first, &context.budget());
    if (!order.ok()) status = order.status();
    return order.ok() && (reverse ? *order > 0 : *order < 0);
  });
  return status;
}

Result SecondsOf(Context& context, std::vector<std::pair<Value, Value>> keyed) {
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return context.heap.NewList(std::move(items));
}

Result SortFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const bool reverse, arguments.GetBool(0, "reverse", false));
  ASSIGN_OR_RETURN(const bool case_sensitive, arguments.GetBool(1, "case_sensitive", false));
  ASSIGN_OR_RETURN(auto keyed, WithKeys(context, value, arguments.Get(2, "attribute"), case_sensitive));
  RETURN_IF_ERROR(SortByKeys(context, reverse, &keyed));
  return SecondsOf(context, std::move(keyed));
}

Result DictSortFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const bool case_sensitive, arguments.GetBool(0, "case_sensitive", false));
  ASSIGN_OR_RETURN(const MarkedString* by, arguments.GetString(1, "by"));
  ASSIGN_OR_RETURN(const bool reverse, arguments.GetBool(2, "reverse", false));
  Arguments none;
  ASSIGN_OR_RETURN(const Value items, ItemsFilter(context, value, none));
  const Value place(int64_t{by != nullptr && by->text() == "value" ? 1 : 0});
  ASSIGN_OR_RETURN(auto keyed, WithKeys(context, items, &place, case_sensitive));
  RETURN_IF_ERROR(SortByKeys(context, reverse, &keyed));
  return SecondsOf(context, std::move(keyed));
}

Result UniqueFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const bool case_sensitive, arguments.GetBool(0, "case_sensitive", false));
  ASSIGN_OR_RETURN(auto keyed, WithKeys(context, value, arguments.Get(1, "attribute"), case_sensitive));
  Dict seen;
  std::vector<Value> items;
  for (auto& [key, item] : keyed) {
    if (!Dict::CanBeKey(key)) return InvalidArgument("a %s cannot be looked up", key.TypeName());
    if (seen.Find(key) != nullptr) continue;
    seen.Set(key, Value(true));
    items.push_back(std::move(item));
  }
  return context.heap.NewList(std::move(items));
}

template <bool largest>
Result ExtremeFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const bool case_sensitive, arguments.GetBool(0, "case_sensitive", false));
  ASSIGN_OR_RETURN(const auto keyed, WithKeys(context, value, arguments.Get(1, "attribute"), case_sensitive));
  if (keyed.empty()) return Value();
  const std::pair<Value, Value>* best = &keyed[0];
  for (const auto& candidate : keyed) {
    ASSIGN_OR_RETURN(const int order, Order(candidate.first, best->first, &context.budget()));
    if (largest ? order > 0 : order < 0) best = &candidate;
  }
  return best->second;
}

Result MapFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context.heap, value));
  std::vector<Value> mapped;
  if (arguments.positional().empty()) {
    const Value *attribute = arguments.Get(0, "attribute"), *otherwise = arguments.Get(1, "default");
    if (attribute == nullptr) return InvalidArgument("the name of a filter, or attribute=, is wanted");
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value found, AttributePath(context.heap, item, *attribute));
      mapped.push_back(found.IsUndefined() && otherwise != nullptr ? *otherwise : std::move(found));
    }
    return context.heap.NewList(std::move(mapped));
  }
  ASSIGN_OR_RETURN(const MarkedString* name, arguments.GetString(0, "filter"));
  if (name == nullptr || name->text() == "map") return InvalidArgument("the name of another filter is wanted");
  for (const Value& item : items) {
    RETURN_IF_ERROR(context.budget().Step());
    Arguments rest = arguments.Without(1);
    ASSIGN_OR_RETURN(Value result, ApplyFilter(context, name->text(), item, rest));
    RETURN_IF_ERROR(rest.CheckAllUsed());
    mapped.push_back(std::move(result));
  }
  arguments.UseAllPositional();
  arguments.UseKeywords();
  return context.heap.NewList(std::move(mapped));
}

// select, reject, selectattr, rejectattr: items for which a test (or their truth) holds or does not.
template <bool keep, bool by_attribute>
Result SelectFilter(Context& context, const Value& value, Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(context.heap, value));
  const Value* attribute = by_attribute ? arguments.Get(0) : nullptr;
  if (by_attribute && attribute == nullptr) return InvalidArgument("the name of an attribute is wanted");
  constexpr size_t kTestPlace = by_attribute ? 1 : 0;
  ASSIGN_OR_RETURN(const MarkedString* test, arguments.GetString(kTestPlace, ""));
  std::vector<Value> chosen;
  for (const Value& item : items) {
    RETURN_IF_ERROR(context.budget().Step());
    Value tested = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(tested, AttributePath(context.heap, item, *attribute));
    }
    bool holds = tested.Truth();
    if (test != nullptr) {
      Arguments rest = arguments.Without(kTestPlace + 1);
      ASSIGN_OR_RETURN(holds, ApplyTest(context, test->text(), tested, rest));
      RETURN_IF_ERROR(rest.CheckAllUsed());
    }
    if (holds == keep) chosen.push_back(item);
  }
  arguments.UseAllPositional();
  arguments.UseKeywords();
  return context.heap.NewList(std::move(chosen));
}

struct NamedFilter {
  std::string_view name;
  Filter filter;
};
constexpr std::array<NamedFilter, 37> kFilters = {{
    {"tojson", ToJsonFilter},
    {"from_json", FromJsonFilter},
    {"fromjson", FromJsonFilter},
    {"string", StringFilter},
    {"upper", ChangeFilter<Upper>},
    {"lower", ChangeFilter<Lower>},
    {"capitalize", ChangeFilter<Capitalize>},
    {"title", ChangeFilter<Title>},
    {"trim", TrimFilter},
    {"replace", ReplaceFilter},
    {"indent", IndentFilter},
    {"join", JoinFilter},
    {"int", IntFilter},
    {"float", FloatFilter},
    {"abs", AbsFilter},
    {"round", RoundFilter},
    {"sum", SumFilter},
    {"length", LengthFilter},
    {"count", LengthFilter},
    {"list", ListFilter},
    {"first", EndFilter<false>},
    {"last", EndFilter<true>},
    {"reverse", ReverseFilter},
    {"items", ItemsFilter},
    {"default", DefaultFilter},
    {"d", DefaultFilter},
    {"safe", SafeFilter},
    {"sort", SortFilter},
    {"dictsort", DictSortFilter},
    {"unique", UniqueFilter},
    {"min", ExtremeFilter<false>},
    {"max", ExtremeFilter<true>},
    {"map", MapFilter},
    {"select", SelectFilter<true, false>},
    {"reject", SelectFilter<false, false>},
    {"selectattr", SelectFilter<true, true>},
    {"rejectattr", SelectFilter<false, true>},
}};

}  // namespace

bool IsFilter(std::string_view name) {
  return std::any_of(kFilters.begin(), kFilters.end(), [&](const NamedFilter& known) { return known.name == name; });
}

absl::StatusOr<Value> ApplyFilter(Context& context, std::string_view name, const Value& value, Arguments& arguments) {
  for (const NamedFilter& known : kFilters) {
    if (known.name == name) return known.filter(context, value, arguments);
  }
  return InvalidArgument("there is no filter '%s'", name);
}

}  // namespace ferry::jinja
