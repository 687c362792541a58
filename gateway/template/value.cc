#include "gateway/template/value.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace ferry::jinja {
namespace {

constexpr int kMaxJsonDepth = 200;

struct TypeNames {
  std::string_view operator()(Undefined) const { return "undefined"; }
  std::string_view operator()(None) const { return "none"; }
  std::string_view operator()(bool) const { return "bool"; }
  std::string_view operator()(int64_t) const { return "int"; }
  std::string_view operator()(double) const { return "float"; }
  std::string_view operator()(const StringRef&) const { return "str"; }
  std::string_view operator()(const List* list) const { return list->is_tuple ? "tuple" : "list"; }
  std::string_view operator()(const Dict* dict) const { return dict->is_namespace() ? "namespace" : "dict"; }
  std::string_view operator()(const Callable*) const { return "function"; }
  std::string_view operator()(const Loop*) const { return "loop"; }
};

}  // namespace

bool Value::Truth() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsNumber()) return number() != 0;
  if (IsString()) return !As<StringRef>()->empty();
  if (Is<List*>()) return !As<List*>()->items.empty();
  if (Is<Dict*>()) return As<Dict*>()->is_namespace() || !As<Dict*>()->entries().empty();
  return true;
}

std::string_view Value::TypeName() const { return std::visit(TypeNames(), rep_); }

bool Dict::CanBeKey(const Value& key) { return key.IsString() || key.IsNumber() || key.IsNone(); }

// Equal values have equal index keys, as 1, 1.0 and true are equal in Python.
std::string Dict::IndexKey(const Value& key) {
  if (key.IsString()) return absl::StrCat("s", std::string(key.text()));
  if (key.IsNone()) return "n";
  if (key.IsInteger()) return absl::StrCat("i", key.integer());
  const double number = key.number();
  if (number == std::floor(number) && std::abs(number) < 9e18) return absl::StrCat("i", static_cast<int64_t>(number));
  return absl::StrFormat("f%.17g", number);
}

