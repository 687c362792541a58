// The functions of chat templates that are always there.

#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gateway/template/context.h"
#include "gateway/template/operators.h"
#include "gateway/template/python_text.h"

namespace ferry::jinja {
namespace {

using Function = absl::StatusOr<Value> (*)(Context&, Arguments&);

// A dict or namespace of the dict that is given, then the keywords.
absl::StatusOr<Value> MakeDict(Context& context, Arguments& arguments, bool is_namespace) {
  ASSIGN_OR_RETURN(const Value made, context.heap.NewDict(is_namespace));
  if (const Value* from = arguments.Get(0); from != nullptr) {
    if (from->dict() == nullptr) return InvalidArgument("a dict is wanted, not a %s", from->TypeName());
    for (const Dict::Entry& entry : from->dict()->entries()) {
      RETURN_IF_ERROR(context.heap.Set(made.dict(), entry.key, entry.value));
    }
  }
  for (const auto& [name, value] : arguments.keywords()) RETURN_IF_ERROR(context.heap.Set(made.dict(), name, value));
  arguments.UseKeywords();
  return made;
}

absl::StatusOr<Value> Namespace(Context& context, Arguments& arguments) { return MakeDict(context, arguments, true); }
absl::StatusOr<Value> MakePlainDict(Context& context, Arguments& arguments) { return MakeDict(context, arguments, false); }

absl::StatusOr<Value> Range(Context& context, Arguments& arguments) {
  if (arguments.Get(0) == nullptr) return InvalidArgument("range needs an end");
  ASSIGN_OR_RETURN(int64_t begin, arguments.GetInteger(0, "", 0));
  ASSIGN_OR_RETURN(int64_t end, arguments.GetInteger(1, "", 0));
  ASSIGN_OR_RETURN(const int64_t step, arguments.GetInteger(2, "", 1));
  if (arguments.Get(1) == nullptr) end = std::exchange(begin, 0);
  if (step == 0) return InvalidArgument("the step of a range is 0");
  constexpr size_t kMostItems = 100'000;  // as Jinja's sandbox has it
  std::vector<Value> items;
  while (step > 0 ? begin < end : begin > end) {
    if (items.size() == kMostItems) return ResourceExhausted("a range of more than %d numbers", kMostItems);
    items.emplace_back(begin);
    if (__builtin_add_overflow(begin, step, &begin)) break;
  }
  return context.heap.NewList(std::move(items));
}

absl::StatusOr<Value> RaiseException(Context& context, Arguments& arguments) {
  const Value* message = arguments.Get(0, "message");
  ASSIGN_OR_RETURN(const MarkedString text, ToText(message == nullptr ? Value() : *message, &context.budget()));
  return InvalidArgument("the chat template refuses this conversation: %s", text.text().substr(0, 1000));
}

absl::StatusOr<Value> StrftimeNow(Context& context, Arguments& arguments) {
  ASSIGN_OR_RETURN(const MarkedString* format, arguments.GetString(0, "format"));
  if (format == nullptr || format->size() > 256) return InvalidArgument("strftime_now needs a format of at most 256 bytes");
  return context.heap.String(absl::FormatTime(std::string(format->text()), context.now, absl::UTCTimeZone()));
}

struct NamedFunction {
  std::string_view name;
  Function function;
};
constexpr std::array<NamedFunction, 5> kFunctions = {{
    {"namespace", Namespace},
    {"dict", MakePlainDict},
    {"range", Range},
    {"raise_exception", RaiseException},
    {"strftime_now", StrftimeNow},
}};

}  // namespace

bool IsFunction(std::string_view name) {
  for (const NamedFunction& known : kFunctions) {
    if (known.name == name) return true;
  }
  return false;
}

absl::StatusOr<Value> CallFunction(Context& context, std::string_view name, Arguments& arguments) {
  for (const NamedFunction& known : kFunctions) {
    if (known.name == name) return known.function(context, arguments);
  }
  return InvalidArgument("there is no function '%s'", name);
}

}  // namespace ferry::jinja
