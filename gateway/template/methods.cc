// The methods of strings, lists and dicts that chat templates call.

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "gateway/template/context.h"
#include "gateway/template/operators.h"
#include "gateway/template/python_text.h"
#include "gateway/template/string_methods.h"

namespace ferry::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Method = Result (*)(Context&, const Value& self, Arguments&);
struct NamedMethod {
  std::string_view name;
  Method method;
};

absl::Status Missing(std::string_view what) { return InvalidArgument("an argument is missing: %s", what); }

absl::StatusOr<const MarkedString*> RequireString(Arguments& arguments, size_t position, std::string_view name) {
  ASSIGN_OR_RETURN(const MarkedString* text, arguments.GetString(position, name));
  if (text == nullptr) return Missing(name);
  return text;
}

// --- strings

template <Side side>
Result StripMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* characters, arguments.GetString(0, "chars"));
  return context.heap.String(Strip(*self.string(), characters, side));
}

template <MarkedString (*change)(const MarkedString&)>
Result ChangeMethod(Context& context, const Value& self, Arguments&) {
  return context.heap.String(change(*self.string()));
}

// Where the separators lie, at most `most`, looked for from the left or from the right; in order.
absl::StatusOr<std::vector<size_t>> FindSeparators(std::string_view text, std::string_view separator, int64_t most,
                                                   bool from_right, Budget* budget) {
  std::vector<size_t> found;
  // Looking from the right is not linear.
  if (from_right) RETURN_IF_ERROR(budget->StepBytes(text.size() * separator.size()));
  size_t at = from_right ? text.rfind(separator) : FindText(text, separator);
  while (at != std::string_view::npos && most-- != 0) {
    RETURN_IF_ERROR(budget->Step());
    found.push_back(at);
    if (!from_right) {
      at = FindText(text, separator, at + separator.size());
    } else {
      at = at < separator.size() ? std::string_view::npos : text.rfind(separator, at - separator.size());
    }
  }
  if (from_right) std::reverse(found.begin(), found.end());
  return found;
}

absl::Status AppendPart(Context& context, const Value& list, MarkedString part) {
  ASSIGN_OR_RETURN(Value text, context.heap.String(std::move(part)));
  return context.heap.Append(list.list(), std::move(text));
}

// At runs of white space; none at the ends.
Result SplitAtSpaces(Context& context, const MarkedString& text, int64_t most) {
  ASSIGN_OR_RETURN(const Value list, context.heap.NewList({}));
  const std::vector<size_t> offsets = CharacterOffsets(text.text());
  const size_t count = offsets.size() - 1;
  const auto space = [&](size_t i) { return IsSpace(CharacterAt(text.text(), offsets[i])); };
  for (size_t i = 0; i < count;) {
    RETURN_IF_ERROR(context.budget().Step());
    while (i < count && space(i)) ++i;
    if (i == count) break;
    size_t end = i;
    if (most-- == 0) {
      RETURN_IF_ERROR(AppendPart(context, list, Strip(text.Slice(offsets[i], text.size()), nullptr, Side::kRight)));
      break;
    }
    while (end < count && !space(end)) ++end;
    RETURN_IF_ERROR(AppendPart(context, list, text.Slice(offsets[i], offsets[end])));
    i = end;
  }
  return list;
}

template <bool from_right>
Result SplitMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* separator, arguments.GetString(0, "sep"));
  ASSIGN_OR_RETURN(const int64_t most, arguments.GetInteger(1, "maxsplit", -1));
  const MarkedString& text = *self.string();
  if (separator == nullptr) {
    if (from_right && most >= 0) return InvalidArgument("rsplit with maxsplit needs a separator");
    return SplitAtSpaces(context, text, most);
  }
  if (separator->empty()) return InvalidArgument("the separator is empty");
  RETURN_IF_ERROR(context.budget().StepBytes(text.size()));
  ASSIGN_OR_RETURN(const std::vector<size_t> separators,
                   FindSeparators(text.text(), separator->text(), most, from_right, &context.budget()));
  ASSIGN_OR_RETURN(const Value list, context.heap.NewList({}));
  size_t begin = 0;
  for (const size_t at : separators) {
    RETURN_IF_ERROR(AppendPart(context, list, text.Slice(begin, at)));
    begin = at + separator->size();
  }
  RETURN_IF_ERROR(AppendPart(context, list, text.Slice(begin, text.size())));
  return list;
}