const Value* Dict::Find(const Value& key) const {
  if (!CanBeKey(key)) return nullptr;
  const auto found = index_.find(IndexKey(key));
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

const Value* Dict::Find(std::string_view key) const {
  const auto found = index_.find("s" + std::string(key));
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

void Dict::Set(const Value& key, Value value) {
  const auto [entry, inserted] = index_.try_emplace(IndexKey(key), entries_.size());
  if (inserted) {
    entries_.push_back({key, std::move(value)});
  } else {
    entries_[entry->second].value = std::move(value);
  }
}

std::optional<Value> Dict::Remove(const Value& key) {
  if (!CanBeKey(key)) return std::nullopt;
  const auto found = index_.find(IndexKey(key));
  if (found == index_.end()) return std::nullopt;
  const size_t at = found->second;
  Value value = std::move(entries_[at].value);
  entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(at));
  index_.erase(found);
  for (auto& [name, index] : index_) index -= index > at ? 1 : 0;
  return value;
}

Value Loop::Attribute(std::string_view name) const {
  const auto count = static_cast<int64_t>(items->size()), at = static_cast<int64_t>(index);
  if (name == "index") return at + 1;
  if (name == "index0") return at;
  if (name == "revindex") return count - at;
  if (name == "revindex0") return count - at - 1;
  if (name == "first") return at == 0;
  if (name == "last") return at + 1 == count;
  if (name == "length") return count;
  if (name == "depth") return int64_t{1};  // more only in recursive loops, which there are none of
  if (name == "depth0") return int64_t{0};
  if (name == "previtem" && at > 0) return (*items)[index - 1];
  if (name == "nextitem" && at + 1 < count) return (*items)[index + 1];
  return Value();
}

absl::StatusOr<Value> Heap::String(MarkedString text) {
  RETURN_IF_ERROR(budget_.CheckString(text.size()));
  RETURN_IF_ERROR(budget_.StepBytes(text.size()));
  const size_t bytes = sizeof(MarkedString) + text.size() + text.runs().size() * sizeof(MarkedString::Run);
  RETURN_IF_ERROR(budget_.Take(bytes));
  return Value(StringRef(new MarkedString(std::move(text)), [budget = &budget_, bytes](const MarkedString* string) {
    budget->Give(bytes);
    delete string;
  }));
}

absl::StatusOr<Value> Heap::NewList(std::vector<Value> items, bool is_tuple) {
  RETURN_IF_ERROR(budget_.Take(sizeof(List) + items.size() * sizeof(Value)));
  RETURN_IF_ERROR(budget_.Step(static_cast<int64_t>(items.size() / 4)));
  lists_.push_back(std::make_unique<List>(List{std::move(items), is_tuple}));
  return Value(lists_.back().get());
}

absl::StatusOr<Value> Heap::NewDict(bool is_namespace) {
  RETURN_IF_ERROR(budget_.Take(sizeof(Dict)));
  dicts_.push_back(std::make_unique<Dict>(is_namespace));
  return Value(dicts_.back().get());
}

absl::StatusOr<Value> Heap::NewCallable(Callable callable) {
  RETURN_IF_ERROR(budget_.Take(sizeof(Callable)));
  callables_.push_back(std::make_unique<Callable>(std::move(callable)));
  return Value(callables_.back().get());
}

absl::StatusOr<Scope*> Heap::NewScope(Scope* parent) {
  if (free_scopes_.empty()) {
    RETURN_IF_ERROR(budget_.Take(sizeof(Scope)));
    scopes_.push_back(std::make_unique<Scope>());
    free_scopes_.push_back(scopes_.back().get());
  }
  Scope* const scope = free_scopes_.back();
  free_scopes_.pop_back();
  scope->parent = parent;
  return scope;
}

void Heap::EndScope(Scope* scope) {
  if (scope->captured) return;
  scope->variables.clear();
  free_scopes_.push_back(scope);
}

absl::Status Heap::Append(List* list, Value item) {
  RETURN_IF_ERROR(budget_.Take(sizeof(Value)));
  list->items.push_back(std::move(item));
  return absl::OkStatus();
}

absl::Status Heap::Set(Dict* dict, const Value& key, Value value) {
  if (!Dict::CanBeKey(key)) return InvalidArgument("a %s cannot be a key of a dict", key.TypeName());
  RETURN_IF_ERROR(budget_.Take(sizeof(Dict::Entry) + 64));
  dict->Set(key, std::move(value));
  return absl::OkStatus();
}

absl::Status Heap::Set(Dict* dict, std::string_view key, Value value) {
  ASSIGN_OR_RETURN(const Value name, String(key));
  return Set(dict, name, std::move(value));
}

absl::Status Heap::SetVariable(Scope* scope, std::string_view name, Value value) {
  const auto [entry, inserted] = scope->variables.insert_or_assign(std::string(name), std::move(value));
  return inserted ? budget_.Take(sizeof(Value) + 64) : absl::OkStatus();
}

absl::StatusOr<Value> Heap::FromJson(const nlohmann::ordered_json& json, bool from_user, int depth) {
  if (depth > kMaxJsonDepth) return InvalidArgument("JSON values lie more than %d levels within one another", kMaxJsonDepth);
  RETURN_IF_ERROR(budget_.Step());
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::string:
      return String(json.get_ref<const std::string&>(), from_user);
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Value(json.get<double>());
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      for (const auto& element : json) {
        ASSIGN_OR_RETURN(Value item, FromJson(element, from_user, depth + 1));
        items.push_back(std::move(item));
      }
      return NewList(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      ASSIGN_OR_RETURN(const Value dict, NewDict());
      for (const auto& [name, element] : json.items()) {
        ASSIGN_OR_RETURN(const Value key, String(name, from_user));
        ASSIGN_OR_RETURN(Value value, FromJson(element, from_user, depth + 1));
        RETURN_IF_ERROR(Set(dict.dict(), key, std::move(value)));
      }
      return dict;
    }
    default:  // null; nothing else comes from JSON text
      return Value(None());
  }
}

}  // namespace ferry::jinja
