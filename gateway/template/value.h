#pragma once

// What an expression of a template can be: Python's values, as far as templates use them.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"
#include "gateway/template/budget.h"
#include "gateway/template/marked_string.h"

namespace ferry::jinja {

struct List;
struct Dict;
struct Callable;
struct Loop;

struct Undefined {};
struct None {};
using StringRef = std::shared_ptr<const MarkedString>;

// Strings are shared; the Heap owns everything else that is pointed to. Copies are cheap and, as in Python, lists and
// dicts that are copied so are the same.
class Value {
 public:
  Value() = default;  // undefined
  Value(None) : rep_(None()) {}
  Value(bool b) : rep_(b) {}
  Value(int64_t i) : rep_(i) {}
  Value(double d) : rep_(d) {}
  Value(StringRef s) : rep_(std::move(s)) {}
  Value(List* l) : rep_(l) {}
  Value(Dict* d) : rep_(d) {}
  Value(Callable* c) : rep_(c) {}
  Value(const Loop* l) : rep_(l) {}

  bool IsUndefined() const { return Is<Undefined>(); }
  bool IsNone() const { return Is<None>(); }
  bool IsString() const { return Is<StringRef>(); }
  bool IsInteger() const { return Is<int64_t>() || Is<bool>(); }
  bool IsNumber() const { return IsInteger() || Is<double>(); }
  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(rep_);
  }
  template <typename T>
  const T& As() const {
    return std::get<T>(rep_);
  }
  // Null where it is of another type.
  const MarkedString* string() const { return IsString() ? As<StringRef>().get() : nullptr; }
  List* list() const { return Is<List*>() ? As<List*>() : nullptr; }
  Dict* dict() const { return Is<Dict*>() ? As<Dict*>() : nullptr; }
  std::string_view text() const { return As<StringRef>()->text(); }
  int64_t integer() const { return Is<bool>() ? As<bool>() : As<int64_t>(); }  // IsInteger
  double number() const { return Is<double>() ? As<double>() : static_cast<double>(integer()); }

  bool Truth() const;
  std::string_view TypeName() const;  // Python's: "str", "list", ...

 private:
  std::variant<Undefined, None, bool, int64_t, double, StringRef, List*, Dict*, Callable*, const Loop*> rep_;
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
};

// In order of insertion. Keys are strings, numbers, booleans or none.
class Dict {
 public:
  struct Entry {
    Value key, value;
  };

  explicit Dict(bool is_namespace = false) : is_namespace_(is_namespace) {}

  bool is_namespace() const { return is_namespace_; }
  const std::vector<Entry>& entries() const { return entries_; }
  static bool CanBeKey(const Value& key);
  const Value* Find(const Value& key) const;  // null: there is none
  const Value* Find(std::string_view key) const;
  void Set(const Value& key, Value value);  // CanBeKey
  // Returns the removed value.
  std::optional<Value> Remove(const Value& key);

 private:
  static std::string IndexKey(const Value& key);

  bool is_namespace_;
  std::vector<Entry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;
};

struct Scope;
struct Statement;

struct Callable {
  enum class Kind { kMacro, kFunction, kMethod };
  Kind kind;
  std::string name;
  Value self;                        // of a method
  const Statement* macro = nullptr;  // and the scope that it was defined in
  Scope* scope = nullptr;
};

// What `loop` is inside a for.
struct Loop {
  const std::vector<Value>* items;
  size_t index;
  Value Attribute(std::string_view name) const;  // undefined: there is none
};

struct Scope {
  Scope* parent = nullptr;
  absl::flat_hash_map<std::string, Value> variables;
  bool captured = false;  // a macro refers to it
};

// Owns the values of one rendering, and counts their memory. Used by one thread.
class Heap {
 public:
  explicit Heap(Budget* budget) : budget_(*budget) {}  // must outlive this and every string made here

  absl::StatusOr<Value> String(MarkedString text);
  absl::StatusOr<Value> String(std::string_view text, bool from_user = false) { return String(MarkedString(text, from_user)); }
  absl::StatusOr<Value> NewList(std::vector<Value> items, bool is_tuple = false);
  absl::StatusOr<Value> NewDict(bool is_namespace = false);
  absl::StatusOr<Value> NewCallable(Callable callable);
  absl::StatusOr<Scope*> NewScope(Scope* parent);
  void EndScope(Scope* scope);  // its memory is used again, unless it was captured

  absl::Status Append(List* list, Value item);
  // InvalidArgument: the key is a list, dict or undefined.
  absl::Status Set(Dict* dict, const Value& key, Value value);
  absl::Status Set(Dict* dict, std::string_view key, Value value);
  absl::Status SetVariable(Scope* scope, std::string_view name, Value value);

  // Strings in it are marked with `from_user`. InvalidArgument: more than 200 levels.
  absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, bool from_user, int depth = 0);

  Budget& budget() { return budget_; }

 private:
  Budget& budget_;
  std::vector<std::unique_ptr<List>> lists_;
  std::vector<std::unique_ptr<Dict>> dicts_;
  std::vector<std::unique_ptr<Callable>> callables_;
  std::vector<std::unique_ptr<Scope>> scopes_;
  std::vector<Scope*> free_scopes_;
};

}  // namespace ferry::jinja