Result SplitLines(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const bool keep, arguments.GetBool(0, "keepends", false));
  const MarkedString& text = *self.string();
  ASSIGN_OR_RETURN(const Value list, context.heap.NewList({}));
  for (size_t begin = 0; begin < text.size();) {
    RETURN_IF_ERROR(context.budget().Step());
    const size_t end = std::min(text.text().find_first_of("\n\r\v\f", begin), text.size());
    const size_t next = std::min(text.size(), end + (text.text().substr(end, 2) == "\r\n" ? 2 : 1));
    RETURN_IF_ERROR(AppendPart(context, list, text.Slice(begin, keep ? next : end)));
    begin = next;
  }
  return list;
}

// Whether the text begins or ends with a string, or with one of a tuple.
template <bool at_end>
Result HasAffix(Context&, const Value& self, Arguments& arguments) {
  const Value* affix = arguments.Get(0, at_end ? "suffix" : "prefix");
  if (affix == nullptr) return Missing("a str");
  const auto matches = [&](const Value& value) {
    return at_end ? self.text().ends_with(value.text()) : self.text().starts_with(value.text());
  };
  if (affix->IsString()) return Value(matches(*affix));
  if (affix->list() == nullptr) return InvalidArgument("a str or a tuple of them is wanted, not a %s", affix->TypeName());
  for (const Value& choice : affix->list()->items) {
    if (!choice.IsString()) return InvalidArgument("a str is wanted, not a %s", choice.TypeName());
    if (matches(choice)) return Value(true);
  }
  return Value(false);
}

template <bool at_end>
Result RemoveAffix(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* affix, RequireString(arguments, 0, at_end ? "suffix" : "prefix"));
  const MarkedString& text = *self.string();
  if (at_end ? !text.text().ends_with(affix->text()) : !text.text().starts_with(affix->text())) return self;
  return context.heap.String(at_end ? text.Slice(0, text.size() - affix->size()) : text.Slice(affix->size(), text.size()));
}

Result ReplaceMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* from, RequireString(arguments, 0, "old"));
  ASSIGN_OR_RETURN(const MarkedString* to, RequireString(arguments, 1, "new"));
  ASSIGN_OR_RETURN(const int64_t count, arguments.GetInteger(2, "count", -1));
  ASSIGN_OR_RETURN(MarkedString text, Replace(*self.string(), *from, *to, count, &context.budget()));
  return context.heap.String(std::move(text));
}

Result JoinMethod(Context& context, const Value& self, Arguments& arguments) {
  const Value* items = arguments.Get(0, "iterable");
  if (items == nullptr) return Missing("what is joined");
  ASSIGN_OR_RETURN(const std::vector<Value> values, Iterate(context.heap, *items));
  for (const Value& value : values) {
    if (!value.IsString()) return InvalidArgument("join takes strings, not a %s", value.TypeName());
  }
  ASSIGN_OR_RETURN(MarkedString text, Join(values, *self.string(), &context.budget()));
  return context.heap.String(std::move(text));
}

// The character at which the other text begins first or last; -1 without one.
template <bool last, bool must_exist>
Result FindMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* part, RequireString(arguments, 0, "sub"));
  if (last) RETURN_IF_ERROR(context.budget().StepBytes(self.text().size() * part->size()));
  const size_t at = last ? self.text().rfind(part->text()) : FindText(self.text(), part->text());
  if (at != std::string_view::npos) return Value(static_cast<int64_t>(CountCharacters(self.text().substr(0, at))));
  if (must_exist) return InvalidArgument("the str does not contain the other");
  return Value(int64_t{-1});
}

Result CountMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* part, RequireString(arguments, 0, "sub"));
  if (part->empty()) return Value(static_cast<int64_t>(CountCharacters(self.text())) + 1);
  ASSIGN_OR_RETURN(const std::vector<size_t> found, FindSeparators(self.text(), part->text(), -1, false, &context.budget()));
  return Value(static_cast<int64_t>(found.size()));
}

template <bool (*holds)(unsigned char)>
Result AllMethod(Context&, const Value& self, Arguments&) {
  return Value(!self.text().empty() &&
               std::all_of(self.text().begin(), self.text().end(), [](char c) { return holds(static_cast<unsigned char>(c)); }));
}

constexpr std::array<NamedMethod, 25> kStringMethods = {{
    {"strip", StripMethod<Side::kBoth>},
    {"lstrip", StripMethod<Side::kLeft>},
    {"rstrip", StripMethod<Side::kRight>},
    {"upper", ChangeMethod<Upper>},
    {"lower", ChangeMethod<Lower>},
    {"capitalize", ChangeMethod<Capitalize>},
    {"title", ChangeMethod<Title>},
    {"split", SplitMethod<false>},
    {"rsplit", SplitMethod<true>},
    {"splitlines", SplitLines},
    {"startswith", HasAffix<false>},
    {"endswith", HasAffix<true>},
    {"removeprefix", RemoveAffix<false>},
    {"removesuffix", RemoveAffix<true>},
    {"replace", ReplaceMethod},
    {"join", JoinMethod},
    {"find", FindMethod<false, false>},
    {"rfind", FindMethod<true, false>},
    {"index", FindMethod<false, true>},
    {"rindex", FindMethod<true, true>},
    {"count", CountMethod},
    {"isdigit", AllMethod<absl::ascii_isdigit>},
    {"isalpha", AllMethod<absl::ascii_isalpha>},
    {"isalnum", AllMethod<absl::ascii_isalnum>},
    {"isspace", AllMethod<absl::ascii_isspace>},
}};

// --- lists

Result AppendMethod(Context& context, const Value& self, Arguments& arguments) {
  const Value* item = arguments.Get(0);
  if (item == nullptr) return Missing("an item");
  RETURN_IF_ERROR(context.heap.Append(self.list(), *item));
  return Value(None());
}

Result ExtendMethod(Context& context, const Value& self, Arguments& arguments) {
  const Value* items = arguments.Get(0);
  if (items == nullptr) return Missing("a list");
  ASSIGN_OR_RETURN(const std::vector<Value> values, Iterate(context.heap, *items));
  for (const Value& value : values) RETURN_IF_ERROR(context.heap.Append(self.list(), value));
  return Value(None());
}

Result InsertMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(int64_t at, arguments.GetInteger(0, "", 0));
  const Value* item = arguments.Get(1);
  if (item == nullptr) return Missing("an item");
  const Value copy = *item;
  RETURN_IF_ERROR(context.heap.Append(self.list(), copy));
  std::vector<Value>& items = self.list()->items;
  const auto size = static_cast<int64_t>(items.size()) - 1;
  at = std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
  RETURN_IF_ERROR(context.budget().Step((size - at) / 16));
  std::rotate(items.begin() + at, items.end() - 1, items.end());
  return Value(None());
}

Result PopMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(int64_t at, arguments.GetInteger(0, "", -1));
  std::vector<Value>& items = self.list()->items;
  const auto size = static_cast<int64_t>(items.size());
  if (at < 0) at += size;
  if (at < 0 || at >= size) return InvalidArgument("pop: the list has %d items", size);
  RETURN_IF_ERROR(context.budget().Step((size - at) / 16));
  Value item = std::move(items[static_cast<size_t>(at)]);
  items.erase(items.begin() + at);
  return item;
}

// The first place of an item; -1 without one.
absl::StatusOr<int64_t> PlaceOf(Context& context, const Value& self, const Value& item) {
  for (size_t i = 0; i < self.list()->items.size(); ++i) {
    ASSIGN_OR_RETURN(const bool equal, Equal(self.list()->items[i], item, &context.budget()));
    if (equal) return static_cast<int64_t>(i);
  }
  return -1;
}

Result IndexMethod(Context& context, const Value& self, Arguments& arguments) {
  const Value* item = arguments.Get(0);
  if (item == nullptr) return Missing("an item");
  ASSIGN_OR_RETURN(const int64_t at, PlaceOf(context, self, *item));
  if (at < 0) return InvalidArgument("the item is not in the list");
  return Value(at);
}

Result RemoveMethod(Context& context, const Value& self, Arguments& arguments) {
  ASSIGN_OR_RETURN(const Value at, IndexMethod(context, self, arguments));
  self.list()->items.erase(self.list()->items.begin() + at.integer());
  return Value(None());
}

Result CountItems(Context& context, const Value& self, Arguments& arguments) {
  const Value* item = arguments.Get(0);
  if (item == nullptr) return Missing("an item");
  int64_t count = 0;
  for (const Value& element : self.list()->items) {
    ASSIGN_OR_RETURN(const bool equal, Equal(element, *item, &context.budget()));
    count += equal;
  }
  return Value(count);
}

Result ReverseMethod(Context& context, const Value& self, Arguments&) {
  RETURN_IF_ERROR(context.budget().Step(static_cast<int64_t>(self.list()->items.size() / 4)));
  std::reverse(self.list()->items.begin(), self.list()->items.end());
  return Value(None());
}

Result CopyList(Context& context, const Value& self, Arguments&) { return context.heap.NewList(self.list()->items); }

constexpr std::array<NamedMethod, 9> kListMethods = {{
    {"index", IndexMethod},
    {"count", CountItems},
    // Those above are a tuple's as well.
    {"append", AppendMethod},
    {"extend", ExtendMethod},
    {"insert", InsertMethod},
    {"pop", PopMethod},
    {"remove", RemoveMethod},
    {"reverse", ReverseMethod},
    {"copy", CopyList},
}};
constexpr size_t kTupleMethods = 2;

// --- dicts

Result GetMethod(Context&, const Value& self, Arguments& arguments) {
  const Value *key = arguments.Get(0, "key"), *otherwise = arguments.Get(1, "default");
  if (key == nullptr) return Missing("a key");
  const Value* found = self.dict()->Find(*key);
  return found != nullptr ? *found : otherwise != nullptr ? *otherwise : Value(None());
}

Result ItemsMethod(Context& context, const Value& self, Arguments&) {
  ASSIGN_OR_RETURN(const Value list, context.heap.NewList({}));
  for (const Dict::Entry& entry : self.dict()->entries()) {
    ASSIGN_OR_RETURN(Value pair, context.heap.NewList({entry.key, entry.value}, /*is_tuple=*/true));
    RETURN_IF_ERROR(context.heap.Append(list.list(), std::move(pair)));
  }
  return list;
}

template <bool keys>
Result PartsMethod(Context& context, const Value& self, Arguments&) {
  std::vector<Value> parts;
  for (const Dict::Entry& entry : self.dict()->entries()) parts.push_back(keys ? entry.key : entry.value);
  return context.heap.NewList(std::move(parts));
}

Result PopKey(Context& context, const Value& self, Arguments& arguments) {
  const Value *key = arguments.Get(0), *otherwise = arguments.Get(1);
  if (key == nullptr) return Missing("a key");
  RETURN_IF_ERROR(context.budget().Step(static_cast<int64_t>(self.dict()->entries().size() / 4)));
  std::optional<Value> removed = self.dict()->Remove(*key);
  if (removed) return *std::move(removed);
  if (otherwise != nullptr) return *otherwise;
  return InvalidArgument("pop: the dict has no such key");
}

Result UpdateMethod(Context& context, const Value& self, Arguments& arguments) {
  if (const Value* from = arguments.Get(0); from != nullptr) {
    if (from->dict() == nullptr) return InvalidArgument("update takes a dict, not a %s", from->TypeName());
    const std::vector<Dict::Entry> entries = from->dict()->entries();
    for (const Dict::Entry& entry : entries) RETURN_IF_ERROR(context.heap.Set(self.dict(), entry.key, entry.value));
  }
  for (const auto& [name, value] : arguments.keywords()) RETURN_IF_ERROR(context.heap.Set(self.dict(), name, value));
  arguments.UseKeywords();
  return Value(None());
}

Result SetDefault(Context& context, const Value& self, Arguments& arguments) {
  const Value *key = arguments.Get(0), *value = arguments.Get(1);
  if (key == nullptr) return Missing("a key");
  if (const Value* found = self.dict()->Find(*key)) return *found;
  const Value added = value == nullptr ? Value(None()) : *value;
  RETURN_IF_ERROR(context.heap.Set(self.dict(), *key, added));
  return added;
}

Result CopyDict(Context& context, const Value& self, Arguments&) {
  ASSIGN_OR_RETURN(const Value copy, context.heap.NewDict());
  for (const Dict::Entry& entry : self.dict()->entries()) {
    RETURN_IF_ERROR(context.heap.Set(copy.dict(), entry.key, entry.value));
  }
  return copy;
}

constexpr std::array<NamedMethod, 8> kDictMethods = {{
    {"get", GetMethod},
    {"items", ItemsMethod},
    {"keys", PartsMethod<true>},
    {"values", PartsMethod<false>},
    {"pop", PopKey},
    {"update", UpdateMethod},
    {"setdefault", SetDefault},
    {"copy", CopyDict},
}};

Method FindMethodOf(const Value& self, std::string_view name) {
  const auto find = [&](const NamedMethod* begin, size_t count) -> Method {
    const NamedMethod* found = std::find_if(begin, begin + count, [&](const NamedMethod& known) { return known.name == name; });
    return found == begin + count ? nullptr : found->method;
  };
  if (self.IsString()) return find(kStringMethods.data(), kStringMethods.size());
  if (self.list() != nullptr) return find(kListMethods.data(), self.list()->is_tuple ? kTupleMethods : kListMethods.size());
  if (self.dict() != nullptr && !self.dict()->is_namespace()) return find(kDictMethods.data(), kDictMethods.size());
  return nullptr;
}

}  // namespace

bool HasMethod(const Value& self, std::string_view name) { return FindMethodOf(self, name) != nullptr; }

absl::StatusOr<Value> CallMethod(Context& context, const Value& self, std::string_view name, Arguments& arguments) {
  const Method method = FindMethodOf(self, name);
  if (method == nullptr) return InvalidArgument("a %s has no method '%s'", self.TypeName(), name);
  if (self.IsString()) RETURN_IF_ERROR(context.budget().StepBytes(self.text().size()));
  return method(context, self, arguments);
}

}  // namespace ferry::jinja
